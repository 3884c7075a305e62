"""`--params dataset=…,model=…`: names are checked before anything runs, and the model becomes a tag filter.

Every node is tagged `shared`, with its model's name, or with the kinds of ids (text, image, text_image, text_parts)
it serves. The session runs `shared`, the chosen models and the data set's modalities, unless the user filtered by tags,
nodes or namespaces. A run of the whole project takes the baselines along.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from kedro.framework.project import settings
from kedro.framework.session import KedroSession

from recpipe.pipelines import modalities, zoo
from recpipe.pipelines.parameters import (
    Refused,
    at,
    check_name,
    check_parameters,
    first,
    winning,
    with_side,
)
from recpipe.pipelines.seeds import parsed, plan

log = logging.getLogger(__name__)

ALL = "all"
MODEL_TAGS_RESERVED = (
    zoo.SHARED,
    ALL,
    "ensemble",
    *modalities.KINDS,
)  # tags of other nodes: no model may be called so
OWN_CHOICE = ("tags", "node_names", "namespaces")  # filters that replace ours
RANGES = ("from_nodes", "to_nodes", "from_inputs", "to_outputs")  # filters that add to ours


class RecpipeSession(KedroSession):
    """Kedro's session, which turns the `model` parameter into tags and refuses unknown names up front."""

    def run(self, *args: Any, **options: Any) -> dict[str, Any]:
        """As KedroSession.run. Raises `Refused` for an unknown data set, model or parameter."""
        options = dict(inspect.signature(super().run).bind(*args, **options).arguments)
        asked = self.store.get("runtime_params") or {}
        conf = self._parameters_without(asked)
        check_parameters(asked, with_side(conf))
        check_name(asked.get("dataset", conf["dataset"]), conf["datasets"], what="dataset")
        if reserved := [name for name in MODEL_TAGS_RESERVED if name in conf["models"]]:
            raise Refused(
                f"no model can be called {reserved[0]!r}: rename conf/*/parameters/models/{reserved[0]}.yml"
            )
        if seeds := seeds_asked(asked, conf):
            return self._every_seed(seeds, asked, options)
        model = asked.get("model", conf["model"])
        dataset = conf["datasets"][asked.get("dataset", conf["dataset"])]
        baselines = dataset.get("baselines", conf["baselines"])
        described = content_tags(asked, conf, options)
        given = winning(asked, conf)
        reads = inputs_asked(given, conf)
        if asked.get("modality", conf["modality"]) == modalities.AUTO:
            described += also_read(chosen_models(model, list(conf["models"])), reads, described)
        able = [
            name for name in within_protocol(asked, conf) if _described(reads[name].modalities, described)
        ]
        check_described(
            chosen_models(model, list(conf["models"])) if model != ALL else [], reads, asked, conf
        )
        options["tags"] = tags(model, conf["models"], baselines, options, described, able)
        self._store["runtime_params"] = given  # `store` is a copy
        zoo.declare(conf["models"], reads)
        try:
            return super().run(**options)
        except KeyboardInterrupt as stop:
            if stop.args:  # what to do to go on: the command line itself only says that it was aborted
                log.warning("%s", stop)
            raise

    def _every_seed(
        self, seeds: list[int], asked: Mapping[str, Any], options: dict[str, Any]
    ) -> dict[str, Any]:
        """One session a seed, as Kedro wants it; gives what the last one gives."""
        names = [options.pop("pipeline_name", None), *(options.get("pipeline_names") or ())]
        filtered = any(options.get(name) for name in (*OWN_CHOICE, *RANGES))
        found: dict[str, Any] = {}
        for seed, pipelines in plan(seeds, [name for name in names if name], filtered=filtered):
            log.info("seed %s: %s", seed, ", ".join(pipelines or ["the whole project"]))
            session = self.create(
                project_path=self._project_path,
                save_on_close=False,
                env=self.store.get("env"),
                conf_source=self._conf_source,
                runtime_params={**asked, "seed": seed, "seeds": None},
            )
            with session:
                found = session.run(**{**options, "pipeline_names": pipelines})
        return found

    def _parameters_without(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as the files have them, so that what was asked for can be held against them."""
        loader = settings.CONFIG_LOADER_CLASS(
            conf_source=self._conf_source, env=self.store.get("env"), **settings.CONFIG_LOADER_ARGS
        )
        conf: dict[str, Any] = loader["parameters"]
        return conf


def seeds_asked(asked: Mapping[str, Any], conf: Mapping[str, Any]) -> list[int]:
    """The seeds to run one after the other. Raises `Refused` for what is none, and where one seed is given too."""
    try:
        found = parsed(asked.get("seeds", conf.get("seeds")))
    except ValueError as error:
        raise Refused(str(error)) from error
    if found and "seeds" in asked and "seed" in asked:
        raise Refused(f"seed={asked['seed']} and seeds={asked['seeds']}: give one of the two")
    return [] if "seeds" not in asked and "seed" in asked else found


def inputs_asked(given: Mapping[str, Any], conf: Mapping[str, Any]) -> zoo.Reads:
    """What each model reads in a run with `given`. Raises `Refused` for an unknown modality or model."""
    from recpipe.pipelines.blocks import merged

    try:
        return zoo.asked(merged(conf, given))
    except ValueError as error:
        raise Refused(str(error)) from error


def also_read(models: Iterable[str], reads: zoo.Reads, described: Iterable[str]) -> list[str]:
    """Kinds of ids that the models read and that come of the same content as those `described`, which lack them."""
    made = list(described)
    content = {key for name in made for key in modalities.READS[name]}
    wanted = dict.fromkeys(kind for model in models for kind in reads[model].ids)
    return [kind for kind in wanted if kind not in made and content.issuperset(modalities.READS[kind])]


def check_described(
    wanted: Iterable[str], reads: zoo.Reads, asked: Mapping[str, Any], conf: Mapping[str, Any]
) -> None:
    """Raises `Refused` for a model whose ids the data set has no content for."""
    dataset = asked.get("dataset", conf["dataset"])
    content = conf["datasets"][dataset].get("content") or {}
    for name in wanted:
        for modality in reads[name].ids:
            try:
                modalities.check([modality], dataset, content)
            except ValueError as error:
                raise Refused(f"model {name!r} reads {modality} ids: {error}") from error


def _described(wanted: Iterable[str], modality: list[str]) -> bool:
    """Whether a run of these modalities makes all vectors and ids that are `wanted`."""
    made = {*modality, *(part for name in modality for part in modalities.READS[name])}
    return made.issuperset(wanted)


def content_tags(asked: Mapping[str, Any], conf: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    """The modalities to run. Raises `Refused` for one without content, and where only such pipelines were named."""
    dataset = asked.get("dataset", conf["dataset"])
    try:
        found = modalities.chosen(asked.get("modality", conf["modality"]), dataset, conf["datasets"][dataset])
    except ValueError as error:
        raise Refused(str(error)) from error
    named = [options.get("pipeline_name"), *(options.get("pipeline_names") or ())]
    if not found and {"embed", "semantic_ids"} & set(named):
        raise Refused(
            f"data set {dataset!r} has no `content` block, so there is nothing to embed: "
            f"conf/base/parameters/datasets/my_log.yml says how to write one"
        )
    return found


def tags(
    model: str,
    known: Iterable[str],
    baselines: Iterable[str],
    options: Mapping[str, Any],
    described: Iterable[str] = (),
    able: Iterable[str] | None = None,
) -> list[str]:
    """The user's own tags, or `shared`, the models asked for, in a whole run the baselines, and `described`.

    `able`: what `all` means, every model by default.
    """
    known = list(known)
    wanted = chosen_models(model, known)
    if model == ALL and able is not None:
        wanted = list(able)
        if left_out := [name for name in known if name not in wanted]:
            log.info("left out of all, for want of vectors or of time: %s", ", ".join(left_out))
    if any(options.get(name) for name in OWN_CHOICE):
        return list(options.get("tags") or ())
    pipelines = [options["pipeline_name"]] if options.get("pipeline_name") else options.get("pipeline_names")
    if not pipelines or "__default__" in pipelines:
        wanted += [name for each in baselines for name in chosen_models(each, known)]
    words = [str(word) for name in RANGES for word in options.get(name) or ()]
    wanted += [name for name in known if any(word.startswith(f"{name}.") for word in words)]
    return [zoo.SHARED, *dict.fromkeys([*wanted, *described])]


def within_protocol(asked: Mapping[str, Any], conf: Mapping[str, Any]) -> list[str]:
    """What `all` means: every model but those that use more of time than the protocol allows."""
    from recpipe.data.protocol import TIMES

    dataset = asked.get("dataset", conf["dataset"])
    time = first(
        "time", at(asked, ["protocol"]), at(conf, ["datasets", dataset, "protocol"]), conf["protocol"]
    )
    if time not in TIMES:  # refused by name when the protocol is checked
        return list(conf["models"])
    kept: list[str] = []
    for name, block in conf["models"].items():
        own = at(block, ["datasets", dataset])
        used = first("time_mode", at(asked, ["models", name]), own, block)
        if used not in TIMES[TIMES.index(time) + 1 :]:
            kept.append(name)
    return kept


def chosen_models(asked: str, known: list[str]) -> list[str]:
    """`sasrec`, `sasrec+popular` or `all` as a list of names. Raises `Refused` with the nearest spelling."""
    if asked == ALL:
        return list(known)
    names = str(asked).split("+")
    for name in names:
        check_name(name, known, what="model", also=f", or several as a+b, or {ALL}")
    return names
