"""Top-k lists and ranks against a sort by score and tie order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.layers.top_k import rank_of, tie_order, top_k


def strict(scores: np.ndarray) -> list[list[int]]:
    order = tie_order(scores.shape[1]).numpy()
    return [sorted(range(scores.shape[1]), key=lambda i: (-row[i], order[i])) for row in scores]


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_ranks_and_top_k_follow_one_strict_order(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(-levels, levels, (40, 30)).astype(np.float32) / 3
    scores[scores == 0] = rng.choice([0.0, -0.0], (scores == 0).sum())
    scores[rng.random(scores.shape) < 0.1] = -np.inf
    expected = strict(scores)
    for k in (1, 7, 30, 50):
        items, values = top_k(torch.tensor(scores), k)
        for u, order in enumerate(expected):
            assert items[u].tolist() == [i if np.isfinite(scores[u, i]) else 0 for i in order[:k]]
            assert values[u].tolist() == scores[u, order[:k]].tolist()
    rows, columns = np.divmod(np.arange(scores.size), scores.shape[1])
    ranks = rank_of(torch.tensor(scores), torch.tensor(rows), torch.tensor(columns)).numpy().reshape(scores.shape)
    for u, order in enumerate(expected):
        for place, item in enumerate(order):
            assert ranks[u, item] == (place + 1 if np.isfinite(scores[u, item]) else 0)
    one_each = rank_of(torch.tensor(scores), torch.arange(40), torch.full((40,), 3)).numpy()
    np.testing.assert_array_equal(one_each, ranks[:, 3])


def test_a_constant_score_is_worth_no_more_than_chance():
    items = 400
    ranks = rank_of(torch.zeros(items, items), torch.arange(items), torch.arange(items))
    assert sorted(ranks.tolist()) == list(range(1, items + 1))
