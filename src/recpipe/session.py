"""`--params dataset=…,model=…`: names are checked before anything runs, and the model becomes a tag filter.

Every node is tagged `shared`, with its model's name, or with the modalities (text, image, text_image) it serves. The
session runs `shared`, the chosen models and the data set's modalities, unless the user filtered by tags, nodes or
namespaces. A run of the whole project takes the baselines along.
"""

from __future__ import annotations

import copy
import difflib
import inspect
import logging
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import click
from kedro.framework.project import settings
from kedro.framework.session import KedroSession

from recpipe.pipelines import modalities, zoo
from recpipe.pipelines.seeds import parsed, plan

log = logging.getLogger(__name__)

ALL = "all"
MODEL_TAGS_RESERVED = (
    zoo.SHARED,
    ALL,
    "ensemble",
    *modalities.MODALITIES,
)  # tags of other nodes: no model may be called so
OWN_CHOICE = ("tags", "node_names", "namespaces")  # filters that replace ours
COMMON = ("train", "side")  # blocks that a model's own of the same name override
RANGES = ("from_nodes", "to_nodes", "from_inputs", "to_outputs")  # filters that add to ours


class Refused(click.ClickException, ValueError):
    """A request for what the configuration does not have: one line on the command line, no traceback."""


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


def winning(asked: Mapping[str, Any], conf: Mapping[str, Any]) -> dict[str, Any]:
    """`asked`, repeated where the files override it: the data set's `protocol`, `cold_users`, `embed` and
    `semantic_ids`, a model's `train` and `side`, and the model's block for the data set.

    What is said on the command line wins over what a data set or a model says, and that over the common block; of
    two things said, the one with the longer name wins.
    """
    dataset = asked.get("dataset", conf["dataset"])
    given: dict[str, Any] = copy.deepcopy(dict(asked))
    for block in ("protocol", "cold_users", "embed", "semantic_ids"):
        _repeat(given, ["datasets", dataset, block], conf, asked.get(block))
    for name in conf["models"]:
        said = _at(asked, ["models", name])
        of_dataset = ["models", name, "datasets", dataset]
        own = {key: said[key] for key in said if key not in (*COMMON, "datasets")}
        _repeat(given, of_dataset, conf, own)
        for block in COMMON:
            _repeat(given, [*of_dataset, block], conf, said.get(block))
            _repeat(given, ["models", name, block], conf, asked.get(block))
            _repeat(given, [*of_dataset, block], conf, asked.get(block))
    return given


def with_side(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`conf` with all keys of the block `side` in every model: they may be given whatever its file has of them."""
    side = conf.get("side") or {}
    models = {
        name: {**block, "side": {**side, **(block.get("side") or {})}}
        for name, block in conf["models"].items()
    }
    return {**conf, "models": models}


def inputs_asked(given: Mapping[str, Any], conf: Mapping[str, Any]) -> zoo.Reads:
    """What each model reads in a run with `given`. Raises `Refused` for an unknown modality or model."""
    from recpipe.pipelines.blocks import merged

    try:
        return zoo.asked(merged(conf, given))
    except ValueError as error:
        raise Refused(str(error)) from error


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


def _at(block: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    for key in path:
        block = block.get(key) or {}
    return block


def _repeat(
    given: dict[str, Any], path: list[str], conf: Mapping[str, Any], said: Mapping[str, Any] | None
) -> None:
    """Puts into `given`, at `path`, what was said of keys that the files have there; what is there stays."""
    present = _at(conf, path)
    values = {key: value for key, value in (said or {}).items() if key in present}
    for key in path if values else []:
        given = given.setdefault(key, {})
    for key, value in values.items():
        _fill(given, key, value)


def _fill(given: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping) and isinstance(given.get(key), dict):
        for inner, each in value.items():
            _fill(given[key], inner, each)
    else:
        given.setdefault(key, copy.deepcopy(value))


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
    time = _first(
        "time", _at(asked, ["protocol"]), _at(conf, ["datasets", dataset, "protocol"]), conf["protocol"]
    )
    if time not in TIMES:  # refused by name when the protocol is checked
        return list(conf["models"])
    kept: list[str] = []
    for name, block in conf["models"].items():
        own = _at(block, ["datasets", dataset])
        used = _first("time_mode", _at(asked, ["models", name]), own, block)
        if used not in TIMES[TIMES.index(time) + 1 :]:
            kept.append(name)
    return kept


def _first(key: str, *blocks: Mapping[str, Any]) -> Any:
    """`key` of the first of `blocks` that has it."""
    return next((block[key] for block in blocks if key in block), None)


def chosen_models(asked: str, known: list[str]) -> list[str]:
    """`sasrec`, `sasrec+popular` or `all` as a list of names. Raises `Refused` with the nearest spelling."""
    if asked == ALL:
        return list(known)
    names = str(asked).split("+")
    for name in names:
        check_name(name, known, what="model", also=f", or several as a+b, or {ALL}")
    return names


def check_name(name: Any, known: Iterable[str], *, what: str, also: str = "") -> None:
    """Raises `Refused` unless `known` has `name`."""
    known = sorted(known)
    if name not in known:
        has = f"conf/base/parameters/{what}s has {', '.join(known)}{also}"
        raise Refused(f"unknown {what} {str(name)!r}{_nearest(str(name), known)}; {has}")


def check_parameters(asked: Mapping[str, Any], conf: Mapping[str, Any], path: str = "") -> None:
    """Raises `Refused` for a parameter that the files do not have, or have with another kind of value.

    A block that is empty in the files takes any key.
    """
    for key, value in asked.items():
        name = f"{path}{key}"
        if key not in conf:
            has = f"{path.rstrip('.') or 'conf'} has {', '.join(map(str, conf))}"
            raise Refused(f"unknown parameter {name!r}{_nearest(str(key), conf)}; {has}")
        present = conf[key]
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            if present:
                check_parameters(value, present, f"{name}.")
        elif isinstance(present, Mapping):
            raise Refused(
                f"parameter {name!r} is a block; give one of its keys, {', '.join(map(str, present))}"
            )
        elif not same_kind(value, present):
            raise Refused(
                f"parameter {name!r} cannot be {value!r}: conf has {present!r}, give that kind of value"
            )


def same_kind(value: Any, present: Any) -> bool:
    """Whether `value` may replace `present`: number for number, yes/no for yes/no, a date for a share.

    Null and text may be replaced by any single value; a list cannot be given on the command line.
    """
    if isinstance(value, Mapping) or isinstance(present, list):
        return False
    if value is None or present is None or isinstance(present, str):
        return True
    if isinstance(present, bool) or isinstance(value, bool):
        return isinstance(present, bool) and isinstance(value, bool)
    if isinstance(present, float):
        return isinstance(value, int | float) or _is_date(value)
    return isinstance(value, int)


def _is_date(value: Any) -> bool:
    try:
        date.fromisoformat(str(value))
    except ValueError:
        return False
    return True


def _nearest(name: str, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
