"""Pairs, counts and negatives against loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.data.batches import DeviceSequences
from recpipe.layers.interactions import PairBatches, history_values, item_counts, pair_values, user_item_pairs

CPU = torch.device("cpu")


def test_pairs_are_the_distinct_events_with_their_numbers():
    pairs = user_item_pairs(sequences([[3, 1, 3], [], [2]]), 4, CPU)
    assert pairs.user.tolist() == [0, 0, 2]
    assert pairs.item.tolist() == [1, 3, 2]
    assert pairs.count.tolist() == [1, 2, 1]
    expected = [[0, 1, 0, 2, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]
    assert pairs.matrix(pairs.count).to_dense().tolist() == expected


def test_pairs_have_the_sum_and_the_maximum_of_the_weights_of_their_events():
    data = weighted(random_sequences(20, 9))
    pairs, (total, largest) = user_item_pairs(data, 9, CPU), weights_by_pair(data, 9)
    assert 0 < len(pairs) == (largest > 0).sum() < len(user_item_pairs(replace(data, weights=None), 9, CPU))
    np.testing.assert_allclose(pairs.matrix(pairs.count).to_dense()[:, 1:], total, rtol=1e-6)
    np.testing.assert_array_equal(pairs.matrix(pairs.weight).to_dense()[:, 1:], largest)
    relative = pairs.relative_weight()
    assert relative.mean().item() == pytest.approx(1) and len((relative / pairs.weight).unique()) == 1
    assert replace(pairs, weight=torch.ones(len(pairs))).relative_weight() is None


@pytest.mark.parametrize("scaling", ["binary", "count", "log", "tfidf"])
def test_histories_have_the_values_of_pairs(scaling):
    data = weighted(random_sequences(20, 9, longest=20), seed=1)
    batch = DeviceSequences(data, window=20, device="cpu").batch(np.arange(20))
    pairs, (c, w) = user_item_pairs(data, 9, CPU), weights_by_pair(data, 9)
    with np.errstate(all="ignore"):
        expected = {"binary": w, "count": c, "log": np.log(1 + c), "tfidf": w * (1 + np.log(c / w))}[scaling]
    values = history_values(batch, 9, scaling)
    np.testing.assert_allclose(values[:, 1:], np.nan_to_num(expected), rtol=1e-5)
    trained = pairs.matrix(pair_values(pairs.count, pairs.weight, scaling)).to_dense()
    torch.testing.assert_close(values, trained)


def test_counts_leave_padding_out():
    items = torch.tensor([[2, 2, 1], [4, 0, 0]])
    assert item_counts(items, 4).tolist() == [[0, 1, 2, 0, 0], [0, 0, 0, 0, 1]]
    assert item_counts(items[:, :0], 4).sum() == 0


def test_an_epoch_is_every_pair_once_with_items_the_user_does_not_have():
    data = random_sequences(40, 30, longest=12)
    pairs = user_item_pairs(data, 30, CPU)
    batches = PairBatches(pairs, size=50, negatives=3, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        parts = list(batches)
        assert all(weights is None for *_, weights in parts)
        user, item, negatives = (torch.cat(part) for part in [*zip(*parts, strict=True)][:3])
        assert [len(part[0]) for part in parts[:-1]] == [50] * (len(parts) - 1)
        assert sorted(zip(user.tolist(), item.tolist(), strict=True)) == list(
            zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)
        )
        assert (user.diff() < 0).any()
        assert negatives.shape == (len(pairs), 3) and negatives.min() >= 1 and negatives.max() <= 30
        for owner, drawn in zip(user.tolist(), negatives.tolist(), strict=True):
            assert not set(drawn) & set(data.row(owner).tolist())


def test_drawn_items_are_uniform_over_what_the_user_does_not_have():
    pairs = user_item_pairs(sequences([[1, 2, 3, 4, 5] * 200, [6]]), 10, CPU)
    batches = PairBatches(pairs, size=5, negatives=20_000, generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([part[2][part[0] == 0].flatten() for part in batches])
    share = np.bincount(drawn.numpy(), minlength=11) / len(drawn)
    np.testing.assert_allclose(share[6:], 0.2, atol=0.01)
    np.testing.assert_allclose(share[1:6], 2**-9 / 10, atol=0.002)  # nine draws: what is left of them


def test_the_same_generator_draws_the_same_epochs():
    pairs = user_item_pairs(random_sequences(20, 15), 15, CPU)
    runs = [
        [torch.cat([part[2] for part in batches]) for _ in range(2)]
        for batches in (
            PairBatches(pairs, size=7, negatives=2, generator=torch.Generator().manual_seed(4)) for _ in range(2)
        )
    ]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(*runs[0])
