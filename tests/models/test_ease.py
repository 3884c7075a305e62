"""EASE against numpy's inverse, and against the optimality conditions of its objective."""

from __future__ import annotations

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.layers import item_pairs
from recpipe.models.registry import build

ITEMS = 15
DATA, NEW = random_sequences(40, ITEMS, longest=14, seed=5), random_sequences(25, ITEMS, seed=8)


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


def fitted(data=DATA, *, uses_weights: bool = False, **config):
    model = build("ease", {"penalty": 5.0, **config}, n_items=ITEMS, max_length=20)
    model.uses_weights = uses_weights
    model.fit(data)
    return model


def counts(data) -> np.ndarray:
    table = np.zeros((len(data), ITEMS))
    for u in range(len(data)):
        np.add.at(table[u], data.row(u) - 1, 1)
    return table


SCALING = {"binary": lambda c: (c > 0).astype(float), "log": np.log1p, "count": lambda c: c}


def closed_form(x: np.ndarray, penalty: float) -> np.ndarray:
    """Equation 8 of the paper."""
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(ITEMS))
    b = np.eye(ITEMS) - inverse @ np.diag(1 / np.diag(inverse))
    np.fill_diagonal(b, 0)
    return b


@pytest.mark.parametrize("scaling", SCALING)
def test_known_and_new_users_are_scored_by_the_closed_form(scaling):
    model, x = fitted(scaling=scaling), SCALING[scaling](counts(DATA))
    for data in (DATA, NEW):
        expected = SCALING[scaling](counts(data)) @ closed_form(x, 5.0)
        np.testing.assert_allclose(scores(model, data), expected, rtol=1e-4, atol=1e-5)


def test_the_weights_fulfil_the_conditions_of_the_objective():
    """The gradient of ‖X − X B‖² + λ‖B‖² is 0 off the diagonal, and the diagonal of B is 0."""
    b, x = fitted().weights.double().numpy()[1:, 1:], SCALING["binary"](counts(DATA))
    gradient = x.T @ (x @ b - x) + 5.0 * b
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-4 and (np.diag(b) == 0).all()


def test_weights_of_events_are_the_entries_of_the_matrix():
    data, new = weighted(DATA), weighted(NEW, seed=3)
    expected = weights_by_pair(new, ITEMS)[1] @ closed_form(weights_by_pair(data, ITEMS)[1], 5.0)
    np.testing.assert_allclose(scores(fitted(data, uses_weights=True), new), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 40, 1 << 24])
def test_blocks_change_nothing(size, monkeypatch):
    whole = fitted().weights
    monkeypatch.setattr(item_pairs, "BLOCK", size)
    monkeypatch.setattr("recpipe.models.ease.BLOCK", size)
    np.testing.assert_allclose(fitted().weights, whole, rtol=1e-5, atol=1e-7)


def test_users_of_one_event_and_empty_histories_give_ties():
    alone = fitted(sequences([[3], [5], [3]]))
    assert (alone.weights == 0).all()
    assert (scores(alone, NEW) == 0).all()
    assert (scores(fitted(), sequences([[], [0]])) == 0).all()


def test_a_catalogue_beyond_the_memory_limit_is_refused_before_any_matrix():
    model = build("ease", {}, n_items=1_000_000, max_length=20)
    with pytest.raises(ValueError, match=r"needs 11,175.9 GiB .* 1,000,000 items.*memory_gib=11176.*item_knn or ials"):
        model.fit(DATA)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"penalty": 0.0}, "greater than 0"), ({"memory_gib": -1.0}, "greater than 0"), ({"scaling": "tfidf"}, "allowed")],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(**config)
