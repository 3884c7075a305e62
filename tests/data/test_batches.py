from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data.batches import DeviceSequences, LengthBuckets


def test_batches_are_the_last_events_right_padded():
    data = DeviceSequences(sequences([[1, 2, 3, 4], [5], [], [6, 7]]), window=3, device="cpu")
    batch = data.batch(np.array([1, 0, 2]))
    assert batch.items.tolist() == [[5, 0, 0], [2, 3, 4], [0, 0, 0]]
    assert batch.lengths.tolist() == [1, 3, 0]
    assert batch.timestamps.tolist() == [[0, 0, 0], [100, 200, 300], [0, 0, 0]]
    assert torch.equal(batch.mask, batch.items > 0)
    empty = DeviceSequences(sequences([[], []]), window=3, device="cpu").batch(np.array([0, 1]))
    assert empty.items.shape == (2, 0)


def test_every_user_comes_once_per_epoch_within_the_budget():
    lengths = random_sequences(500, 30, longest=40, shortest=1).lengths
    buckets = LengthBuckets(lengths, tokens=200, seed=0, minimum=2)
    seen = []
    for epoch in range(2):
        buckets.epoch = epoch
        batches = list(buckets)
        assert len(batches) == len(buckets)
        assert all(len(rows) * lengths[rows].max() <= 200 for rows in batches)
        assert sorted(np.concatenate(batches)) == np.flatnonzero(lengths >= 2).tolist()
        seen.append(np.concatenate(batches))
    assert not np.array_equal(*seen)
    fill = lengths[seen[0]].sum() / sum(len(rows) * lengths[rows].max() for rows in batches)
    assert fill > 0.85


def test_order_depends_on_seed_and_epoch_only():
    lengths = random_sequences(100, 30).lengths
    one, two = (LengthBuckets(lengths, tokens=50, seed=3) for _ in range(2))
    list(one)
    one.epoch = two.epoch = 7
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    other = LengthBuckets(lengths, tokens=50, seed=4)
    other.epoch = 7
    assert not np.array_equal(np.concatenate(list(one)), np.concatenate(list(other)))


def test_processes_share_the_batches_without_overlap():
    lengths = random_sequences(300, 30).lengths
    parts = [list(LengthBuckets(lengths, tokens=60, seed=0, rank=rank, world_size=3)) for rank in range(3)]
    assert len({len(part) for part in parts}) == 1
    rows = np.concatenate([np.concatenate(part) for part in parts])
    assert len(rows) == len(set(rows.tolist())) > 250


def test_budgets_and_data_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="less than one sequence of 12"):
        LengthBuckets(np.array([12, 3]), tokens=10, seed=0)
    with pytest.raises(ValueError, match="no user has the 2 events"):
        LengthBuckets(np.array([1, 1]), tokens=10, seed=0, minimum=2)
