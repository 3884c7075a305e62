"""Studies: the best trial is found, kills lose nothing, and what goes wrong is said."""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch
from optuna.trial import TrialState
from tests.conftest import PROJECT
from tests.training.tuning.jobs import SPACE, job, run_config, tune_config

from recpipe.config import ConfigError
from recpipe.data.atomic import process_start
from recpipe.training import fit
from recpipe.training.module import NonFiniteLossError
from recpipe.training.tuning import trials, tune
from recpipe.training.tuning.storage import TuningError, open_storage
from recpipe.training.tuning.study import (
    HEARTBEAT,
    MAX_DEATHS,
    PROCESS,
    RETRY_OF,
    open_study,
    release_dead,
    signs_of_life,
)
from recpipe.training.variants import with_overrides

KNN = {"neighbours": {"low": 1, "high": 29}, "shrinkage": {"low": 0.0, "high": 50.0}}


def study_in(folder: Path, config=None, **changes) -> optuna.Study:
    """The stored study of `job(folder)`."""
    small, settings = job(folder, config), tune_config(**changes)
    space = tune.check(small.config, settings)
    about = tune._about(small)
    return open_study(open_storage(settings, folder), tune.study_name(small, settings), space, about, settings)


def counted(monkeypatch, error: BaseException | None = None, *, at: int = 0) -> list[str]:
    """Names of the folders of all trainings; the one with index ``at`` raises ``error`` instead, once."""
    folders, train = [], fit.train

    def wrapped(*args, **options):
        folders.append(options["folder"].name)
        if error is not None and len(folders) == at + 1:
            raise error
        return train(*args, **options)

    monkeypatch.setattr(fit, "train", wrapped)
    return folders


def test_the_first_trial_is_the_configuration_and_every_value_is_that_of_its_training(tmp_path):
    """The oracle is ``TrainingJob.train`` with the settings of a trial in the conf."""
    small = job(tmp_path)
    result = tune.tune(small, tune_config(trials=3), tmp_path)
    first, *_, last = result["trials"]
    assert first["configured"] and not last["configured"]
    assert first["settings"] == {"dim": 16, "dropout": 0.1, "train.optimiser.learning_rate": 0.01}
    for row in (first, last):
        config = with_overrides(small.config, row["settings"])
        bundle = replace(small, config=config).train(folder=tmp_path / "alone")
        assert row["value"] == bundle.training["cost"]["best_valid_ndcg@10"]
        assert row["curve"] == [[each["epoch"], each["valid_ndcg@10"]] for each in bundle.curve]
    assert result["configured"] == first["value"]
    best = max(result["trials"], key=lambda row: row["value"])
    assert result["best"] == best["number"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "journal.log"]  # no checkpoint is left


def test_a_closed_form_model_finds_the_best_of_a_small_space_as_brute_force_does(tmp_path):
    space = {"neighbours": {"choices": [1, 3]}, "profile": {"choices": ["binary", "count"]}}
    small = job(tmp_path, run_config("item_knn", space))
    validate = small.validation()
    values = {}
    for neighbours in (1, 3, 5):
        for profile in ("binary", "count"):
            config = with_overrides(small.config, {"neighbours": neighbours, "profile": profile})
            values[neighbours, profile] = validate(replace(small, config=config).train().model)["valid_ndcg@10"]
    result = tune.tune(small, tune_config(trials=30), tmp_path)
    assert max(row["value"] for row in result["trials"]) == max(values.values())
    assert all(row["value"] == values[tuple(row["settings"].values())] for row in result["trials"])


def test_equal_settings_are_trained_once(tmp_path, monkeypatch):
    trainings = counted(monkeypatch)
    result = tune.tune(
        job(tmp_path, run_config("item_knn", {"neighbours": {"choices": [1, 3]}})), tune_config(trials=12), tmp_path
    )
    assert len(result["trials"]) == 12
    assert len(trainings) == 3
    assert {row["reason"].partition(" trial")[0] for row in result["trials"]} == {"", "same settings as"}


def test_the_same_command_goes_on_and_does_nothing_when_the_study_is_finished(tmp_path, monkeypatch):
    trainings, finished = counted(monkeypatch), []
    for trials_, expected in ((2, 2), (2, 2), (3, 3)):
        result = tune.tune(job(tmp_path), tune_config(trials=trials_), tmp_path, on_trial=finished.append)
        assert len(result["trials"]) == len(trainings) == expected
    assert [row["number"] for row in finished] == [0, 1, 2]  # each is told once


def test_bad_trials_are_pruned(tmp_path):
    """The first trial is good; a rate near zero learns nothing and is below the median at once."""
    space = {"train": {"optimiser": {"learning_rate": {"choices": [1e-7]}}}}
    config = tune_config(trials=6, pruner={"name": "median", "startup_trials": 1, "warmup_epochs": 2})
    result = tune.tune(job(tmp_path, run_config(space=space)), config, tmp_path)
    bad = [row for row in result["trials"] if row["settings"]["train.optimiser.learning_rate"] == 1e-7]
    assert bad
    assert {(row["state"], row["reason"], row["epochs"]) for row in bad} == {("pruned", "pruned in epoch 2", 2)}
    assert result["best"] == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            NonFiniteLossError("the loss is not finite at step 3 (epoch 1); lower it"),
            "the loss is not finite at step 3",
        ),
        (MemoryError("no more"), "out of memory: no more"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"), "out of memory: CUDA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory: [enf"),
    ],
)
def test_nan_and_lack_of_memory_prune_the_trial_and_the_study_goes_on(tmp_path, monkeypatch, error, reason):
    trainings = counted(monkeypatch, error, at=1)
    result = tune.tune(job(tmp_path), tune_config(trials=3), tmp_path)
    assert len(trainings) == 3
    assert [row["state"] for row in result["trials"]] == ["complete", "pruned", "complete"]
    assert result["trials"][1]["reason"].startswith(reason)
    assert result["trials"][1]["value"] is None


def test_a_rate_that_makes_the_loss_infinite_is_pruned(tmp_path):
    space = {"train": {"optimiser": {"learning_rate": {"choices": [1e25]}}}}
    result = tune.tune(job(tmp_path, run_config(space=space)), tune_config(trials=4), tmp_path)
    states = {row["settings"]["train.optimiser.learning_rate"]: row for row in result["trials"]}
    assert states[0.01]["state"] == "complete"
    assert (states[1e25]["state"], states[1e25]["reason"][:22]) == ("pruned", "the loss is not finite")


def test_settings_that_the_model_refuses_together_are_pruned(tmp_path):
    space = {"dim": {"choices": [12]}, "heads": {"choices": [4, 8]}}  # 12 is no multiple of 8
    result = tune.tune(job(tmp_path, run_config(space=space)), tune_config(trials=12), tmp_path)
    for row in result["trials"]:
        is_refused = row["settings"]["dim"] % row["settings"]["heads"] != 0
        assert row["state"] == ("pruned" if is_refused else "complete")
        assert ("is not a multiple of heads" in row["reason"]) == is_refused


def test_another_error_stops_the_study_with_the_settings_and_the_next_command_goes_on(tmp_path, monkeypatch):
    counted(monkeypatch, ZeroDivisionError("oh"), at=0)
    with pytest.raises(
        TuningError, match=r"trial 0 of the study 'd/sasrec.*dim 16, dropout 0.1.*ZeroDivisionError: oh"
    ):
        tune.tune(job(tmp_path), tune_config(trials=2), tmp_path)
    result = tune.tune(job(tmp_path), tune_config(trials=2), tmp_path)
    assert [row["configured"] for row in result["trials"]].count(True) == 1  # which failed, and is tried again
    assert len(result["trials"]) == 2


def test_ctrl_c_keeps_the_checkpoint_and_the_next_command_resumes_it(tmp_path, monkeypatch):
    whole = tune.tune(job(tmp_path / "whole"), tune_config(trials=1), tmp_path / "whole")
    report = trials._Reporter.report

    def interrupted(self, row):
        report(self, row)
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trials._Reporter, "report", interrupted)
        tune.tune(job(tmp_path), tune_config(trials=1), tmp_path)
    epochs = []

    def listened(self, row):
        epochs.append(row["epoch"])
        report(self, row)

    monkeypatch.setattr(trials._Reporter, "report", listened)
    result = tune.tune(job(tmp_path), tune_config(trials=1), tmp_path)
    assert epochs == [2, 3, 4]  # the checkpoint is that of epoch 1, as the interruption came before that of 2
    (row,), (expected,) = result["trials"], whole["trials"]
    assert (row["value"], row["curve"]) == (expected["value"], expected["curve"])
    assert row["configured"] and row["continues"] == 0


def test_a_trial_gives_signs_of_life_only_while_it_runs(tmp_path):
    study = study_in(tmp_path)
    trial = study.ask()
    beats = []
    with signs_of_life(study, trial, every=0.02):
        for _ in range(3):
            time.sleep(0.2)
            (stored,) = study.trials
            beats.append(stored.user_attrs[HEARTBEAT])
    assert beats == sorted(set(beats))
    assert stored.user_attrs[PROCESS] == [platform.node(), os.getpid(), process_start(os.getpid())]
    time.sleep(0.2)
    assert study.trials[0].user_attrs[HEARTBEAT] - beats[-1] < 0.15


def dead_trial(study: optuna.Study, process: list, **attributes) -> optuna.Trial:
    trial = study.ask()
    trial.suggest_categorical("dim", [8, 16])
    for key, value in {PROCESS: process, HEARTBEAT: time.time(), **attributes}.items():
        trial.set_user_attr(key, value)
    return trial


@pytest.mark.parametrize(
    ("host", "pid", "start", "age", "dead"),
    [
        (platform.node(), os.getpid(), process_start(os.getpid()), 10**6, False),
        (platform.node(), os.getpid(), 1, 0, True),  # its number went to another process
        ("elsewhere", 1, 1, 60, False),
        ("elsewhere", 1, 1, 6000, True),
    ],
    ids=["this process", "number of another process", "elsewhere and alive", "elsewhere and silent"],
)
def test_a_trial_goes_on_where_its_process_has_died(tmp_path, host, pid, start, age, dead):
    study = study_in(tmp_path)
    trial = dead_trial(study, [host, pid, start], **{HEARTBEAT: time.time() - age})
    for _ in range(2):  # the second finds it released
        release_dead(study, stale_seconds=600)
    again = [each for each in study.trials if each.user_attrs.get(RETRY_OF) == trial.number]
    assert len(again) == dead
    assert study.trials[0].state == (TrialState.FAIL if dead else TrialState.RUNNING)
    if dead:
        assert again[0].system_attrs["fixed_params"] == {
            "dim": 16,
            "dropout": 0.1,
            "train.optimiser.learning_rate": 0.01,
        }
        assert again[0].user_attrs["configured"]


def test_a_trial_that_kills_its_processes_is_pruned_in_the_end(tmp_path):
    study = study_in(tmp_path)
    for _ in range(MAX_DEATHS):
        dead_trial(study, [platform.node(), os.getpid(), 1])
        release_dead(study, stale_seconds=600)
    assert [each.state for each in study.trials] == [TrialState.FAIL] * (MAX_DEATHS - 1) + [TrialState.PRUNED]
    assert study.trials[-1].user_attrs["reason"] == "5 processes died of it"


def test_minutes_end_a_trial_after_its_epoch_and_the_next_command_continues_it(tmp_path):
    small = job(tmp_path)
    with pytest.raises(
        TuningError, match=r"no trial was finished within tune.minutes=1e-05: the same command continues"
    ):
        tune.tune(small, tune_config(minutes=1e-5), tmp_path)
    study = study_in(tmp_path)
    assert study.trials[-1].state == TrialState.WAITING
    outcome = trials.run_trial(
        study.ask(), study, small, tune.check(small.config, tune_config()), folder=tmp_path, ends=0.0
    )
    assert (outcome.state, outcome.reason, outcome.cost["epochs"]) == (trials.RELEASED, "time is up in epoch 1", 1)


def test_a_trial_that_another_process_took_over_ends_with_a_warning(tmp_path, monkeypatch, caplog):
    """As where this process was suspended for longer than ``tune.stale_minutes``."""
    report = trials._Reporter.report

    def lose(self, row):
        if self._trial.number == 1:
            self._study.tell(1, state=TrialState.FAIL)
            monkeypatch.setattr(trials._Reporter, "report", report)
        report(self, row)

    monkeypatch.setattr(trials._Reporter, "report", lose)
    result = tune.tune(job(tmp_path), tune_config(trials=3), tmp_path)
    assert len(result["trials"]) == 3 and 1 not in [row["number"] for row in result["trials"]]
    assert "trial 1 was taken over by another process" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {**SPACE, "dropout": {"low": 0.0, "high": 0.9}}}, r"search_space.dropout.high was 0.5 and is 0.9"),
        ({"space": {"dim": SPACE["dim"]}}, r"search_space.dropout was .* and is absent"),
        ({"settings": {"dim": 16, "heads": 2, "layers": 1, "dropout": 0.1}}, r"settings.heads was 1 and is 2"),
    ],
)
def test_a_changed_study_is_refused_with_the_change_and_the_way_out(tmp_path, changes, message):
    tune.tune(job(tmp_path), tune_config(trials=1), tmp_path)
    changed = job(tmp_path, run_config(**changes))
    with pytest.raises(TuningError, match=rf"{message}.*tune.study=<name>"):
        tune.tune(changed, tune_config(trials=1), tmp_path)
    assert len(tune.tune(changed, tune_config(trials=1, study="other"), tmp_path)["trials"]) == 1


def test_what_cannot_be_tuned_is_refused(tmp_path):
    with pytest.raises(TuningError, match="popular has nothing to tune: its search_space is empty"):
        tune.tune(job(tmp_path, run_config("popular", {})), tune_config(), tmp_path)
    with pytest.raises(TuningError, match="both null"):
        tune.tune(job(tmp_path), tune_config(trials=None), tmp_path)
    on_validation = run_config(train={**run_config().train, "train_on_validation": True})
    with pytest.raises(TuningError, match="nothing is left to compare"):
        tune.tune(job(tmp_path, on_validation), tune_config(), tmp_path)
    with pytest.raises(ConfigError, match=r"tune.trials cannot be 0"):
        tune_config(trials=0)
    assert not any(tmp_path.iterdir())


def test_two_objectives_give_a_front_that_nothing_beats(tmp_path):
    config = tune_config(
        trials=6, objectives="metric+seconds", pruner={"name": "median", "startup_trials": 0, "warmup_epochs": 0}
    )
    result = tune.tune(job(tmp_path, run_config("item_knn", KNN)), config, tmp_path)
    rows = {
        row["number"]: (row["value"], row["inference_seconds"])
        for row in result["trials"]
        if row["state"] == "complete"
    }
    assert len(rows) == 6
    better = {
        number
        for number, (value, seconds) in rows.items()
        if not any(v >= value and s <= seconds and (v, s) != (value, seconds) for v, s in rows.values())
    }
    assert set(result["pareto"]) == better
    assert result["objectives"] == ["metric", "seconds"]


def test_a_line_for_each_trial_and_none_of_its_training(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tune.tune(job(tmp_path), tune_config(trials=2), tmp_path)
    lines = [record.message for record in caplog.records if record.name.startswith("recpipe")]
    lines = [line for line in lines if not line.startswith("tune sasrec:")]  # progress, on a slow machine
    assert [line.partition(":")[0] for line in lines] == ["trial 0 (as configured), 1 of 2", "trial 1, 2 of 2"]
    assert "dim 16, dropout 0.1" in lines[0]
    assert logging.getLogger("recpipe.training.fit").level == logging.NOTSET


SCRIPT = """
import json, sys
from pathlib import Path
from tests.training.tuning.jobs import job, tune_config
from recpipe.training.tuning.tune import tune
folder = Path(sys.argv[1])
tune(job(folder), tune_config(trials=int(sys.argv[2]), storage=sys.argv[3] or None), folder)
"""


def start(folder: Path, trials_: int, storage: str = "") -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}/src:{PROJECT}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(trials_), storage], env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["", "sqlite:///{folder}/study.db"])
def test_two_processes_share_a_study_and_a_killed_one_loses_nothing(tmp_path, storage):
    url = storage.format(folder=tmp_path)
    first, second = start(tmp_path, 8, url), start(tmp_path, 8, url)
    time.sleep(6)
    first.kill()
    assert second.wait(timeout=120) == 0
    first.wait()
    result = tune.tune(job(tmp_path), tune_config(trials=8, storage=url or None), tmp_path)
    rows = result["trials"]
    assert 8 <= len(rows) <= 9  # both may have taken the last one
    assert [row["configured"] for row in rows].count(True) == 1
    params = [json.dumps(row["settings"]) for row in rows if "same settings" not in row["reason"]]
    assert len(params) == len(set(params))
    assert all(row["state"] == "complete" for row in rows)
