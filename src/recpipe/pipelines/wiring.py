"""Choice of what the pipelines of a command are built for: models, semantic ids, item vectors, results.

Kedro calls ``register_pipelines`` without arguments, so the config loader and the session leave configuration and
wiring in this module.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kedro.pipeline import Node
from kedro.utils import find_kedro_project

from recpipe.config import (
    ID_KINDS,
    ConfigError,
    Configuration,
    DataPaths,
    ModelInfo,
    RunConfig,
    check_known,
    split_names,
)
from recpipe.pipelines import content_kinds

log = logging.getLogger(__name__)

ALL = "all"
WHOLE = "__default__"
STAGES = ("ingest", "embed", "semantic_ids", "train", "evaluate", "report")
# no part of a run of the whole project
ON_REQUEST = (
    "ensemble", "ties", "context", "study", "tune", "geometry", "refit", "register", "recommend", "update", "add_items",
    "export",
)  # fmt: skip
# pipelines that cannot run where the protocol holds out no events
NEED_FOLDS = ("evaluate", "report", "ensemble", "ties", "context", "study", "tune", "refit", "export")
RESERVED = (ALL, WHOLE, *STAGES, *ON_REQUEST, *ID_KINDS)  # names that no model may have
RESULTS = {  # by pipeline
    "evaluate": "evaluation", "ties": "tie_sensitivity", "context": "context", "study": "study", "tune": "tuning",
}  # fmt: skip


@dataclass(frozen=True)
class Wiring:
    """Models and content that pipelines are built for."""

    dataset: str
    runs: Mapping[str, RunConfig]  # by model, in order
    kinds: tuple[str, ...] = ()  # of semantic ids to build
    vectors: tuple[str, ...] = ()  # modalities to embed
    requested: tuple[str, ...] = STAGES  # pipelines that run in the same command
    members: tuple[str, ...] = ()  # models of the ensemble
    study: str = "length"  # a name in the parameter `studies`
    content_model: str | None = None  # that fills content slots
    holds_out: bool = True  # whether the protocol holds out events
    has_split: bool = True  # whether the split on disk can be read, else tune and study make it
    kind_inputs: Mapping[str, content_kinds.KindInputs] = field(default_factory=dict)  # by kind of semantic ids

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.runs)

    @property
    def stages(self) -> tuple[str, ...]:
        """Pipelines of a whole run."""
        return STAGES if self.holds_out else tuple(name for name in STAGES if name not in NEED_FOLDS)

    @property
    def results(self) -> tuple[str, ...]:
        """Datasets that this command writes and the report reads from disk, so that the report has to wait for them."""
        names = [f"{model}_{name}" for stage, name in RESULTS.items() if stage in self.requested for model in self.runs]
        if "train" in self.requested and "evaluate" not in self.requested:
            names += [f"{model}_bundle" for model in self.runs]
        names += ["ensemble_evaluation"] if "ensemble" in self.requested else []
        names += [f"{kind}_ids_quality" for kind in self.kinds if "semantic_ids" in self.requested]
        if "embed" in self.requested:  # the quality of ids comes after the vectors that they are made of
            vectors = (f"{name}_embeddings" for name in self.vectors)
            of_ids = {inputs.embeddings for inputs in self.kind_inputs.values()}
            names += [name for name in vectors if name not in of_ids]
        return tuple(names)


def model_info(type_: str) -> ModelInfo:
    """Defaults of a model type, from its code; imports torch."""
    from recpipe.models.registry import model_info as info

    return info(type_)


def node_inputs(*datasets: str, params: Iterable[str] = ()) -> dict[str, str]:
    """Return the datasets and parameters of a node by argument of the same name."""
    return {**{name: name for name in datasets}, **{name: f"params:{name}" for name in params}}


def create_node(
    function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str], namespace: str, *, tag: bool = True
) -> Node:
    """Create a node in the namespace of a model, kind of vectors or group, by default with a tag of this name."""
    # Kedro reads the types of inputs by position, so they get the order of the signature
    inputs = {name: inputs[name] for name in inspect.signature(function).parameters if name in inputs} | inputs
    name, tags = function.__name__, namespace if tag else None
    return Node(function, inputs, outputs, name=name, namespace=namespace, tags=tags)


# Of the process, like Kedro's pipelines: in notebooks and servers another cell or thread may build them.
_latest: list[Configuration] = []
_wiring: ContextVar[Wiring | None] = ContextVar("wiring of the command", default=None)


def remember(configuration: Configuration) -> None:
    """Keep the configuration of the latest config loader, for pipelines of kedro-viz and other tools without a run."""
    _latest[:] = [configuration]
    _wiring.set(None)


@contextmanager
def use_wiring(wiring: Wiring) -> Iterator[None]:
    """Build pipelines for ``wiring`` inside the ``with`` block."""
    token = _wiring.set(wiring)
    try:
        yield
    finally:
        _wiring.reset(token)


def current() -> tuple[Configuration, Wiring | None]:
    """Return configuration and wiring to build pipelines for; without a session those of the project, and no wiring."""
    if _latest:
        return _latest[0], _wiring.get()
    from kedro.framework.project import settings

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    env = os.environ.get("KEDRO_ENV")  # as Kedro's session reads it
    configuration = Configuration.read(project / settings.CONF_SOURCE, env, model_info=model_info)
    return configuration, _wiring.get()


def wiring_of(configuration: Configuration, models: Iterable[str], requested: Iterable[str]) -> Wiring:
    """Choose what to build for ``models``. Raises ConfigError for an unknown model, and for missing item content."""
    requested = tuple(requested)
    runs = {name: configuration.run(name) for name in dict.fromkeys(models)}
    kinds, vectors = content_kinds.kinds_of_command(configuration, runs.values(), requested)
    members = split_names(configuration["ensemble"]["members"]) or tuple(runs)
    for name in members:
        check_known(name, configuration.model_names, what="model in ensemble.members")
    study = configuration["study"]
    check_known(study, configuration["studies"], what="study", hint=" (conf/base/parameters/studies.yml)")
    content_model, held_out = _content_model(configuration), holds_out(configuration)
    reads_split = not {"tune", "study"}.isdisjoint(requested)
    has_split = not reads_split or ("ingest" not in requested and _has_split(configuration))
    inputs = content_kinds.kind_inputs(configuration, kinds)
    return Wiring(
        configuration.dataset,
        runs,
        kinds,
        vectors,
        requested,
        members,
        study,
        content_model,
        held_out,
        has_split,
        inputs,
    )


def wiring_of_model(configuration: Configuration, model: str) -> Wiring:
    """Return the wiring of one model's path from the raw log to the report."""
    run = configuration.run(model)
    (kinds, vectors), held_out = content_kinds.kinds_of_model(configuration, run), holds_out(configuration)
    content_model, inputs = _content_model(configuration), content_kinds.kind_inputs(configuration, kinds)
    return Wiring(
        configuration.dataset,
        {model: run},
        kinds,
        vectors,
        content_model=content_model,
        holds_out=held_out,
        kind_inputs=inputs,
    )


def holds_out(configuration: Configuration) -> bool:
    """Return whether the protocol holds out events for validation and test."""
    return bool(configuration["protocol"]["split"] != "none")


def _has_split(configuration: Configuration) -> bool:
    """Return whether the training data on disk are of the protocol of the command, and not older than the log."""
    from recpipe.data.protocol import Protocol

    parameters = configuration.parameters()
    paths = DataPaths(**parameters["paths"])
    file, events = paths.split / "protocol.json", paths.primary / "interactions.parquet"
    if not file.is_file() or (events.is_file() and events.stat().st_mtime_ns > file.stat().st_mtime_ns):
        return False
    stored = Protocol.from_dict(json.loads(file.read_text(encoding="utf-8")))
    requested = Protocol.from_dict(parameters["protocol"])
    return not stored.data_differences(replace(requested, fingerprint=stored.fingerprint, steps=stored.steps))


def _content_model(configuration: Configuration) -> str | None:
    """The model that fills content slots; None without slots. Raises ConfigError for an unknown one."""
    slots = configuration["evaluate"]["content_slots"]
    if slots["share"] == 0:
        return None
    check_known(slots["model"], configuration.model_names, what="model in evaluate.content_slots.model")
    return str(slots["model"])


def chosen_models(configuration: Configuration, choice: str) -> list[str]:
    """Names of ``sasrec``, ``sasrec+popular`` or ``all``. Raises ConfigError with the nearest spelling.

    ``all`` leaves out models whose ``time_mode`` the protocol does not allow, and those whose vectors or ids the
    parameter ``modality`` rules out.
    """
    all_models = configuration.model_names
    if choice != ALL:
        names = list(split_names(choice)) or [str(choice)]
        for name in names:
            check_known(name, all_models, what="model", hint=f", or several as a+b, or {ALL}")
        return names
    from recpipe.data.protocol import TIME_CHOICES

    kinds, time = content_kinds.buildable_kinds(configuration), configuration["protocol"]["time"]
    # an unknown time is an error when the protocol is checked
    forbidden = TIME_CHOICES[TIME_CHOICES.index(time) + 1 :] if time in TIME_CHOICES else ()
    runs = {name: configuration.run(name) for name in all_models}
    allowed = [name for name, run in runs.items() if run.settings.get("time_mode") not in forbidden]
    runnable = [name for name in allowed if content_kinds.has_inputs(runs[name], kinds)]
    if excluded := [name for name in all_models if name not in runnable]:
        log.info("left out of all, for want of vectors or of time: %s", ", ".join(excluded))
    return runnable


def command_wiring(configuration: Configuration, pipelines: Iterable[str], filters: Iterable[str] = ()) -> Wiring:
    """Return the wiring of ``kedro run``. Raises ConfigError for unknown models.

    Models are those of the parameter ``model``, of pipelines called like a model, and of ``filters``, the values of
    Kedro's node filters; in a run of the whole project the baselines too.
    """
    pipelines = list(pipelines)
    if reserved := [name for name in RESERVED if name in configuration.model_names]:
        raise ConfigError(f"no model can be called {reserved[0]!r}: rename conf/*/parameters/models/{reserved[0]}.yml")
    models = chosen_models(configuration, configuration["model"])
    whole = not pipelines or WHOLE in pipelines
    if whole:
        baselines = configuration["baselines"] or ()
        for choice in [baselines] if isinstance(baselines, str) else baselines:
            models += chosen_models(configuration, choice)
    all_models = configuration.model_names
    # nodes, groups, tags and datasets of a model: `svd.train_model`, `svd`, `svd_bundle`
    datasets = {
        f"{model}_{result}": model for model in all_models for result in ("bundle", "production", *RESULTS.values())
    }
    selected = {*pipelines, *(datasets.get(word) for word in filters), *(word.partition(".")[0] for word in filters)}
    models += [name for name in all_models if name in selected]
    model_pipelines = [name for name in pipelines if name in all_models]
    if model_pipelines and pipelines == model_pipelines and not configuration.is_overridden("model"):
        models = model_pipelines
    others = [name for name in pipelines if name not in (WHOLE, *model_pipelines)]
    _check_folds(configuration, others)
    stages: tuple[str, ...] = STAGES if whole or model_pipelines else ()
    if not holds_out(configuration):
        stages = tuple(name for name in stages if name not in NEED_FOLDS)
    wiring = wiring_of(configuration, models, dict.fromkeys([*stages, *others]))
    _check_used(configuration, wiring)
    return wiring


def _check_folds(configuration: Configuration, pipelines: Iterable[str]) -> None:
    """Raise ConfigError for pipelines that need held-out events where the protocol holds none out."""
    unable = [] if holds_out(configuration) else [name for name in pipelines if name in NEED_FOLDS]
    if unable:
        raise ConfigError(
            f"protocol.split is none, so that nothing is held out to measure on, and {', '.join(unable)} cannot run: "
            "leave it out, since train uses all events already, or choose another split, such as "
            "--params protocol.split=leave_one_out"
        )


def _check_used(configuration: Configuration, wiring: Wiring) -> None:
    """Raise ConfigError for overrides of the command line that would change nothing for its models and data set."""
    overrides, models = configuration.overrides, ", ".join(wiring.runs)
    for block, chosen in (("models", list(wiring.runs)), ("datasets", [wiring.dataset])):
        for name in overrides.get(block) or {}:
            if name not in chosen:
                raise ConfigError(
                    f"{block}.{name} (command line) changes nothing: this command has the {block} {', '.join(chosen)}; "
                    f"add {block[:-1]}={name}"
                )
    infos = [model_info(run.type) for run in wiring.runs.values()] if overrides.keys() & {"side", "train"} else []
    if "side" in overrides and not any(info.takes_side for info in infos):
        raise ConfigError(f"side (command line) changes nothing: no side information is read by {models}")
    train = overrides.get("train", {})
    reads_all = isinstance(train, Mapping) and set(train) <= {"weights", "train_on_validation"}  # of every model
    if "train" in overrides and not reads_all and not any(info.by_gradient for info in infos):
        raise ConfigError(f"train (command line) changes nothing: no gradient descent trains {models}")
