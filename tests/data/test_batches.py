from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data import batch_samplers as module
from recpipe.data.batch_samplers import TrainingBatches
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


def test_every_event_is_asked_about_when_the_next_one_happens_and_the_last_at_the_question():
    told = replace(sequences([[1, 2, 3, 4], [5], [], [6, 7]]), query_times=np.array([1000, 50, 7, 400]))
    data = DeviceSequences(told, window=3, device="cpu")
    batch = data.batch(np.array([1, 0, 2, 3]))
    assert batch.query_times.tolist() == [[50, 0, 0], [200, 300, 1000], [0, 0, 0], [100, 400, 0]]
    assert data.batch(np.array([2])).query_times.shape == (1, 0)
    longer = batch.pad(2)
    assert longer.query_times.shape == longer.items.shape == (4, 5) and longer.query_times[:, 3:].sum() == 0
    untold = DeviceSequences(replace(told, query_times=None), window=3, device="cpu").batch(np.array([1, 0]))
    assert untold.query_times is None
    for each in (batch, untold):  # in training, of the events themselves
        inputs, targets = each.inputs_and_targets()
        assert targets[:2].tolist() == [[0, 0], [3, 4]]
        assert inputs.query_times[:2].tolist() == [[0, 0], [200, 300]]
    untimed = DeviceSequences(replace(told, timestamps=None), window=3, device="cpu").batch(np.array([0]))
    assert untimed.query_times is None and untimed.inputs_and_targets()[0].query_times is None


def test_every_user_comes_once_per_epoch_in_random_steps_of_about_the_asked_size():
    lengths = random_sequences(500, 30, longest=40, shortest=1).lengths
    batches = TrainingBatches(lengths, tokens=2000, seed=0, minimum=2)
    seen = []
    for epoch in range(2):
        batches.epoch = epoch
        steps = list(batches)
        assert len(steps) == len(batches) == np.ceil(lengths[lengths >= 2].sum() / 2000)
        sizes = [sum(lengths[rows].sum() for rows in parts) for parts in steps]
        assert max(sizes) <= 2040 and min(sizes) >= 1500
        seen.append(np.concatenate([np.concatenate(parts) for parts in steps]))
        assert sorted(seen[-1]) == np.flatnonzero(lengths >= 2).tolist()
    assert not np.array_equal(*seen)
    padded = sum(len(rows) * lengths[rows].max() for parts in steps for rows in parts)
    assert lengths[seen[0]].sum() / padded > 0.85


@pytest.mark.parametrize("lengths", [[10, 1], [10, 1, 1], [1, 10, 9, 1], [10] * 5, [3]])
def test_no_step_is_empty_however_long_a_single_row_is(lengths):
    for seed in range(30):
        batches = TrainingBatches(np.array(lengths), tokens=10, seed=seed)
        steps = [np.concatenate(parts) for parts in batches]
        assert len(steps) == len(batches)
        assert all(len(rows) for rows in steps)
        assert sorted(np.concatenate(steps)) == list(range(len(lengths)))


def test_a_step_is_a_sample_of_all_lengths():
    lengths = np.concatenate([np.full(400, 2), np.full(400, 20)])
    for parts in TrainingBatches(lengths, tokens=2000, seed=0):
        found = lengths[np.concatenate(parts)]
        assert 0.35 < (found == 2).mean() < 0.65
        assert all(len(set(lengths[rows])) == 1 for rows in parts[:-1])


def test_order_depends_on_seed_and_epoch_only():
    lengths = random_sequences(100, 30).lengths
    one, two, other = (TrainingBatches(lengths, tokens=50, seed=seed) for seed in (3, 3, 4))
    list(one)
    one.epoch = two.epoch = other.epoch = 7
    flat = [np.concatenate([np.concatenate(parts) for parts in batches]) for batches in (one, two, other)]
    assert np.array_equal(flat[0], flat[1])
    assert not np.array_equal(flat[0], flat[2])


def test_processes_share_the_steps_without_overlap():
    lengths = random_sequences(300, 30).lengths
    shares = [list(TrainingBatches(lengths, tokens=60, seed=0, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    rows = np.concatenate([rows for share in shares for parts in share for rows in parts])
    assert len(rows) == len(set(rows.tolist())) > 250


def test_budgets_and_data_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="less than one sequence of 12"):
        TrainingBatches(np.array([12, 3]), tokens=10, seed=0)
    with pytest.raises(ValueError, match="no user has the 2 events"):
        TrainingBatches(np.array([1, 1]), tokens=10, seed=0, minimum=2)


def test_a_step_is_cut_into_as_many_parts_as_are_asked_for_or_memory_needs(monkeypatch):
    lengths = np.random.default_rng(0).integers(2, 40, 500)
    steps = {parts: list(TrainingBatches(lengths, tokens=2000, seed=1, parts=parts)) for parts in (1, 8)}
    assert {len(step) for step in steps[1]} == {1}
    assert {len(step) for step in steps[8]} == {8}
    monkeypatch.setattr(module, "PLACES", 1000)
    cut = list(TrainingBatches(lengths, tokens=2000, seed=1, parts=1))
    for whole, other, parts in zip(steps[1], steps[8], cut, strict=True):
        assert len(parts) > 1
        assert sorted(np.concatenate(parts)) == sorted(np.concatenate(other)) == sorted(whole[0])
