"""Fusion of lists against dictionaries."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from recpipe.decoding.fusion import fuse


def random_lists(seed: int, users: int = 20, length: int = 6, items: int = 12):
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(2):
        rows = np.stack([rng.permutation(items)[:length] + 1 for _ in range(users)])
        scores = -np.sort(rng.exponential(size=(users, length)), 1)
        for u in range(users):
            end = rng.integers(0, length + 1)
            rows[u, end:], scores[u, end:] = 0, -np.inf
        lists.append((torch.from_numpy(rows), torch.from_numpy(scores).float()))
    return lists


def by_hand(lists, user: int, rule: str, weights, codes) -> dict[int, float]:
    by_list = [
        {
            int(item): (float(score), rank)
            for rank, (item, score) in enumerate(zip(items[user], scores[user], strict=True), 1)
            if item > 0
        }
        for items, scores in lists
    ]
    total = {}
    for item in set().union(*by_list):
        present = [m for m in range(len(by_list)) if item in by_list[m]]
        if rule == "mixture":
            mass = sum(weights[m] * math.exp(by_list[m][item][0]) for m in present)
            total[item] = math.log(mass) if mass else -math.inf
        elif rule == "reciprocal":
            total[item] = sum(weights[m] / (60 + by_list[m][item][1]) for m in present) or -math.inf
        else:
            mean = sum(by_list[m][item][0] / codes[m] for m in present) / len(present)
            total[item] = mean + (1 if len(present) == len(by_list) else 0)
    return {item: score for item, score in total.items() if score > -math.inf}


@pytest.mark.parametrize("rule", ["mixture", "reciprocal", "paper"])
@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)])
def test_against_dictionaries(rule, weights):
    lists = random_lists(3)
    items, scores = fuse(lists, 8, rule=rule, weights=weights, levels=(3, 4))
    for user in range(len(items)):
        expected = by_hand(lists, user, rule, weights, (3, 4))
        best = sorted(expected.values(), reverse=True)[:8]
        np.testing.assert_allclose(scores[user, : len(best)], best, atol=1e-5)
        assert (items[user, len(best) :] == 0).all() and torch.isneginf(scores[user, len(best) :]).all()
        for item, score in zip(items[user].tolist(), scores[user].tolist(), strict=True):
            assert item == 0 or score == pytest.approx(expected[item], abs=1e-5)
        real = [item for item in items[user].tolist() if item]
        assert len(real) == len(set(real))


def test_more_than_there_is_and_unknown_rules():
    lists = random_lists(1, length=2)
    items, scores = fuse(lists, 9, rule="paper", weights=(1, 1), levels=(3, 3))
    assert items.shape == scores.shape == (20, 9)
    with pytest.raises(ValueError, match="allowed: mixture, reciprocal, paper"):
        fuse(lists, 3, rule="mean", weights=(1, 1), levels=(3, 3))
