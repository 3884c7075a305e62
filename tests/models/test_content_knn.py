"""Content kNN against a loop over events; its nearest items against the matrix product."""

from __future__ import annotations

import numpy as np
import pytest
from tests.synthetic import catalogue, random_sequences, sequences, side_of

from recpipe.models.registry import build

ITEMS, WINDOW = 25, 10
DATA = random_sequences(40, ITEMS, longest=16, seed=1)


def build_model(vectors: str = "text", **config):
    return build("content_knn", config, n_items=ITEMS, max_length=WINDOW, side=side_of(DATA, ITEMS, vectors=vectors))


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


def vector_of(item: int, names: list[str], *, normalise: bool) -> np.ndarray | None:
    vectors = [catalogue(ITEMS)[1][name] for name in names]
    if not vectors[0][1][item - 1]:
        return None
    parts = [matrix[item - 1] for matrix, _ in vectors]
    return np.concatenate([part / np.linalg.norm(part) if normalise else part for part in parts]) / len(parts) ** 0.5


@pytest.mark.parametrize("vectors", ["text", "text+image"])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(("last", "decay"), [(1, 1.0), (3, 1.0), (3, 0.5), (None, 0.8)])
def test_scores_are_products_with_the_weighted_mean_of_the_latest_vectors(last, decay, normalise, vectors):
    actual = scores(build_model(vectors, last=last, decay=decay, normalise=normalise), DATA)
    vector = {i: vector_of(i, vectors.split("+"), normalise=normalise) for i in range(1, ITEMS + 1)}
    for u in range(len(DATA)):
        latest = [vector[i] for i in DATA.row(u)[-WINDOW:] if vector[i] is not None][::-1][:last]
        weights = decay ** np.arange(len(latest))
        query = sum(w * v for w, v in zip(weights, latest, strict=True)) / weights.sum()
        known = np.array([vector[i] is not None for i in vector])
        expected = [query @ v for v in vector.values() if v is not None]
        np.testing.assert_allclose(actual[u][known], expected, rtol=1e-4, atol=1e-5)
        assert actual[u][~known].max() < min(expected) and np.isfinite(actual[u]).all()


def test_a_history_without_vectors_ties_all_that_have_one():
    without = [i for i in range(1, ITEMS + 1) if vector_of(i, ["text"], normalise=True) is None]
    actual = scores(build_model(), sequences([[], without]))
    with_vector = np.isin(np.arange(1, ITEMS + 1), without, invert=True)
    assert (actual[:, with_vector] == 0).all() and (actual[:, ~with_vector] == -1).all()


@pytest.mark.parametrize("k", [4, 40])
def test_neighbours_by_faiss_are_those_of_the_matrix_product(k):
    pytest.importorskip("faiss", reason="faiss comes with recpipe, not with the library half alone")
    model = build_model()
    items = np.arange(1, ITEMS + 1)
    near, products = model.nearest(items, k)
    assert near.shape == products.shape
    product = (model.vectors @ model.vectors.T).numpy()
    present = model.present.numpy()
    for row, item in enumerate(items):
        others = [i for i in np.flatnonzero(present) if i != item] if present[item] else []
        best = sorted(others, key=lambda i: -product[item, i])[:k]
        assert near[row][: len(best)].tolist() == best
        np.testing.assert_allclose(products[row][: len(best)], product[item, best], rtol=1e-5)
        assert not near[row][len(best) :].any() and np.isneginf(products[row][len(best) :]).all()


def test_a_model_without_its_vectors_or_with_more_than_them_is_refused():
    with pytest.raises(ValueError, match=r"needs side\.vectors"):
        build("content_knn", {}, n_items=ITEMS, max_length=WINDOW)
    more = side_of(DATA, ITEMS, vectors="text", items="price")
    with pytest.raises(ValueError, match=r"set side\.items=none"):
        build("content_knn", {}, n_items=ITEMS, max_length=WINDOW, side=more)


@pytest.mark.parametrize(
    ("config", "message"), [({"last": 0}, "last is 0"), ({"decay": 0.0}, "decay is 0"), ({"decay": 1.1}, "1.1")]
)
def test_settings_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build_model(**config)
