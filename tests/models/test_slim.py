"""SLIM against scikit-learn's ElasticNet, one regression per item."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.layers.transition_graph import load_matrix
from recpipe.models import slim
from recpipe.models.registry import build

ITEMS = 40
DATA, NEW = random_sequences(150, ITEMS, longest=25, seed=1), random_sequences(25, ITEMS, seed=8)


def fitted(data=DATA, *, uses_weights: bool = False, **config):
    model = build("slim", config, n_items=ITEMS, max_length=30)
    model.uses_weights = uses_weights
    model.fit(data)
    return model


def weights(model) -> np.ndarray:
    return load_matrix(model.offsets, model.targets, model.weights).toarray()[1:, 1:]


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


def binary(data) -> np.ndarray:
    table = np.zeros((len(data), ITEMS))
    for u in range(len(data)):
        table[u, data.row(u) - 1] = 1
    return table


def regressions(x: np.ndarray, alpha: float, l1_ratio: float) -> np.ndarray:
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a dev dependency")
    table = np.zeros((ITEMS, ITEMS))
    for item in range(ITEMS):
        others = x.copy()
        others[:, item] = 0
        net = linear.ElasticNet(
            alpha=alpha, l1_ratio=l1_ratio, positive=True, fit_intercept=False, tol=1e-8, max_iter=10_000
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table[:, item] = net.fit(others, x[:, item]).coef_
    return table


@pytest.mark.parametrize(("alpha", "l1_ratio"), [(0.01, 0.1), (0.001, 0.01), (0.05, 0.5), (1e-4, 1e-3), (0.01, 1.0)])
def test_weights_are_those_of_scikit_learns_elastic_net(alpha, l1_ratio):
    expected = regressions(binary(DATA), alpha, l1_ratio)
    model = fitted(alpha=alpha, l1_ratio=l1_ratio)
    np.testing.assert_allclose(weights(model), expected, atol=1e-3)
    np.testing.assert_allclose(scores(model, NEW), binary(NEW) @ expected, atol=5e-3)


def test_weights_of_events_are_the_entries_of_the_matrix():
    data = weighted(DATA)
    expected = regressions(weights_by_pair(data, ITEMS)[1], 0.01, 0.1)
    model = fitted(data, uses_weights=True, alpha=0.01, l1_ratio=0.1)
    np.testing.assert_allclose(weights(model), expected, atol=2e-3)


@pytest.mark.parametrize(("targets", "joining"), [(7, 2), (64, 32)])
def test_blocks_and_active_sets_change_little(targets, joining, monkeypatch):
    whole = weights(fitted())
    monkeypatch.setattr(slim, "TARGETS", targets)
    monkeypatch.setattr(slim, "JOINING", joining)
    np.testing.assert_allclose(weights(fitted()), whole, atol=1e-3)


def test_no_weight_is_negative_and_none_leads_to_the_item_itself():
    table = weights(fitted(alpha=1e-4, l1_ratio=1e-3))
    assert (table >= 0).all() and (np.diag(table) == 0).all()


def test_only_the_largest_weights_of_a_target_are_stored():
    whole, few = weights(fitted()), weights(fitted(neighbours=3))
    largest = np.sort(whole, axis=0)[-3:]
    np.testing.assert_array_equal(np.sort(few, axis=0)[-3:], largest)
    assert ((few > 0).sum(0) <= 3).all()


def test_users_of_one_event_and_empty_histories_give_ties():
    alone = fitted(sequences([[3], [5], [3]]))
    assert len(alone.weights) == 0 and (scores(alone, NEW) == 0).all()
    assert (scores(fitted(), sequences([[], [0]])) == 0).all()


def test_a_catalogue_beyond_the_memory_limit_is_refused_before_any_matrix():
    model = build("slim", {}, n_items=1_000_000, max_length=20)
    with pytest.raises(ValueError, match=r"slim needs 3,725.3 GiB .*memory_gib=3726"):
        model.fit(DATA)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"alpha": 0.0}, "greater than 0"), ({"l1_ratio": 0.0}, "more than 0"), ({"neighbours": 0}, "at least 1")],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(**config)
