"""The Markov chain against its formula by loops."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences

from recpipe.layers.top_k import tie_order
from recpipe.models.registry import build

ITEMS = 15
DATA, NEW = random_sequences(40, ITEMS, longest=14, seed=5), random_sequences(25, ITEMS, seed=8)


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


def fitted(data=DATA, **config):
    model = build("markov", config, n_items=ITEMS, max_length=20)
    model.fit(data)
    return model


def probabilities(history: list[int], *, smoothing: float, last: int, decay: float) -> np.ndarray:
    """Next-item probabilities (I,) after a history, by loops over the training sequences."""
    follows, events = Counter(), Counter()
    for u in range(len(DATA)):
        row = DATA.row(u).tolist()
        events.update(row)
        follows.update(pairwise(row))
    background = {j: (events[j] + 1) / (sum(events.values()) + ITEMS) for j in range(1, ITEMS + 1)}
    weights = [decay**age for age in range(min(last, len(history)))]
    mixture = np.zeros(ITEMS)
    for weight, item in zip(weights, history[::-1], strict=False):
        total = sum(count for (first, _), count in follows.items() if first == item)
        for j, p in background.items():
            mixture[j - 1] += weight / sum(weights) * (follows[item, j] + smoothing * p) / (total + smoothing)
    return mixture if history else np.array(list(background.values()))


@pytest.mark.parametrize("config", [(10.0, 1, 0.5), (0.3, 3, 0.5), (200.0, 20, 0.9)])
def test_scores_are_the_log_probabilities_of_the_smoothed_chain(config):
    settings = dict(zip(("smoothing", "last", "decay"), config, strict=True))
    actual = scores(fitted(**settings), NEW)
    expected = [probabilities(NEW.row(u).tolist(), **settings) for u in range(len(NEW))]
    np.testing.assert_allclose(actual, np.log(expected), rtol=1e-4)
    np.testing.assert_allclose(np.exp(actual.astype(np.float64)).sum(1), 1, rtol=1e-5)


def test_without_history_or_transitions_items_are_ranked_by_popularity():
    popular = build("popular", {}, n_items=ITEMS, max_length=20)
    popular.fit(DATA)
    empty = sequences([[], [0, 0]])
    np.testing.assert_array_equal(fitted().recommend(empty, ITEMS)[0], popular.recommend(empty, ITEMS)[0])
    single = sequences([[3], [5], [3], []])  # a training graph without edges
    lists, _ = fitted(single).recommend(NEW, ITEMS, exclude_seen=False)
    ties = sorted(set(range(1, ITEMS + 1)) - {3, 5}, key=lambda item: tie_order(ITEMS + 1)[item])
    assert (lists == [3, 5, *ties]).all()


def test_much_smoothing_is_popularity_and_little_the_counts():
    popular = build("popular", {}, n_items=ITEMS, max_length=20)
    popular.fit(DATA)
    smooth = fitted(smoothing=1e6).recommend(NEW, 3, exclude_seen=False)[0]
    assert (smooth == popular.recommend(NEW, 3, exclude_seen=False)[0]).mean() > 0.8  # but for near ties
    sharp = np.exp(scores(fitted(smoothing=1e-6), sequences([[4]]))[0])
    following = Counter(b for u in range(len(DATA)) for a, b in pairwise(DATA.row(u)) if a == 4)
    assert {int(item) for item in np.flatnonzero(sharp > 1e-4) + 1} == {int(item) for item in following}


@pytest.mark.parametrize(
    ("config", "message"),
    [({"smoothing": 0.0}, "greater than 0"), ({"last": 0}, "at least 1"), ({"decay": 1.5}, "at most 1")],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(**config)
