"""Optuna study of a model: created once, checked against changes, sampled by TPE; trials of dead processes go on."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from recpipe.config.schema import TuneConfig
from recpipe.data.atomic import process_start
from recpipe.training.tuning.space import SearchSpace
from recpipe.training.tuning.storage import TuningError

log = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
ABOUT, CONFIGURED = "about", "configured"  # attributes of the study, and of the trial of the configuration as it stands
PROCESS, HEARTBEAT, RETRY_OF, FIRST, DEATHS, REASON = "process", "heartbeat", "retry_of", "first", "deaths", "reason"
EPOCH = "epoch"  # of a trial that reports no metrics
HEARTBEAT_SECONDS = 30.0
START_SECONDS = 60.0  # in which a process that has taken a trial writes its name on it
MAX_DEATHS = 5  # processes that may die of a trial, one after the other, without finishing another epoch


class SeededSampler(BaseSampler):
    """TPE over the joint space, with random numbers of its own for each trial.

    Processes that work on one study, or continue it, would otherwise draw the same random trials.
    """

    def __init__(self, space: SearchSpace, seed: int, startup_trials: int) -> None:
        self._distributions = {name: each for name, each in space.distributions().items() if not each.single()}
        self._seed, self._startup_trials = seed, startup_trials

    def _sampler(self, trial: FrozenTrial, name: str = "") -> TPESampler:
        digest = hashlib.sha256(f"{self._seed} {trial.number} {name}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        return TPESampler(n_startup_trials=self._startup_trials, multivariate=True, seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the distributions of all settings."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw all settings of a trial together, by a sampler with the seed of the trial."""
        return self._sampler(trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one setting of a trial, by a sampler with the seed of trial and setting."""
        return self._sampler(trial, param_name).sample_independent(study, trial, param_name, param_distribution)


def pruner(config: TuneConfig) -> BasePruner:
    """Build the pruner of ``config``; with two objectives Optuna prunes nothing."""
    settings = config.pruner
    if settings.name == "none" or config.objectives != "metric":
        return NopPruner()
    if settings.name == "hyperband":
        return HyperbandPruner(min_resource=max(settings.warmup_epochs, 1))
    return MedianPruner(n_startup_trials=settings.startup_trials, n_warmup_steps=settings.warmup_epochs)


def open_study(
    storage: BaseStorage, name: str, space: SearchSpace, about: Mapping[str, Any], config: TuneConfig
) -> Study:
    """Create a study with the configuration as its first trial, or load it.

    Raises TuningError where space, objectives, data or other settings have changed since.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    about = json.loads(json.dumps({"search_space": space.description(), "objectives": config.objectives, **about}))
    maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
    directions = [maximize, minimize] if config.objectives == "metric+seconds" else [maximize]
    options: dict[str, Any] = {
        "study_name": name,
        "storage": storage,
        "sampler": SeededSampler(space, config.seed, config.startup_trials),
        "pruner": pruner(config),
    }
    try:
        study = optuna.create_study(directions=directions, **options)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(**options)
        _wait_for_creator(study)
    else:
        study.set_user_attr(ABOUT, about)
    if (saved := study.user_attrs.get(ABOUT)) is None:  # the process that created it died
        study.set_user_attr(ABOUT, about)
    elif saved != about:
        raise TuningError(
            f"the study {name!r} was begun with another configuration: {'; '.join(_changes(saved, about))}. Its trials "
            "cannot be compared with new ones: undo the change, or begin another study, as --params tune.study=<name>"
        )
    if not any(trial.user_attrs.get(CONFIGURED) for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(space.first_params(), user_attrs={CONFIGURED: True})
    return study


def _wait_for_creator(study: Study) -> None:
    """Wait for the process that has just created the study to add its first trial; it may have died."""
    ends = time.monotonic() + 3
    while not study.get_trials(deepcopy=False) and time.monotonic() < ends:
        time.sleep(0.1)


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """Describe the leaves in which two nested blocks differ."""
    changes = []
    for key in dict.fromkeys([*old, *new]):
        name, before, after = f"{path}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += _changes(before, after, f"{name}.")
        elif before != after or (key in old) != (key in new):
            texts = [json.dumps(each[key]) if key in each else "absent" for each in (old, new)]
            changes.append(f"{name} was {texts[0]} and is {texts[1]}")
    return changes


def process_name() -> list[Any]:
    """Return machine, id and start of this process, by which others see whether it lives."""
    return [platform.node(), os.getpid(), process_start(os.getpid())]


def is_dead(trial: FrozenTrial, *, stale_seconds: float) -> bool:
    """Return whether the process of a running trial has died.

    Of another machine that is a guess, after ``stale_seconds`` without a sign of life.
    """
    process = trial.user_attrs.get(PROCESS)
    if process is None:
        started = trial.datetime_start
        return started is not None and (datetime.now() - started).total_seconds() > START_SECONDS
    host, pid, start = process
    if host == platform.node():
        return bool(process_start(pid) != start)
    return time.time() - float(trial.user_attrs.get(HEARTBEAT, 0)) > stale_seconds


def finished(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that count, completed or pruned."""
    return [trial for trial in trials if trial.state in FINISHED]


def release_dead(study: Study, *, stale_seconds: float) -> None:
    """Set the running trials of dead processes to failed, and enqueue their parameters again."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if is_dead(trial, stale_seconds=stale_seconds) and release(study, trial, "its process died"):
            log.info("trial %s goes on: its process died in epoch %s", trial.number, trial.last_step or 1)
    trials = study.get_trials(deepcopy=False)
    if not any(trial.user_attrs.get(CONFIGURED) and trial.state != TrialState.FAIL for trial in trials):
        failed = [trial for trial in trials if trial.user_attrs.get(CONFIGURED)]
        for trial in failed[-1:]:  # by an error that is mended now, or its process died while it released it
            study.enqueue_trial(fixed_params(trial), user_attrs={CONFIGURED: True})


def release(study: Study, trial: FrozenTrial, reason: str, *, counts: bool = True) -> bool:
    """Set a running trial that another one continues to failed; return False if another process was faster.

    A trial of which ``MAX_DEATHS`` processes died in the same epoch is pruned instead. ``counts``: it is such a death.
    """
    attributes = dict(trial.user_attrs)
    progressed = bool(trial.intermediate_values) or EPOCH in attributes
    deaths = (0 if progressed else int(attributes.get(DEATHS, 0))) + int(counts)
    state = TrialState.PRUNED if deaths >= MAX_DEATHS else TrialState.FAIL
    if state == TrialState.PRUNED:
        reason = f"{deaths} processes died of it"
    try:
        set_attribute(study, trial.number, REASON, reason)
        study.tell(trial.number, state=state)
    except (ValueError, RuntimeError):  # finished by another process
        return False
    if state == TrialState.PRUNED:
        log.warning("trial %s is pruned: %s", trial.number, reason)
        return True
    mark = {key: attributes[key] for key in (CONFIGURED,) if key in attributes}
    first = attributes.get(FIRST, trial.number)
    links = {RETRY_OF: trial.number, FIRST: first, DEATHS: deaths}
    study.enqueue_trial(fixed_params(trial), user_attrs={**mark, **links})
    return True


def fixed_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial, those that it was enqueued with included."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def set_attribute(study: Study, number: int, key: str, value: Any) -> None:
    """Set a user attribute of a running trial, also of another process."""
    storage = study._storage
    study_id = storage.get_study_id_from_name(study.study_name)
    storage.set_trial_user_attr(storage.get_trial_id_from_study_id_trial_number(study_id, number), key, value)


@contextmanager
def signs_of_life(study: Study, trial: Trial, every: float = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Write the process on a trial, and the time at intervals, for other machines."""
    trial.set_user_attr(HEARTBEAT, time.time())
    trial.set_user_attr(PROCESS, process_name())
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every):
            try:
                set_attribute(study, trial.number, HEARTBEAT, time.time())
            except optuna.exceptions.UpdateFinishedTrialError:  # another process took it over
                return
            except Exception as error:  # of any storage; the trial itself says more
                log.warning("trial %s cannot give a sign of life: %s", trial.number, type(error).__name__)

    thread = threading.Thread(target=beat, name="heartbeat of a trial", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
