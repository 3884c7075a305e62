"""Batch samplers: random steps of padded parts, and packed rows against the padded layout."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data import batch_samplers as module
from recpipe.data.batch_samplers import PackedBatches, Share, TrainingBatches, pack_rows
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.data.windows import Windows


def test_every_user_comes_once_per_epoch_in_random_steps_of_similar_size():
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
        step = lengths[np.concatenate(parts)]
        assert 0.35 < (step == 2).mean() < 0.65
        assert all(len(set(lengths[rows])) == 1 for rows in parts[:-1])


def test_order_depends_on_seed_and_epoch_only():
    lengths = random_sequences(100, 30).lengths
    one, two, other = (TrainingBatches(lengths, tokens=50, seed=seed) for seed in (3, 3, 4))
    list(one)
    one.epoch = two.epoch = other.epoch = 7
    flat = [np.concatenate([np.concatenate(parts) for parts in batches]) for batches in (one, two, other)]
    assert np.array_equal(flat[0], flat[1])
    assert not np.array_equal(flat[0], flat[2])


def test_impossible_budgets_and_short_sequences_are_refused():
    with pytest.raises(ValueError, match="less than one sequence of 12"):
        TrainingBatches(np.array([12, 3]), tokens=10, seed=0)
    with pytest.raises(ValueError, match="no user has the 2 events"):
        TrainingBatches(np.array([1, 1]), tokens=10, seed=0, minimum=2)


@pytest.mark.parametrize(("ranks", "accumulate"), [(1, 1), (2, 1), (3, 1), (1, 4), (2, 3)])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_ranks_and_micro_batches_share_the_same_steps_without_overlap(layout, ranks, accumulate):
    lengths = np.random.default_rng(0).integers(2, 40, 300)

    def batches(**share: int) -> TrainingBatches:
        if layout == "padded":
            return TrainingBatches(lengths, tokens=2000, seed=1, share=Share(**share))
        return PackedBatches(lengths, tokens=2000, size=64, seed=1, share=Share(**share))

    shares = [batches(rank=rank, ranks=ranks, accumulate=accumulate) for rank in range(ranks)]
    whole = [users_of(parts) for parts in batches()]
    shared = [[users_of(parts) for parts in share] for share in shares]
    assert {len(share) for share in shared} == {len(whole) * accumulate} == {len(share) for share in shares}
    for step, users in enumerate(whole):
        cells = [share[step * accumulate + micro] for share in shared for micro in range(accumulate)]
        assert sorted(np.concatenate(cells)) == sorted(users)
        sizes = [lengths[cell].sum() for cell in cells]
        assert max(sizes) - min(sizes) <= (64 if layout == "packed" else 2 * 40)  # a row, two users


def users_of(parts: list) -> np.ndarray:
    return np.concatenate([getattr(part, "users", part) for part in parts])


def test_a_step_of_fewer_users_than_ranks_leaves_some_without_a_part():
    shares = [TrainingBatches(np.full(5, 3), tokens=6, seed=0, share=Share(rank=rank, ranks=4)) for rank in range(4)]
    for parts in zip(*shares, strict=True):
        assert sorted(map(len, parts)) in ([0, 0, 1, 1], [0, 0, 0, 1])


def test_rows_of_a_share_are_those_of_the_step():
    data = on_device()
    one = PackedBatches(data.lengths, size=16, tokens=TOKENS, seed=0)
    shares = [PackedBatches(data.lengths, size=16, tokens=TOKENS, seed=0, share=Share(rank, 2)) for rank in range(2)]
    for (whole,), *parts in zip(one, *shares, strict=True):
        rows = [data.pack(*fields(part), shape=(len(part), part.width)).items.tolist() for (part,) in parts]
        assert sorted(rows[0] + rows[1]) == sorted(
            data.pack(*fields(whole), shape=(len(whole), whole.width)).items.tolist()
        )


def test_a_share_with_one_user_per_row_is_no_wider_than_its_users():
    """Models have positions for a window only, and rows of one user are read without segments."""
    lengths = np.array([11] * 40 + [8] * 3)
    shares = [PackedBatches(lengths, size=16, tokens=700, seed=0, share=Share(rank, 8)) for rank in range(8)]
    parts = [part for share in shares for parts in share for part in parts]
    assert any(len(part) == len(part.users) for part in parts)
    for part in parts:
        assert part.width == max((part.start + lengths[part.users] - 1).tolist())


def fields(part) -> tuple:
    return part.users, part.row, part.start, part.segment


def test_a_step_has_the_requested_parts_or_more_where_memory_needs_them(monkeypatch):
    lengths = np.random.default_rng(0).integers(2, 40, 500)
    steps = {parts: list(TrainingBatches(lengths, tokens=2000, seed=1, parts=parts)) for parts in (1, 8)}
    assert {len(step) for step in steps[1]} == {1}
    assert {len(step) for step in steps[8]} == {8}
    monkeypatch.setattr(module, "MAX_PADDED_SIZE", 1000)
    cut = list(TrainingBatches(lengths, tokens=2000, seed=1, parts=1))
    for whole, other, parts in zip(steps[1], steps[8], cut, strict=True):
        assert len(parts) > 1
        assert sorted(np.concatenate(parts)) == sorted(np.concatenate(other)) == sorted(whole[0])


WINDOW, SIZE, TOKENS = 12, 20, 400


DATA = random_sequences(300, 40, longest=30, shortest=1, seed=3)


def features(data) -> dict[str, np.ndarray]:
    """Event features are event indices, user features user indices."""
    return {
        "event.x": np.arange(len(data.items), dtype=np.float32)[:, None],
        "user.x": np.arange(len(data), dtype=np.float32)[:, None],
    }


def on_device(data=DATA) -> DeviceSequences:
    of_all = features(Windows.of(data).sequences)
    return DeviceSequences(data, window=WINDOW + 1, device="cpu", features=of_all)


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


def test_packed_steps_have_the_inputs_and_targets_of_padded_ones():
    data = on_device()
    steps = packed(data)
    padded = TrainingBatches(data.lengths, tokens=TOKENS, seed=0, minimum=2)
    parts = [[data.batch(rows) for rows in step] for step in padded]
    assert len(steps) == len(parts) > 5
    for ours, theirs in zip(steps, parts, strict=True):  # the same users in every step
        packed_cells, padded_cells = cells(ours), [cell for part in theirs for cell in cells(part)]
        assert Counter(packed_cells) == Counter(padded_cells)
        assert max(Counter(packed_cells).values()) == 1
        assert ours.n_targets == sum(part.n_targets for part in theirs) == len(packed_cells)
        assert (ours.items > 0).sum() == len(packed_cells)  # every input has a target


@pytest.mark.parametrize("stride", [1, 5])
def test_context_is_input_but_no_target_in_either_layout(stride):
    rows = on_device(Windows.cut(DATA, WINDOW, stride))
    everybody = rows.batch(np.flatnonzero(rows.lengths > 1))
    expected = cells(everybody)
    assert sorted(cell for batch in packed(rows) for cell in cells(batch)) == sorted(expected)
    assert len(expected) == (DATA.lengths - 1).sum() == everybody.n_targets
    assert sum(batch.n_targets for batch in packed(rows)) == everybody.n_targets


def test_rows_contain_complete_users_one_after_the_other():
    for batch in packed(on_device()):
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
    data = on_device(sequences([list(range(1, 31)), [1, 2]]))
    (batch,) = packed(data)
    row = batch.items[batch.items > 2]
    assert row.tolist() == list(range(30 - WINDOW, 30))
    assert batch.next_items[batch.items > 2].tolist() == list(range(31 - WINDOW, 31))


def test_rows_depend_on_seed_and_epoch_only():
    data = on_device()
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
def test_rows_equal_first_fit_decreasing(seed):
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


def test_packing_leaves_little_padding():
    rng = np.random.default_rng(0)
    for longest in (50, 200):
        lengths = np.minimum(rng.geometric(1 / 30, 2000), longest)
        rows = pack_rows(np.arange(2000), lengths, longest)
        assert lengths.sum() / (len(rows) * rows.width) > 0.97


def test_rows_with_one_user_have_no_segments():
    data = on_device(sequences([list(range(1, 14))] * 3))
    (batch,) = packed(data, size=WINDOW)
    assert batch.segments is None and batch.segment_positions is None
    assert batch.items.tolist() == [list(range(1, 13))] * 3 and batch.lengths.tolist() == [12] * 3


def test_rows_that_are_too_short_are_refused():
    with pytest.raises(ValueError, match=r"train.row is 11, less than the 12 events"):
        PackedBatches(on_device().lengths, size=11, tokens=TOKENS, seed=0)
