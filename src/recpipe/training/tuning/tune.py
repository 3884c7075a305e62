"""Search for the best settings of a model on the validation fold."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.study import Study
from optuna.trial import Trial, TrialState

from recpipe.config import RunConfig
from recpipe.config.schema import TuneConfig
from recpipe.progress import duration, progress
from recpipe.training.distributed import external_ranks
from recpipe.training.job import TrainingJob
from recpipe.training.settings import check_model
from recpipe.training.tuning.results import OF_THE_MACHINE, study_result, trial_row
from recpipe.training.tuning.space import SearchSpace, search_space
from recpipe.training.tuning.storage import TuningError, open_storage
from recpipe.training.tuning.study import (
    FIRST,
    REASON,
    finished,
    open_study,
    release,
    release_dead,
    set_attribute,
    signs_of_life,
)
from recpipe.training.tuning.trials import COMPLETE, RELEASED, Outcome, run_trial

log = logging.getLogger(__name__)

LONG = 30.0  # seconds of a trial, from which on an estimate is logged
POLL_SECONDS = 1.0  # between looks at the trials of other processes
OnTrial = Callable[[Mapping[str, Any]], None]  # of a finished trial, as ``results.trial_row``


def tune(job: TrainingJob, config: TuneConfig, folder: Path, *, on_trial: OnTrial | None = None) -> dict[str, Any]:
    """Search for the settings of ``job`` with the best validation metric; return the study as JSON.

    The first trial is the configuration as it stands. The same call continues a study, and several processes may work
    on one: each takes trials until ``config.trials`` are finished (completed or pruned) or its ``config.minutes`` are
    over. ``folder``: the journal, where ``config.storage`` names no other storage, and checkpoints of unfinished
    trials. ``on_trial`` is called for each trial that this process finishes. The result is that of ``study_result``
    with the model, its data and the seed.

    Raises ConfigError for a search space that the model does not have, TuningError for a storage that cannot be
    reached, a study of another configuration, and where no trial was completed, KeyboardInterrupt after Ctrl-C; other
    errors of a training as a TuningError with the settings of the trial.
    """
    if not job.data.protocol.holds_out:
        raise TuningError("the protocol holds out no events, so that nothing is there to compare trials on")
    if external_ranks().size > 1:
        raise TuningError("torchrun and SLURM start one process per rank: start tuning without, with train.devices=<n>")
    space = check(job.config, config)
    storage = open_storage(config, folder)
    name = study_name(job, config)
    study = open_study(storage, name, space, _about(job), config)
    search = _Search(study, job, config, space, folder / f"trials_{sha256(name.encode()).hexdigest()[:8]}", on_trial)
    search.run()
    result = study_result(study, space, metric=job.settings.metric, objectives=config.objectives)
    if result["best"] is None:
        raise TuningError(_nothing_completed(result, config))
    about = {"model": job.config.name, "dataset": job.config.dataset, "seed": job.config.seed}
    return {**about, "protocol": job.data.protocol.id, **result}


def check(run: RunConfig, config: TuneConfig) -> SearchSpace:
    """Return the search space. Raises ConfigError or TuningError where there is nothing to search or to validate."""
    name = run.name
    if config.trials is None and config.minutes is None:
        raise TuningError("tune.trials and tune.minutes are both null, so that tuning would not end: set one of them")
    if run.train.get("train_on_validation"):
        raise TuningError(f"{name} is trained on the validation events too, so that nothing is left to compare trials")
    check_model(run)
    space = search_space(run, config.search_space)
    if not len(space):
        raise TuningError(
            f"{name} has nothing to tune: its search_space is empty. Add ranges to its block in the conf, as "
            "search_space: {<setting>: {low: 1, high: 10}}"
        )
    return space


def study_name(job: TrainingJob, config: TuneConfig) -> str:
    """Return the name of the study, by default of data set, model, seed and protocol."""
    run = job.config
    return config.study or f"{run.dataset}/{run.name}/seed_{run.seed}/{job.data.protocol.id}"


def _about(job: TrainingJob) -> dict[str, Any]:
    """Everything besides the search space that the values of trials depend on."""
    identity = job.identity()
    identity["train"] = {key: value for key, value in identity["train"].items() if key not in OF_THE_MACHINE}
    return identity


@dataclass
class _Search:
    """Trials of this process, one after the other."""

    study: Study
    job: TrainingJob
    config: TuneConfig
    space: SearchSpace
    folder: Path
    on_trial: OnTrial | None

    def run(self) -> None:
        """Take trials until the study is finished or time is up."""
        config, waits = self.config, False
        ends = math.inf if config.minutes is None else time.monotonic() + 60 * config.minutes
        total = config.trials
        with progress(total, f"tune {self.job.config.name}", unit="trials") as bar:
            bar.skip(min(len(finished(self.study.get_trials(deepcopy=False))), total or 0))
            while time.monotonic() < ends:
                release_dead(self.study, stale_seconds=60 * config.stale_minutes)
                trials = self.study.get_trials(deepcopy=False)
                done, running = len(finished(trials)), sum(each.state == TrialState.RUNNING for each in trials)
                if total is not None and done >= total:
                    break
                if total is not None and done + running >= total:
                    if not waits:
                        log.info("%s trials still run in other processes, and are waited for", running)
                    waits = True
                    time.sleep(POLL_SECONDS)
                    continue
                begun = time.monotonic()
                if self._take_trial(ends):
                    bar.add()
                    if total is not None and not done:
                        self._log_estimate(time.monotonic() - begun, total)
        self._clean_folder()

    def _take_trial(self, ends: float) -> bool:
        """Run the next trial; return whether it is finished, which it is not where time was up."""
        trial = self.study.ask()
        with signs_of_life(self.study, trial):
            try:
                outcome = run_trial(
                    trial,
                    self.study,
                    self.job,
                    self.space,
                    folder=self.folder,
                    ends=ends,
                    objectives=self.config.objectives,
                )
            except KeyboardInterrupt:
                self._release(trial, "interrupted")
                raise
            except UpdateFinishedTrialError:
                return self._was_taken_over(trial)
            except Exception as error:
                self._fail(trial, error)
                raise TuningError(
                    f"trial {trial.number} of the study {self.study.study_name!r} failed, with "
                    f"{shown(self.space.decode(trial.params))}: {type(error).__name__}: {error}"
                ) from error
        if outcome.state == RELEASED:
            log.info("trial %s: %s; the same command continues it", trial.number, outcome.reason)
            self._release(trial, outcome.reason)
            return False
        if not self._tell(trial, outcome):
            return False
        shutil.rmtree(self._trial_folder(trial), ignore_errors=True)
        return True

    def _tell(self, trial: Trial, outcome: Outcome) -> bool:
        """Store the outcome, log it, and pass it to ``on_trial``; return False if another process has the trial."""
        is_complete = outcome.state == COMPLETE
        state = TrialState.COMPLETE if is_complete else TrialState.PRUNED
        try:
            for key, value in {**outcome.cost, **({REASON: outcome.reason} if outcome.reason else {})}.items():
                trial.set_user_attr(key, value)
            self.study.tell(trial, list(outcome.values) if is_complete else None, state)
        except (UpdateFinishedTrialError, ValueError):  # Optuna's errors for a trial that is finished already
            return self._was_taken_over(trial)
        trials = self.study.get_trials(deepcopy=False)
        row = trial_row(next(each for each in trials if each.number == trial.number), self.space)
        self._log(row, len(finished(trials)))
        if self.on_trial is not None:
            self.on_trial(row)
        return True

    def _was_taken_over(self, trial: Trial) -> bool:
        """Warn of a trial that another process continues, in the same folder; return that it is not finished here."""
        log.warning("trial %s was taken over by another process, as its own was thought dead", trial.number)
        return False

    def _log(self, row: Mapping[str, Any], count: int) -> None:
        metric, total = self.job.settings.metric, self.config.trials
        completed = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = max(completed, key=lambda each: each.values[0], default=None)
        value = "no value" if row["value"] is None else f"{metric} {row['value']:.4f}"
        best_text = "" if best is None else f", best {best.values[0]:.4f} of trial {best.number}"
        of_total = "" if total is None else f" of {total}"
        end = "" if row["state"] == "complete" else f", {row['reason'] or 'pruned'}"
        note = " (as configured)" if row["configured"] else ""
        log.info(
            "trial %s%s, %s%s: %s%s, %s%s; %s",
            *(row["number"], note, count, of_total, value, best_text, duration(row["seconds"] or 0.0), end),
            shown(row["settings"]),
        )

    def _log_estimate(self, seconds: float, total: int) -> None:
        """Say after the first trial how long all of them may take."""
        if total > 1 and seconds > LONG:
            log.info(
                "the first trial took %s: %s trials take about %s, less what is pruned; tune.minutes sets a limit",
                *(duration(seconds), total, duration(seconds * total)),
            )

    def _release(self, trial: Trial, reason: str) -> None:
        """Let another trial continue this one."""
        frozen = next(each for each in self.study.get_trials(deepcopy=False) if each.number == trial.number)
        release(self.study, frozen, reason, counts=False)

    def _fail(self, trial: Trial, error: Exception) -> None:
        """Mark a trial as failed, if the storage still answers."""
        try:
            set_attribute(self.study, trial.number, REASON, f"{type(error).__name__}: {error}"[:500])
            self.study.tell(trial, state=TrialState.FAIL)
        except Exception as other:  # of any storage; the first error says more
            log.warning("trial %s cannot be marked as failed: %s", trial.number, type(other).__name__)

    def _trial_folder(self, trial: Trial) -> Path:
        return self.folder / f"trial_{trial.user_attrs.get(FIRST, trial.number)}"

    def _clean_folder(self) -> None:
        """Delete checkpoints of trials that are over; a process may have died between the two."""
        numbers = {each.user_attrs.get(FIRST, each.number) for each in finished(self.study.get_trials(deepcopy=False))}
        for path in self.folder.glob("trial_*"):
            match = re.fullmatch(r"trial_(\d+)", path.name)
            if match is not None and int(match[1]) in numbers:
                shutil.rmtree(path, ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def shown(settings: Mapping[str, Any]) -> str:
    """Format settings on one line, such as ``dim 64, train.optimiser.learning_rate 0.00123``."""
    return ", ".join(
        f"{name} {f'{value:.4g}' if isinstance(value, float) else value}" for name, value in settings.items()
    )


def _nothing_completed(result: Mapping[str, Any], config: TuneConfig) -> str:
    reasons = list(dict.fromkeys(row["reason"] for row in result["trials"] if row["reason"]))
    if reasons:
        return f"no trial was completed: {'; '.join(reasons[:3])}. Narrow the search space, or change what all share"
    return (
        f"no trial was finished within tune.minutes={config.minutes:g}: the same command continues, with more minutes "
        "or as many again"
    )
