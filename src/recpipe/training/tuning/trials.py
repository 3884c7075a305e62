"""One trial: a training with the sampled settings, its epochs reported, ended by the pruner, an error or the clock."""

from __future__ import annotations

import gc
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from recpipe.training.bundle import Bundle
from recpipe.training.job import TrainingJob
from recpipe.training.module import NonFiniteLossError
from recpipe.training.settings import check_model
from recpipe.training.tuning.space import SearchSpace
from recpipe.training.tuning.study import EPOCH, FIRST, RETRY_OF
from recpipe.training.variants import with_overrides

QUIET = (
    "gradient",
    "module",
    "fit",
    "job",
    "callbacks",
)  # modules of recpipe.training that log lines about each training
COMPLETE, PRUNED, RELEASED = "complete", "pruned", "released"


class TrialEndedError(Exception):
    """End of a trial's training between two epochs, by the pruner or the clock."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trial: its values by objective, and what the study stores of it.

    ``state``: complete, pruned or released, to be continued by the next command.
    """

    state: str
    values: tuple[float, ...] = ()
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: Mapping[str, Any] = field(default_factory=dict)


def run_trial(
    trial: Trial,
    study: Study,
    job: TrainingJob,
    space: SearchSpace,
    *,
    folder: Path,
    ends: float = math.inf,
    objectives: str = "metric",
) -> Outcome:
    """Train with the settings of ``trial``, resuming the training that it continues.

    folder: parent of the folder of checkpoints. ends: time of ``time.monotonic`` at which training is broken off after
    the epoch. Settings that the model refuses together, a loss or metric that is not finite, and too little memory
    prune the trial; other errors are raised.
    """
    settings = space.suggest(trial)
    if (twin := _twin(trial, study)) is not None:  # small spaces have few different trials
        return Outcome(COMPLETE, tuple(twin.values), f"same settings as trial {twin.number}", settings)
    config = with_overrides(job.config, {**settings, "train.loggers": []})
    number = trial.user_attrs.get(FIRST, trial.number)
    try:
        check_model(config)
    except ValueError as error:
        return Outcome(PRUNED, reason=f"refused: {error}", settings=settings)
    reporter = _Reporter(trial, study, replace(job, config=config), ends, is_pruned=objectives == "metric")
    reason = ""
    try:
        with quiet_training():
            bundle = reporter.job.train(
                folder=folder / f"trial_{number}", on_epoch=reporter.report, keep_checkpoints=True
            )
            values, cost = _measure(bundle, reporter.job, objectives)
        state = COMPLETE if all(map(math.isfinite, values)) else PRUNED
        return Outcome(state, values, "" if state == COMPLETE else "the metric is not finite", settings, cost)
    except TrialEndedError as error:
        return Outcome(str(error), (), reporter.reason, settings, reporter.cost)
    except NonFiniteLossError as error:
        reason = str(error).partition(";")[0]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        reason = f"out of memory: {' '.join(str(error).split())[:200]}"
    free_memory()  # outside of the except clause, which holds the frames of the error and with them the tensors
    return Outcome(PRUNED, (), reason, settings, reporter.cost)


class _Reporter:
    """Listener to the epochs of a trial, which reports their metric and ends the training."""

    def __init__(self, trial: Trial, study: Study, job: TrainingJob, ends: float, *, is_pruned: bool) -> None:
        self.job, self.reason = job, ""
        self.cost: dict[str, Any] = {}
        self._trial, self._study, self._ends, self._is_pruned = trial, study, ends, is_pruned
        self._metric = f"valid_{job.settings.metric}"
        self._earlier = _earlier_values(trial, study)

    def report(self, row: Mapping[str, Any]) -> None:
        """Report the metric of an epoch. Raises TrialEndedError where the trial ends with it."""
        epoch, value = row["epoch"], row.get(self._metric)
        self.cost = {"epochs": epoch, "train_seconds": row["seconds"]}
        if self._is_pruned:  # Optuna takes no reports of trials with two objectives
            for step in sorted(step for step in self._earlier if step < epoch):
                self._trial.report(self._earlier[step], step)  # of the checkpoint that training resumed from
            self._earlier.clear()
            if value is not None:
                self._trial.report(value, epoch)
        else:
            self._trial.set_user_attr(EPOCH, epoch)
        if epoch >= self.job.settings.max_epochs:
            return
        if self._is_pruned and value is not None and self._trial.should_prune():
            self.reason = f"pruned in epoch {epoch}"
            raise TrialEndedError(PRUNED)
        if time.monotonic() > self._ends:
            self.reason = f"time is up in epoch {epoch}"
            raise TrialEndedError(RELEASED)


def _twin(trial: Trial, study: Study) -> FrozenTrial | None:
    """Return a completed trial with the same parameters, and so with the same result."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next((each for each in trials if each.params == trial.params), None)


def _earlier_values(trial: Trial, study: Study) -> dict[int, float]:
    """Return the reported epochs of the trial that this one continues."""
    number = trial.user_attrs.get(RETRY_OF)
    if number is None:
        return {}
    earlier = next(each for each in study.get_trials(deepcopy=False) if each.number == number)
    return dict(earlier.intermediate_values)


def _measure(bundle: Bundle, job: TrainingJob, objectives: str) -> tuple[tuple[float, ...], dict[str, Any]]:
    """Return the objectives of a trained model, and its cost: the metric as recorded, or of one more validation."""
    metric, cost = f"valid_{job.settings.metric}", dict(bundle.training["cost"])
    value = cost.get(f"tuned_{metric}", cost.get(f"best_{metric}"))
    seconds = None
    if value is None or objectives != "metric":
        validate = job.validation()
        assert validate is not None
        start = time.perf_counter()
        measured = validate(bundle.model)[metric]
        seconds = time.perf_counter() - start
        value = measured if value is None else value
    keys = ("train_seconds", "epochs", "best_epoch", "parameters", "peak_memory_mib")
    measured_cost = {key: cost[key] for key in keys if key in cost}
    if seconds is not None:
        measured_cost["inference_seconds"] = seconds
    values = (value,) if objectives == "metric" or seconds is None else (value, seconds)
    return tuple(map(float, values)), measured_cost


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, of Python, of a CUDA device or of torch on a CPU."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    text = str(error).lower()
    phrases = ("can't allocate memory", "not enough memory", "out of memory")  # the last of another rank
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)


def free_memory() -> None:
    """Give back the memory of a training that failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def quiet_training() -> Iterator[None]:
    """Log no lines on the epochs of trials, which have one each; warnings stay."""
    loggers = [logging.getLogger(f"recpipe.training.{name}") for name in QUIET]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
