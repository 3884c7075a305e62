"""What the pipelines of one command are made for: its models, the semantic ids and vectors they need, its results.

Kedro builds pipelines by calling ``register_pipelines`` without arguments. So the config loader leaves here what it read,
and the session what its command runs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from recpipe.config import (
    ID_KINDS,
    ConfigError,
    Configuration,
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
ON_REQUEST = ("ensemble", "ties", "context", "study", "geometry")  # no part of a run of the whole project
RESERVED = (ALL, "ensemble", "report", WHOLE, *STAGES, *ON_REQUEST, *ID_KINDS)  # no model may be called so


@dataclass(frozen=True)
class Wiring:
    """What pipelines are built for.

    ``runs``: the models, in order. ``kinds``: the semantic ids that are made. ``vectors``: the modalities that are
    embedded. ``requested``: names of the pipelines that run together. ``members`` of the ensemble; ``study``: the one of
    ``studies``.
    """

    dataset: str
    runs: Mapping[str, RunConfig]
    kinds: tuple[str, ...] = ()
    vectors: tuple[str, ...] = ()
    requested: tuple[str, ...] = STAGES
    members: tuple[str, ...] = ()
    study: str = "length"

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.runs)

    @property
    def results(self) -> tuple[str, ...]:
        """Datasets that this command writes and the report reads from disk: it comes after them."""
        by_model = {
            "evaluate": "evaluation",
            "ties": "tie_sensitivity",
            "context": "context",
            "study": "study",
        }
        found = [
            f"{model}_{name}"
            for stage, name in by_model.items()
            if stage in self.requested
            for model in self.runs
        ]
        if "train" in self.requested and "evaluate" not in self.requested:
            found += [f"{model}_bundle" for model in self.runs]
        found += ["ensemble_evaluation"] if "ensemble" in self.requested else []
        found += [f"{kind}_ids_quality" for kind in self.kinds if "semantic_ids" in self.requested]
        if "embed" in self.requested and not self.kinds:  # the quality of ids comes after the vectors
            found += [f"{name}_embeddings" for name in self.vectors]
        return tuple(found)


def model_info(type_: str) -> ModelInfo:
    """What the code of a model type says; imports torch."""
    from recpipe.models.registry import model_info as info

    return info(type_)


@dataclass
class _State:
    configuration: Configuration | None = None
    wiring: Wiring | None = None


_state: ContextVar[_State] = ContextVar("what pipelines are built for", default=_State())


def remember(configuration: Configuration) -> None:
    """What the config loader that was made last has read: kedro-viz draws the pipelines of its environment."""
    _state.set(_State(configuration))


@contextmanager
def wired(wiring: Wiring) -> Iterator[None]:
    """Pipelines that are built inside are those of ``wiring``."""
    before = _state.get()
    token = _state.set(_State(before.configuration, wiring))
    try:
        yield
    finally:
        _state.reset(token)


def current() -> tuple[Configuration, Wiring | None]:
    """What to build pipelines for: without a session, the project's configuration alone."""
    state = _state.get()
    if state.configuration is not None:
        return state.configuration, state.wiring
    from kedro.framework.project import settings
    from kedro.utils import find_kedro_project

    project = find_kedro_project(Path.cwd()) or Path.cwd()
    return Configuration.read(project / settings.CONF_SOURCE), None


def wiring_of(configuration: Configuration, models: Iterable[str], requested: Iterable[str]) -> Wiring:
    """The wiring of a command. Raises ConfigError for a model that is unknown, or that needs what the data set lacks."""
    requested = tuple(requested)
    runs = {name: configuration.run(name) for name in dict.fromkeys(models)}
    kinds, vectors = content_kinds.of_command(configuration, runs.values(), requested)
    members = split_names(configuration["ensemble"]["members"]) or tuple(runs)
    study = configuration["study"]
    check_known(study, configuration["studies"], what="study", also=" (conf/base/parameters/studies.yml)")
    return Wiring(configuration.dataset, runs, kinds, vectors, requested, members, study)


def wiring_of_model(configuration: Configuration, model: str) -> Wiring:
    """The whole path of one model, from the raw log to the report, with what it needs and nothing else."""
    run = configuration.run(model)
    return Wiring(configuration.dataset, {model: run}, *content_kinds.of_model(run))


def chosen_models(configuration: Configuration, choice: str) -> list[str]:
    """``sasrec``, ``sasrec+popular`` or ``all`` as names. Raises ConfigError with the nearest spelling.

    ``all`` leaves out models that use more of time than the protocol allows, and those whose vectors or
    ids no command with this ``modality`` makes.
    """
    known = configuration.model_names
    if choice != ALL:
        names = list(split_names(choice)) or [str(choice)]
        for name in names:
            check_known(name, known, what="model", also=f", or several as a+b, or {ALL}")
        return names
    made = content_kinds.described(configuration)
    able = [
        name
        for name in known
        if allowed_by_time(configuration, name) and content_kinds.satisfied(configuration.run(name), made)
    ]
    if left_out := [name for name in known if name not in able]:
        log.info("left out of all, for want of vectors or of time: %s", ", ".join(left_out))
    return able


def allowed_by_time(configuration: Configuration, model: str) -> bool:
    """Whether the protocol lets the model use what its ``time_mode`` uses of time."""
    from recpipe.data.protocol import TIMES

    time = configuration["protocol"]["time"]
    if time not in TIMES:  # refused by name when the protocol is checked
        return True
    return configuration.run(model).settings.get("time_mode") not in TIMES[TIMES.index(time) + 1 :]


def command_wiring(
    configuration: Configuration, pipelines: Iterable[str], named: Iterable[str] = ()
) -> Wiring:
    """The wiring of ``kedro run``: models of the parameter ``model``, of pipelines that are models, and of nodes that
    filters name; in a run of the whole project the baselines too.
    """
    pipelines = list(pipelines)
    if reserved := [name for name in RESERVED if name in configuration.model_names]:
        raise ConfigError(
            f"no model can be called {reserved[0]!r}: rename conf/*/parameters/models/{reserved[0]}.yml"
        )
    models = chosen_models(configuration, configuration["model"])
    whole = not pipelines or WHOLE in pipelines
    if whole:
        models += [name for each in configuration["baselines"] for name in chosen_models(configuration, each)]
    known = configuration.model_names
    models += [
        name for name in known if name in pipelines or any(word.split(".")[0] == name for word in named)
    ]
    own = [name for name in pipelines if name in known]
    if own and len(own) == len(pipelines) and not configuration.is_overridden("model"):
        models = own
    requested = [
        *(STAGES if whole or own else ()),
        *(name for name in pipelines if name not in (WHOLE, *own)),
    ]
    return wiring_of(configuration, models, dict.fromkeys(requested))
