"""PureSVD against decompositions of numpy and scikit-learn of the same matrix, built in loops."""

from __future__ import annotations

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.models.registry import build

ITEMS, DATA = 20, random_sequences(60, 20, longest=15, seed=3)


def counts(data) -> np.ndarray:
    actual = np.zeros((len(data), ITEMS + 1))
    for u in range(len(data)):
        for item in data.row(u):
            actual[u, item] += 1
    return actual


def matrix(scaling: str, data, trained, exponent: float = 0.3) -> np.ndarray:
    c, n = counts(data), (counts(trained) > 0).sum(0)
    if scaling == "binary":
        return (c > 0).astype(float)
    if scaling == "log":
        return np.log(1 + c)
    if scaling == "popularity":
        scaled = (c > 0) / np.sqrt(np.maximum(n, 1))  # columns of length 1 ...
        return scaled * np.sqrt(np.maximum(n, 1)) ** exponent  # ... then of their length to the power
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is a dev dependency")
    weigh = text.TfidfTransformer(norm=None, sublinear_tf=True).fit(counts(trained)[:, 1:])
    return np.concatenate([np.zeros((len(c), 1)), weigh.transform(c[:, 1:]).toarray()], 1)


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


def fitted(**config):
    model = build("svd", config, n_items=ITEMS, max_length=20)
    model.fit(DATA)
    return model


@pytest.mark.parametrize("scaling", ["binary", "log", "tfidf", "popularity"])
def test_known_and_new_users_are_projected_on_numpys_singular_vectors(scaling):
    model = fitted(factors=5, scaling=scaling, exponent=0.3)
    _, _, Vt = np.linalg.svd(matrix(scaling, DATA, DATA))
    V = Vt[:5].T
    for data in (DATA, random_sequences(30, ITEMS, seed=77)):
        expected = matrix(scaling, data, DATA) @ V @ V.T
        np.testing.assert_allclose(scores(model, data), expected[:, 1:], rtol=1e-3, atol=1e-4)


def test_known_users_get_scikit_learns_reconstruction():
    decomposition = pytest.importorskip("sklearn.decomposition", reason="scikit-learn is a dev dependency")
    reference = decomposition.TruncatedSVD(6, algorithm="arpack", random_state=0)
    x = matrix("binary", DATA, DATA)[:, 1:]
    expected = reference.inverse_transform(reference.fit_transform(x))
    np.testing.assert_allclose(scores(fitted(factors=6, scaling="binary"), DATA), expected, rtol=1e-3, atol=1e-4)


def test_all_factors_give_the_history_back():
    model = fitted(factors=99, scaling="log")
    assert model.factors.shape == (ITEMS + 1, ITEMS)
    history = sequences([[4, 4, 9]])
    np.testing.assert_allclose(scores(model, history)[0, [3, 8, 0]], [np.log(3), np.log(2), 0], atol=1e-4)


def test_the_exponent_one_is_binary():
    one, other = fitted(factors=4, scaling="popularity", exponent=1.0), fitted(factors=4, scaling="binary")
    np.testing.assert_array_equal(scores(one, DATA), scores(other, DATA))


@pytest.mark.parametrize("config", [{"scaling": "bm25"}, {"factors": 0}])
def test_bad_settings_are_refused(config):
    with pytest.raises(ValueError, match=f"{next(iter(config))} is"):
        fitted(**config)


@pytest.mark.parametrize("scaling", ["binary", "log", "popularity"])
def test_weights_are_the_entries_of_the_matrix(scaling):
    data = weighted(DATA)
    model = build("svd", {"factors": 5, "scaling": scaling, "exponent": 0.3}, n_items=ITEMS, max_length=20)
    model.uses_weights = True
    model.fit(data)
    total, largest = weights_by_pair(data, ITEMS)
    lengths = np.linalg.norm(largest, axis=0)  # of the columns

    def matrix_of(total: np.ndarray, largest: np.ndarray) -> np.ndarray:
        return {"binary": largest, "log": np.log(1 + total), "popularity": largest * lengths**-0.7}[scaling]

    _, _, Vt = np.linalg.svd(matrix_of(total, largest))
    for part in (data, weighted(random_sequences(30, ITEMS, seed=77), seed=5)):
        expected = matrix_of(*weights_by_pair(part, ITEMS)) @ Vt[:5].T @ Vt[:5]
        np.testing.assert_allclose(scores(model, part), expected, rtol=1e-3, atol=1e-4)
