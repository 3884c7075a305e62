"""Padded batches: last events, times of the query, appended events."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from tests.synthetic import sequences

from recpipe.data.batches import DeviceSequences


def test_batches_are_the_last_events_right_padded():
    data = DeviceSequences(sequences([[1, 2, 3, 4], [5], [], [6, 7]]), window=3, device="cpu")
    batch = data.batch(np.array([1, 0, 2]))
    assert batch.items.tolist() == [[5, 0, 0], [2, 3, 4], [0, 0, 0]]
    assert batch.lengths.tolist() == [1, 3, 0]
    assert batch.timestamps.tolist() == [[0, 0, 0], [100, 200, 300], [0, 0, 0]]
    assert torch.equal(batch.mask, batch.items > 0)
    empty = DeviceSequences(sequences([[], []]), window=3, device="cpu").batch(np.array([0, 1]))
    assert empty.items.shape == (2, 0)


def test_query_times_are_those_of_the_next_events_and_of_the_query_at_the_end():
    timed = replace(sequences([[1, 2, 3, 4], [5], [], [6, 7]]), query_times=np.array([1000, 50, 7, 400]))

    def batch_of(data, *rows):
        return DeviceSequences(data, window=3, device="cpu").batch(np.array(rows))

    batch = batch_of(timed, 1, 0, 2, 3)
    assert batch.query_times.tolist() == [[50, 0, 0], [200, 300, 1000], [0, 0, 0], [100, 400, 0]]
    assert batch_of(timed, 2).query_times.shape == (1, 0)
    longer = batch.pad(2)
    assert longer.query_times.shape == longer.items.shape == (4, 5) and longer.query_times[:, 3:].sum() == 0
    without_query = batch_of(replace(timed, query_times=None), 1, 0)
    assert without_query.query_times is None
    for users in (batch, without_query):  # in training, the times of the targets
        inputs, targets = users.inputs_and_targets()
        assert targets[:2].tolist() == [[0, 0], [3, 4]]
        assert inputs.query_times[:2].tolist() == [[0, 0], [200, 300]]
    without_times = batch_of(replace(timed, timestamps=None), 0)
    assert without_times.query_times is None and without_times.inputs_and_targets()[0].query_times is None


def test_an_appended_event_drops_the_first_beyond_the_window():
    data = DeviceSequences(sequences([[1, 2, 3], [4], [], [5, 6]]), window=3, device="cpu")
    batch = data.batch(np.arange(4)).append_event(torch.tensor([7, 8, 9, 0]), 3)
    assert batch.items.tolist() == [[2, 3, 7], [4, 8, 0], [9, 0, 0], [5, 6, 0]]
    assert batch.lengths.tolist() == [3, 2, 1, 2]
    assert batch.timestamps.tolist() == [[100, 200, 200], [0, 0, 0], [0, 0, 0], [0, 100, 0]]
    longer = data.batch(np.arange(4)).append_event(torch.tensor([7, 8, 9, 0]), 4)
    assert longer.items[0].tolist() == [1, 2, 3, 7] and longer.lengths.tolist() == [4, 2, 1, 2]


def test_query_times_follow_an_appended_event():
    timed = replace(sequences([[1, 2, 3], [4], [], [5, 6]]), query_times=np.array([900, 50, 7, 400]))
    batch = DeviceSequences(timed, window=3, device="cpu").batch(np.arange(4))
    assert batch.query_times.tolist() == [[100, 200, 900], [50, 0, 0], [0, 0, 0], [100, 400, 0]]
    batch = batch.append_event(torch.tensor([7, 8, 9, 0]), 3)
    assert batch.query_times.tolist() == [[200, 200, 900], [0, 50, 0], [0, 0, 0], [100, 400, 0]]
    assert batch.timestamps.tolist() == [[100, 200, 200], [0, 0, 0], [0, 0, 0], [0, 100, 0]]


def test_context_items_are_the_events_that_are_no_targets():
    data = DeviceSequences(sequences([[1, 2, 3, 4], [5], [], [6, 7]]), window=3, device="cpu")
    inputs, targets = data.batch(np.array([0, 1, 2, 3])).inputs_and_targets()
    assert inputs.context_items(targets).tolist() == [2, 5, 6]
    later_targets = torch.where(targets == 3, 0, targets)
    assert inputs.context_items(later_targets).tolist() == [2, 3, 5, 6]
