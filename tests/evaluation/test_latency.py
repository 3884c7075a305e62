"""Single users on a clock of our own, which runs only inside the model."""

from types import SimpleNamespace

import numpy as np
import pytest
from tests.synthetic import sequences

from recpipe.data.sequences import Fold
from recpipe.evaluation import evaluate as module
from recpipe.evaluation.evaluate import latency


class Clocked:
    """Takes as many milliseconds as the history has events, and a second more for the first answer."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, []

    def recommend(self, histories, k, *, exclude_seen):
        assert len(histories) == 1 and (k, exclude_seen) == (7, False)
        self.now += len(histories.items) / 1000 + (not self.asked)
        self.asked.append(histories.users[0])


@pytest.fixture
def clocked(monkeypatch) -> Clocked:
    model = Clocked()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: model.now))
    return model


def fold(users: int) -> Fold:
    return Fold(sequences([[1] * (n + 1) for n in range(users)]), sequences([[2]] * users))


def test_it_is_that_of_single_users_once_warm(clocked):
    found = latency(clocked, fold(30), exclude_seen=False, k=7)
    assert sorted(clocked.asked[module.WARM :]) == sorted(fold(30).histories.users)
    assert found == pytest.approx(
        {
            "inference_latency_ms_p50": np.median(range(1, 31)),
            "inference_latency_ms_p95": np.percentile(range(1, 31), 95),
        }
    )


def test_users_are_drawn_always_the_same_ones(clocked):
    first = latency(clocked, fold(500), exclude_seen=False, k=7)
    drawn, clocked.asked = clocked.asked, ["warm"]
    assert latency(clocked, fold(500), exclude_seen=False, k=7) == pytest.approx(first)
    assert len(set(drawn)) == 30 and clocked.asked[1:] == drawn


def test_one_user_and_none(clocked):
    found = latency(clocked, fold(1), exclude_seen=False, k=7)
    assert found == pytest.approx({"inference_latency_ms_p50": 1.0, "inference_latency_ms_p95": 1.0})
    assert latency(clocked, fold(0), exclude_seen=False, k=7) == {}
