"""NMF: users against scikit-learn's transform and scipy's non-negative least squares."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, weighted, weights_by_pair

from recpipe.layers.interactions import item_counts
from recpipe.models.registry import build

ITEMS, DATA, NEW = 20, random_sequences(60, 20, longest=15, seed=3), random_sequences(40, 20, seed=9)
sklearn = pytest.importorskip("sklearn.decomposition", reason="nmf is fitted by scikit-learn")


def fitted(**config):
    model = build("nmf", {"factors": 6, **config}, n_items=ITEMS, max_length=20)
    model.fit(DATA)
    return model


def rows(data, scale=lambda c: c > 0) -> np.ndarray:
    actual = np.zeros((len(data), ITEMS + 1), np.float32)
    for u in range(len(data)):
        np.add.at(actual[u], data.row(u), 1)
    return scale(actual).astype(np.float32)


@pytest.mark.parametrize("config", [{}, {"penalty": 0.01}, {"penalty": 0.01, "l1_ratio": 0.7}])
@pytest.mark.filterwarnings("ignore:Maximum number of iterations")
def test_new_users_get_scikit_learns_transform(config):
    model, x = fitted(**config), rows(NEW)
    reference = sklearn.NMF(
        6, tol=1e-12, max_iter=5000, alpha_W=config.get("penalty", 0.0), l1_ratio=config.get("l1_ratio", 0.0)
    )
    reference.components_ = model.parts[:, 1:].numpy().astype(np.float32)
    reference._n_components = reference.n_components_ = 6
    reference.n_features_in_ = ITEMS
    expected = reference.transform(x[:, 1:])
    np.testing.assert_allclose(model.mixture(torch.from_numpy(x)).numpy(), expected, atol=2e-3)


def test_the_fold_in_is_the_non_negative_least_squares_solution():
    nnls = pytest.importorskip("scipy.optimize", reason="scipy comes with scikit-learn").nnls
    model, x = fitted(), rows(NEW)
    actual = model.mixture(torch.from_numpy(x)).numpy()
    parts = model.parts.double().numpy()
    for u in range(len(NEW)):
        _, least = nnls(parts.T, x[u].astype(float))
        assert np.linalg.norm(x[u] - actual[u] @ parts) <= least + 1e-4
    assert (actual >= 0).all()


@pytest.mark.parametrize(("scaling", "scale"), [("binary", lambda c: c > 0), ("log", np.log1p)])
def test_factors_are_scikit_learns_and_scores_their_product(scaling, scale):
    model = fitted(scaling=scaling)
    x = rows(DATA, scale)[:, 1:]
    reference = sklearn.NMF(6, init="nndsvda", random_state=0, max_iter=200).fit(x)
    np.testing.assert_allclose(model.parts[:, 1:], reference.components_, rtol=1e-3, atol=1e-4)
    assert (model.parts[:, 0] == 0).all()
    for actual, scores in model.score_batches(NEW, exclude_seen=False):
        mixture = model.mixture(torch.from_numpy(rows(NEW, scale)[actual]))
        np.testing.assert_allclose(scores[:, 1:], mixture @ model.parts[:, 1:], rtol=1e-4, atol=1e-5)


def test_an_empty_history_and_a_dead_part_do_no_harm():
    model = fitted()
    model.parts[2] = 0.0
    x = item_counts(torch.tensor([[0, 0], [3, 4]]), ITEMS)
    mixture = model.mixture(x)
    assert torch.isfinite(mixture).all() and (mixture[0] == 0).all() and (mixture[:, 2] == 0).all()


@pytest.mark.parametrize("config", [{"scaling": "tfidf"}, {"factors": 0}, {"penalty": -1.0}, {"l1_ratio": 2.0}])
def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        fitted(**config)


@pytest.mark.parametrize("scaling", ["binary", "log"])
def test_weights_are_the_entries_of_the_matrix(scaling):
    data = weighted(DATA)
    model = build("nmf", {"factors": 6, "scaling": scaling}, n_items=ITEMS, max_length=20)
    model.uses_weights = True
    model.fit(data)
    total, largest = weights_by_pair(data, ITEMS)
    x = np.log1p(total) if scaling == "log" else largest
    reference = sklearn.NMF(6, init="nndsvda", random_state=0, max_iter=200).fit(x)
    np.testing.assert_allclose(model.parts[:, 1:], reference.components_, rtol=1e-3, atol=1e-3)
