"""Events that a model has seen, found again in longer logs, against brute force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences

from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import Sequences


def with_times(rows: list[list[int]], times: list[list[int]]) -> Sequences:
    return replace(sequences(rows), timestamps=np.array([t for row in times for t in row], np.int64))


@pytest.mark.parametrize("times", [True, False])
@pytest.mark.parametrize("chunk", [20, 1 << 22])
def test_events_behind_those_of_training_are_new_also_among_equal_times(monkeypatch, times: bool, chunk: int) -> None:
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", chunk)
    rng = np.random.default_rng(0)
    log = random_sequences(60, 9, seed=1)
    stamps = np.concatenate([np.sort(rng.integers(0, 4, n)) for n in log.lengths]).astype(np.int64)
    log = replace(log, timestamps=stamps if times else None)
    stop = rng.integers(0, log.lengths + 1)
    seen = SeenEvents.of(log.select(np.arange(len(log)), np.zeros_like(stop), stop))
    assert seen.first_new(log).tolist() == stop.tolist()
    assert SeenEvents.from_table(seen.to_table()).first_new(log).tolist() == stop.tolist()


def test_all_events_of_a_new_user_are_new() -> None:
    seen = SeenEvents.of(sequences([[1, 2]]))
    later = sequences([[1, 2, 3], [4, 5]])
    assert seen.first_new(later).tolist() == [2, 0]


def test_an_old_event_that_the_log_did_not_have_before_is_not_new() -> None:
    seen = SeenEvents.of(with_times([[1, 2]], [[10, 20]]))
    longer = with_times([[1, 7, 2, 3]], [[10, 15, 20, 30]])
    assert seen.first_new(longer).tolist() == [3]


def test_a_log_that_has_lost_its_times_is_refused() -> None:
    with pytest.raises(ValueError, match="timestamps"):
        SeenEvents.of(sequences([[1, 2]])).first_new(sequences([[1, 2]], times=False))
