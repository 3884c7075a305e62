"""Packed rows against the padded layout: the same users, the same inputs, the same targets, fewer places."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data.batch_samplers import PackedBatches, TrainingBatches, pack_rows
from recpipe.data.batches import Batch, DeviceSequences

WINDOW, SIZE, TOKENS = 12, 20, 400
DATA = random_sequences(300, 40, longest=30, shortest=1, seed=3)


def features(data) -> dict[str, np.ndarray]:
    """Of each event its own number, of each user its own."""
    return {
        "event.x": np.arange(len(data.items), dtype=np.float32)[:, None],
        "user.x": np.arange(len(data), dtype=np.float32)[:, None],
    }


def held(data=DATA) -> DeviceSequences:
    return DeviceSequences(data, window=WINDOW + 1, device="cpu", features=features(data))


def packed(data: DeviceSequences, *, seed: int = 0, epoch: int = 0, size: int = SIZE) -> list[Batch]:
    batches = PackedBatches(data.lengths, size=size, tokens=TOKENS, seed=seed)
    batches.epoch = epoch
    return [batches.gather(data, part) for parts in batches for part in parts]


def cells(batch: Batch) -> list[tuple]:
    """(user, event, place, time, item, item to predict) of every event that is read and has a target."""
    inputs, targets = batch.inputs_and_targets()
    real = targets > 0
    user = inputs.features["user.x"].expand(*inputs.items.shape, 1)
    columns = (user[..., 0], inputs.features["event.x"][..., 0], inputs.positions.expand_as(inputs.items))
    columns = (*columns, inputs.timestamps, inputs.items, targets)
    return list(zip(*(column[real].tolist() for column in columns), strict=True))


def test_every_event_is_read_and_predicted_once_as_in_the_padded_layout():
    data = held()
    steps = packed(data)
    padded = TrainingBatches(data.lengths, tokens=TOKENS, seed=0, minimum=2)
    parts = [[data.batch(rows) for rows in step] for step in padded]
    assert len(steps) == len(parts) > 5
    for ours, theirs in zip(steps, parts, strict=True):  # the same users in every step
        found, wanted = cells(ours), [cell for part in theirs for cell in cells(part)]
        assert Counter(found) == Counter(wanted)
        assert max(Counter(found).values()) == 1
        assert ours.targets == sum(part.targets for part in theirs) == len(found)
        assert (ours.items > 0).sum() == len(found)  # nothing is read for nothing


@pytest.mark.parametrize("stride", [1, 5])
def test_context_is_read_and_is_no_target_in_either_layout(stride):
    rows = held(DATA.windows(WINDOW, stride))
    everybody = rows.batch(np.flatnonzero(rows.lengths > 1))
    expected = cells(everybody)
    assert sorted(cell for batch in packed(rows) for cell in cells(batch)) == sorted(expected)
    assert len(expected) == (DATA.lengths - 1).sum() == everybody.targets
    assert sum(batch.targets for batch in packed(rows)) == everybody.targets


def test_rows_hold_whole_users_one_after_the_other():
    for batch in packed(held()):
        users = batch.features["user.x"][..., 0]
        for row in range(len(batch.items)):
            n = int(batch.lengths[row])
            assert n <= SIZE and (batch.items[row, :n] > 0).all() and (batch.items[row, n:] == 0).all()
            segment, owner, place = batch.segments[row, :n], users[row, :n], batch.segment_positions[row, :n]
            assert (batch.segments[row, n:] == 0).all()
            starts = torch.nonzero(place == 0).flatten().tolist()
            assert starts[0] == 0
            for number, (start, stop) in enumerate(zip(starts, [*starts[1:], n], strict=True), start=1):
                assert (segment[start:stop] == number).all() and owner[start:stop].unique().numel() == 1
                assert place[start:stop].tolist() == list(range(stop - start))
            assert owner[starts].unique().numel() == len(starts)


def test_long_users_keep_their_last_events():
    data = held(sequences([list(range(1, 31)), [1, 2]]))
    (batch,) = packed(data)
    row = batch.items[batch.items > 2]
    assert row.tolist() == list(range(30 - WINDOW, 30))
    assert batch.next_items[batch.items > 2].tolist() == list(range(31 - WINDOW, 31))


def test_rows_depend_on_seed_and_epoch_only():
    data = held()
    first, again, later, other = (
        packed(data, seed=seed, epoch=epoch) for seed, epoch in ((1, 2), (1, 2), (1, 3), (2, 2))
    )
    assert all(torch.equal(a.items, b.items) for a, b in zip(first, again, strict=True))
    for changed in (later, other):
        assert {frozenset(cells(a)) for a in first} != {frozenset(cells(a)) for a in changed}


def first_fit(lengths: np.ndarray, size: int) -> list[list[int]]:
    """The textbook loop: the longest first, each into the first row with room."""
    rows: list[list[int]] = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = next((row for row in rows if sum(row) + length <= size), None)
        if fitting is None:
            rows.append([length])
        else:
            fitting.append(length)
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_those_of_first_fit_decreasing(seed):
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 60))
    lengths = rng.integers(1, size + 1, int(rng.integers(1, 400)))
    users = rng.permutation(1000)[: len(lengths)]
    rows = pack_rows(users, lengths, size)
    assert sorted(rows.users) == sorted(users)
    length_of = dict(zip(users.tolist(), lengths.tolist(), strict=True))
    ours = [[] for _ in range(len(rows))]
    for user, row, start, segment in zip(rows.users, rows.row, rows.start, rows.segment, strict=True):
        assert start == sum(ours[row]) and segment == len(ours[row]) + 1
        ours[row].append(length_of[user])
    assert rows.width == max(map(sum, ours)) <= size
    assert ours == first_fit(lengths, size)


def test_little_is_padding():
    rng = np.random.default_rng(0)
    for longest in (50, 200):
        lengths = np.minimum(rng.geometric(1 / 30, 2000), longest)
        rows = pack_rows(np.arange(2000), lengths, longest)
        assert lengths.sum() / (len(rows) * rows.width) > 0.97


def test_a_user_to_a_row_needs_no_segments():
    data = held(sequences([list(range(1, 14))] * 3))
    (batch,) = packed(data, size=WINDOW)
    assert batch.segments is None and batch.segment_positions is None
    assert batch.items.tolist() == [list(range(1, 13))] * 3 and batch.lengths.tolist() == [12] * 3


def test_rows_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"train.row is 11, less than the 12 events"):
        PackedBatches(held().lengths, size=11, tokens=TOKENS, seed=0)


def test_an_event_is_appended_and_the_first_falls_out():
    data = DeviceSequences(sequences([[1, 2, 3], [4], [], [5, 6]]), window=3, device="cpu")
    batch = data.batch(np.arange(4)).append_event(torch.tensor([7, 8, 9, 0]), 3)
    assert batch.items.tolist() == [[2, 3, 7], [4, 8, 0], [9, 0, 0], [5, 6, 0]]
    assert batch.lengths.tolist() == [3, 2, 1, 2]
    assert batch.timestamps.tolist() == [[100, 200, 200], [0, 0, 0], [0, 0, 0], [0, 100, 0]]
    longer = data.batch(np.arange(4)).append_event(torch.tensor([7, 8, 9, 0]), 4)
    assert longer.items[0].tolist() == [1, 2, 3, 7] and longer.lengths.tolist() == [4, 2, 1, 2]
