"""Storages of studies: opened by path or URL, repaired after a kill, refused with a message that hides passwords."""

from __future__ import annotations

import socket
import time

import optuna
import pytest
from tests.training.tuning.jobs import tune_config

from recpipe.training.tuning.storage import JOURNAL, TuningError, check_storage, open_storage


def filled(storage) -> optuna.Study:
    study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    return study


@pytest.mark.parametrize("storage", [None, "{folder}/other/my.log", "sqlite:///{folder}/other/studies.db"])
def test_trials_are_there_when_it_is_opened_again(tmp_path, storage):
    config = tune_config(storage=None if storage is None else storage.format(folder=tmp_path))
    check_storage(config)
    values = [trial.value for trial in filled(open_storage(config, tmp_path)).trials]
    again = optuna.load_study(study_name="s", storage=open_storage(config, tmp_path))
    assert [trial.value for trial in again.trials] == values
    assert (tmp_path / JOURNAL).exists() == (storage is None)


def test_the_incomplete_line_of_a_killed_process_is_removed(tmp_path):
    study = filled(open_storage(tune_config(), tmp_path))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 8, "worker_id": "half a li')
    again = optuna.load_study(study_name="s", storage=open_storage(tune_config(), tmp_path))
    assert again.trials == study.trials
    filled(open_storage(tune_config(), tmp_path))
    third = optuna.load_study(study_name="s", storage=open_storage(tune_config(), tmp_path))
    assert len(third.trials) == 4


def test_a_lock_that_a_killed_process_left_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("recpipe.training.tuning.storage.LOCK_SECONDS", 3)
    filled(open_storage(tune_config(), tmp_path))
    (tmp_path / f"{JOURNAL}.lock").touch()
    start = time.monotonic()
    open_storage(tune_config(), tmp_path)
    assert time.monotonic() - start < 10


def test_a_server_that_does_not_answer_is_named_within_seconds_and_without_its_password(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # nothing listens there
        start = time.monotonic()
        with pytest.raises(TuningError) as error:
            open_storage(tune_config(storage=f"postgresql://me:secret@127.0.0.1:{port}/studies"), tmp_path)
    assert time.monotonic() - start < 6
    assert f"postgresql://me:***@127.0.0.1:{port}/studies" in str(error.value)
    assert "cannot be reached: nothing answers" in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (
            "sqlite:////proc/no/such/folder.db",
            r"sqlite:////proc/no/such/folder.db of the study cannot be used: unable to open",
        ),
        ("nosuch://me:secret@host/db", r"nosuch://me:\*\*\*@host/db.*(driver|cannot be used)"),
        ("/proc/no/such.log", r"the journal of the study cannot be written: .*tune.storage"),
        ("://", r"no URL of a database"),
        ("postgresql://me:secret@127.0.0.1:54x/db", r"no URL of a database"),
        ("postgresql://me:s@secret@127.0.0.1:1/db", r"has an @ in its user or password"),
        ("postgresql://127.0.0.1:1/db?user=me&password=secret", r"cannot be reached: nothing answers"),
        ("/project/postgresql:/me:secret@127.0.0.1/db", r"lacks a slash"),
    ],
)
def test_what_is_no_storage_is_refused(tmp_path, storage, message):
    with pytest.raises(TuningError, match=message) as error:
        open_storage(tune_config(storage=storage), tmp_path)
    assert "secret" not in str(error.value)


def test_a_file_that_is_no_journal_or_database_is_refused(tmp_path):
    (tmp_path / JOURNAL).write_text("not a journal\nat all\n")
    with pytest.raises(TuningError, match=r"journal.log is no journal of Optuna"):
        open_storage(tune_config(), tmp_path)
    (tmp_path / "x.db").write_text("not a database, as it is too long for that and has no magic number at its start")
    with pytest.raises(TuningError, match=r"x.db of the study cannot be used"):
        open_storage(tune_config(storage=f"sqlite:///{tmp_path}/x.db"), tmp_path)


def test_the_password_is_in_no_log_of_the_settings():
    from recpipe.hooks.mlflow_runs import flat

    config = tune_config(storage="mysql://me:secret@host/db")
    assert "secret" not in f"{config} {flat(config, 'tune')}"
