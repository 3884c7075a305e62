"""Blocks of users, by which the scores of a large catalogue are bounded, change no list and no rank."""

from __future__ import annotations

import numpy as np
import pytest
from tests.models.test_models import DATA, ITEMS, build_model
from tests.synthetic import random_sequences

from recpipe.data.sequences import Fold
from recpipe.data.user_items import UserItems
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.top_k import tie_order
from recpipe.models import recommender
from recpipe.models.recommender import Scorer
from recpipe.models.registry import model_class, types

HISTORIES = random_sequences(30, ITEMS, longest=9, shortest=2, seed=3)
DENSE = [name for name in types() if getattr(model_class(name), "dense_queries", False)]
RNG = np.random.default_rng(0)
CANDIDATES = UserItems.of_lists([RNG.permutation(ITEMS)[: RNG.integers(3, 12)] + 1 for _ in range(30)])


@pytest.mark.parametrize("rows", [1, 4, 7, 1000])
@pytest.mark.parametrize("name", ["popular", "sasrec", "item_knn"])
def test_ranks_and_lists_are_those_of_a_sort_of_all_items(name, rows, monkeypatch):
    """Popular and item_knn give many equal scores, also between the last item of a list and the next."""
    monkeypatch.setattr(recommender, "SCORES_AT_ONCE", rows * (ITEMS + 1))
    model = build_model(name)
    assert isinstance(model, Scorer)
    last = HISTORIES.lengths - 1
    targets = HISTORIES.select(np.arange(len(HISTORIES)), last, last + 1)
    histories = HISTORIES.select(np.arange(len(HISTORIES)), np.zeros(len(HISTORIES), np.int64), last)
    ranking = rank_fold(model, Fold(histories, targets), exclude_seen=True, k=6)
    order, sizes = tie_order(ITEMS + 1).numpy(), []
    for users, scores in model.score_batches(histories, exclude_seen=True):
        sizes.append(len(users))
        for user, row in zip(users, scores.numpy(), strict=True):
            best = [item for item in np.lexsort((order, -row)) if row[item] > -np.inf]
            assert ranking.items[user].tolist() == [*best, *[0] * 6][:6]
            target = int(targets.items[user])
            assert ranking.rank[user] == (best.index(target) + 1 if target in best else 0)
            assert ranking.candidates[user] == len(best)
    assert max(sizes) <= rows and sum(sizes) == len(HISTORIES)


@pytest.mark.parametrize("name", DENSE)
def test_dense_queries_are_computed_for_few_users_at_once(name, monkeypatch):
    model = build_model(name)
    whole = {row: query for rows, query in _queries(model) for row, query in zip(rows, query, strict=True)}
    monkeypatch.setattr(recommender, "SCORES_AT_ONCE", 4 * (ITEMS + 1))
    for rows, queries in _queries(model):
        assert len(rows) <= 4
        for row, query in zip(rows, queries, strict=True):
            np.testing.assert_allclose(query, whole[row], rtol=1e-4, atol=1e-6)


def _queries(model):
    for rows, batch in model.history_batches(HISTORIES, all_scores=False):
        yield rows, model.query_vectors(batch).numpy()


def test_every_model_with_values_of_the_whole_catalogue_is_tested():
    assert DENSE == ["ials", "lightgcn", "mf", "nmf", "svd"]


@pytest.mark.parametrize("name", ["tiger", "parallel_tiger", "mql4grec"])
def test_candidates_of_users_are_masks_of_few_users_at_once(name, monkeypatch):
    model, masks = build_model(name), []
    items, scores = model.recommend(HISTORIES, 5, candidates=CANDIDATES)
    original = UserItems.mask
    monkeypatch.setattr(UserItems, "mask", lambda self, *rest: masks.append(len(self)) or original(self, *rest))
    monkeypatch.setattr(recommender, "SCORES_AT_ONCE", 3 * (ITEMS + 1))
    again, scores_again = model.recommend(HISTORIES, 5, candidates=CANDIDATES)
    np.testing.assert_array_equal(again, items)
    np.testing.assert_allclose(scores_again, scores, rtol=1e-4)
    assert masks and max(masks) <= 3 and sum(masks) == len(HISTORIES)


def test_these_data_have_ties():
    counts = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    assert len(np.unique(counts)) < ITEMS
