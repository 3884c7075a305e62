"""Training by several processes: the numbers of one, resuming with another number, and ranks that end early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.training.ranks import CASES, Result, Trainings, interrupted, training
from tests.training.runs import DATA, METRIC, PROTOCOL, column, run, settings, weights

from recpipe.evaluation.evaluate import FoldValidator, validator
from recpipe.models.popular import Popular
from recpipe.training import distributed
from recpipe.training.checkpoint import LAST, load_tree
from recpipe.training.distributed import RankError, Ranks, count_devices
from recpipe.training.rank_processes import RankProcesses

STILL = {"config": {"dropout": 0.0}, "batch_tokens": 400}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Folders of the trainings by two ranks; that of "1 then 2" has the checkpoint of one process."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    interrupted(training(CASES["padded"], folder / "1 then 2"), Ranks(), 3)
    return folder


@pytest.fixture(scope="module")
def by_two(folder) -> dict[str, Any]:
    """What two ranks give, by name."""
    trainings = Trainings(folder)
    with RankProcesses(trainings, 2, device="cpu") as ranks:
        return trainings(ranks)


@pytest.fixture(scope="module")
def by_one(tmp_path_factory) -> dict[str, Result]:
    """What one process gives, by name."""
    folder = tmp_path_factory.mktemp("one")
    return {name: Result.of(training(case, folder / name), Ranks()) for name, case in CASES.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_ranks_give_the_numbers_of_one_process(by_one, by_two, name):
    one, two = by_one[name], by_two[name]
    assert two.column("step") == one.column("step")
    assert two.column("lr") == one.column("lr")
    for key in ("loss", "gradient_norm", METRIC):
        assert two.column(key) == pytest.approx(one.column(key), rel=1e-5, abs=1e-5)
    torch.testing.assert_close(two.weights, one.weights, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_training_goes_on_with_another_number_of_ranks(by_one, by_two, folder):
    whole = by_one["padded"]
    resumed = {"1 then 2": by_two["1 then 2"]}
    resumed["2 then 1"] = Result.of(training(CASES["padded"], folder / "2 then 1"), Ranks())
    for result in resumed.values():
        assert result.column("epoch") == whole.column("epoch")
        assert result.column("loss") == pytest.approx(whole.column("loss"), rel=1e-5)
        torch.testing.assert_close(result.weights, whole.weights, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_resuming_with_the_same_number_repeats_the_draws_of_all_ranks(by_two):
    assert torch.equal(by_two["dropout resumed"].weights, by_two["dropout"].weights)


@pytest.mark.slow
def test_ranks_draw_random_numbers_of_their_own(by_two):
    own, total = by_two["draws"]
    assert np.abs(total - 2 * own).min() > 1e-6
    assert np.all((total - own >= 0) & (total - own < 1))


def kill_a_rank(folder: Path) -> None:
    """Kill the process of rank 1 after the second epoch."""
    while not (folder / LAST).is_file():
        time.sleep(0.01)
    time.sleep(0.2)
    for process in rank_processes(os.getpid()):
        os.kill(process, signal.SIGKILL)


def rank_processes(parent: int) -> list[int]:
    """Process ids of the ranks that a process has started and that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, above = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            is_rank = b"rank_processes" in (folder / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        if is_rank and int(above) == parent and state != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_all_with_its_name_and_the_same_command_goes_on(tmp_path):
    killer = threading.Thread(target=kill_a_rank, args=(tmp_path,))
    killer.start()
    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1 of 2 was killed by SIGKILL.*the same command goes on"):
        run(tmp_path, devices=2, max_epochs=2000, patience=5000, **STILL)
    killer.join()
    assert not rank_processes(os.getpid())
    assert time.monotonic() - started < 90
    epochs = len(load_tree(tmp_path / LAST)["recpipe"]["curve"]) + 1
    resumed = run(tmp_path, max_epochs=epochs, patience=5000, **STILL)  # from the checkpoint, by one process
    assert len(resumed.curve) == epochs
    whole = run(tmp_path / "whole", max_epochs=epochs, patience=5000, **STILL)
    torch.testing.assert_close(weights(resumed), weights(whole), atol=1e-5, rtol=0)


CALLER = """
import sys
from pathlib import Path
from tests.training.runs import run
run(Path(sys.argv[1]), devices=2, max_epochs=2000, patience=5000, batch_tokens=400)
"""


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_no_rank_outlives_the_caller(tmp_path, project, sent):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)])}
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(tmp_path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / LAST).is_file():
        assert caller.poll() is None
        time.sleep(0.05)
    ranks = rank_processes(caller.pid)
    assert len(ranks) == 1
    caller.send_signal(sent)
    _, errors = caller.communicate(timeout=20)
    ended = time.monotonic() + 10
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < ended
        time.sleep(0.1)
    assert sent == signal.SIGKILL or "run the same command again to go on" in errors


class FailsOnRank1:
    """Validation that fails on one rank."""

    def __init__(self, rank: int = 0) -> None:
        self.rank = rank

    def shard(self, ranks: Ranks) -> FailsOnRank1:
        return FailsOnRank1(ranks.rank)

    def __call__(self, model: object) -> dict[str, float]:
        if self.rank == 1:
            raise ValueError("the fold of this rank is empty")
        return {METRIC: 0.5}


@pytest.mark.slow
def test_the_error_of_a_rank_is_in_the_message(tmp_path):
    with pytest.raises(RankError, match=r"rank 1 of 2 .*the fold of this rank is empty"):
        run(tmp_path, devices=2, validate=FailsOnRank1(), **STILL)
    assert not rank_processes(os.getpid())


def test_what_cannot_be_sent_to_a_process_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"cannot be sent to other processes .*train.devices=1"):
        run(tmp_path, devices=2, validate=lambda model: {METRIC: 0.5}, **STILL)


def test_a_model_in_closed_form_needs_no_devices(tmp_path, caplog):
    caplog.set_level("INFO", "recpipe")
    run(tmp_path, model=lambda: Popular(Popular.Config(), n_items=30, max_length=10), devices=2, num_nodes=3)
    assert "train.devices has no effect" in caplog.text


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_of_validation_users_are_disjoint_and_give_the_same_metrics(n):
    """The sum over ranks is played by a sum of the ranks of all shares."""
    whole = validator(DATA.valid, PROTOCOL)
    model = training(CASES["padded"], Path(".")).setup.model
    parts: list[np.ndarray] = []
    for rank in range(n):
        fake: Any = SimpleNamespace(rank=rank, size=n, sum=lambda values: parts.append(values) or values)
        FoldValidator(whole.fold, whole.protocol, whole.metric, fake)._shared_ranks(model)
    assert (np.count_nonzero(parts, axis=0) <= 1).all()
    fake = SimpleNamespace(rank=0, size=2, sum=lambda values: np.sum(parts, axis=0, dtype=np.int32))
    assert FoldValidator(whole.fold, whole.protocol, whole.metric, fake)(model) == whole(model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 0}, "train.devices is 0; it must be a number, at least 1, or auto"),
        ({"devices": "two"}, "train.devices is 'two'"),
        ({"num_nodes": 0}, "train.num_nodes is 0; it must be at least 1"),
        ({"accumulate": 0.5}, "train.accumulate is 0.5; it must be at least 1"),
        ({"strategy": "fsdp"}, "train.strategy is 'fsdp'; allowed: auto, ddp"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_more_devices_than_cores_or_processes_are_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"train.devices is 1000 and this machine has \d+ cores"):
        count_devices(settings(devices=1000), "cpu")
    with pytest.raises(ValueError, match=r"torchrun --nnodes=2 --nproc-per-node=1 -m recpipe.training.standalone"):
        count_devices(settings(num_nodes=2), "cpu")
    monkeypatch.setattr(distributed, "external_ranks", lambda: Ranks(0, 4, is_external=True))
    assert count_devices(settings(num_nodes=4), "cpu") == 1
    with pytest.raises(ValueError, match=r"4 processes were started.* asks for 2; set train.devices=2"):
        count_devices(settings(num_nodes=2), "cpu")
    assert count_devices(settings(devices="auto", num_nodes=4), "cpu") == 1


def test_the_number_of_devices_is_in_the_cost_and_not_in_the_curve(tmp_path):
    assert "devices" not in run(tmp_path, max_epochs=1).cost
    assert column(run(tmp_path, max_epochs=1), "epoch") == [1]
