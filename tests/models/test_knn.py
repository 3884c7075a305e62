"""Similarities, item_knn and user_knn against scipy's distances and loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, weighted, weights_by_pair

from recpipe.layers.interactions import PROFILES, SETS, SIMILARITIES, SMOOTHING, NeighbourConfig
from recpipe.models import item_knn
from recpipe.models.registry import build

distance = pytest.importorskip("scipy.spatial.distance", reason="scipy comes with the dev dependencies")
stats = pytest.importorskip("scipy.stats", reason="scipy comes with the dev dependencies")

ITEMS = 15
DATA, NEW = random_sequences(40, ITEMS, longest=14, seed=5), random_sequences(25, ITEMS, seed=8)
KINDS = [(s, p) for s in SIMILARITIES for p in PROFILES if not (p == "count" and s in SETS)]


def kullback(x: np.ndarray, y: np.ndarray) -> float:
    p, q = ((1 - SMOOTHING) * v / v.sum() + SMOOTHING / len(v) for v in (x, y))
    return 1 / (1 + stats.entropy(p, q) + stats.entropy(q, p))


ORACLE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cosine": lambda x, y: 1 - distance.cosine(x, y),
    "jaccard": lambda x, y: 1 - distance.jaccard(x > 0, y > 0),
    "correlation": lambda x, y: max(1 - distance.correlation(x, y), 0),
    "euclidean": lambda x, y: 1 / (1 + distance.euclidean(x, y)),
    "hamming": lambda x, y: 1 - distance.hamming(x > 0, y > 0),
    "manhattan": lambda x, y: 1 / (1 + distance.cityblock(x, y)),
    "bhattacharyya": lambda x, y: sum(np.sqrt(a / x.sum() * b / y.sum()) for a, b in zip(x, y, strict=True)),
    "kl": kullback,
}


def counts(data, profile: str = "count") -> np.ndarray:
    actual = np.zeros((len(data), ITEMS))
    for u in range(len(data)):
        for item in data.row(u):
            actual[u, item - 1] += 1
    return actual if profile == "count" else (actual > 0).astype(float)


def similar(name: str, x: np.ndarray, y: np.ndarray, shrinkage: float = 0.0) -> float:
    """Similarity with shrinkage as in recpipe.layers.interactions; 0 without common features."""
    common = ((x > 0) & (y > 0)).sum()
    if common == 0:
        return 0.0
    plain = ORACLE[name](x, y)
    if shrinkage == 0:
        return plain
    spread = {"cosine": np.linalg.norm(x) * np.linalg.norm(y), "jaccard": ((x > 0) | (y > 0)).sum()}
    spread["correlation"] = x.std() * y.std() * len(x)
    if name in spread:
        return plain * spread[name] / (spread[name] + shrinkage)
    return plain * common / (common + shrinkage)


def best(values: np.ndarray, k: int) -> np.ndarray:
    """All but the k greatest of each row set to 0."""
    selected = np.zeros_like(values)
    rows = np.arange(len(values))[:, None]
    top = np.argsort(-values, axis=1, kind="stable")[:, :k]
    selected[rows, top] = values[rows, top]
    return selected


def scores(model, data) -> np.ndarray:
    whole = np.empty((len(data), ITEMS + 1), np.float32)
    for rows, values in model.score_batches(data, exclude_seen=False):
        whole[rows] = values.numpy()
    return whole[:, 1:]


@pytest.mark.parametrize("shrinkage", [0.0, 4.0])
@pytest.mark.parametrize(("name", "profile"), KINDS)
def test_item_knn_sums_similarities_of_item_profiles(name, profile, shrinkage):
    config = {"neighbours": 99, "similarity": name, "profile": profile, "shrinkage": shrinkage}
    model = build("item_knn", config, n_items=ITEMS, max_length=20)
    model.fit(DATA)
    columns = counts(DATA, profile).T
    table = np.array([[similar(name, x, y, shrinkage) for y in columns] for x in columns])
    np.fill_diagonal(table, 0)
    np.testing.assert_allclose(scores(model, NEW), counts(NEW, "binary") @ table, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrinkage", [0.0, 4.0])
@pytest.mark.parametrize(("name", "profile"), KINDS)
def test_user_knn_lets_the_most_similar_users_vote(name, profile, shrinkage):
    config = {"neighbours": 40, "similarity": name, "profile": profile, "shrinkage": shrinkage}
    model = build("user_knn", config, n_items=ITEMS, max_length=20)
    model.fit(DATA)
    profiles, queries = counts(DATA, profile), counts(NEW, profile)
    table = np.array([[similar(name, x, y, shrinkage) for y in profiles] for x in queries])
    np.testing.assert_allclose(scores(model, NEW), table @ counts(DATA, "binary"), rtol=1e-4, atol=1e-4)


def tanimoto(x: np.ndarray, y: np.ndarray) -> float:
    return x @ y / (x @ x + y @ y - x @ y) if x @ y else 0.0


@pytest.mark.parametrize(
    ("name", "profile"), [("jaccard", "binary"), *((s, p) for s, p in KINDS if s not in SETS and s != "kl")]
)
def test_profiles_hold_the_weights_of_events(name, profile):
    """The largest of a pair, or their sum; items of the history and votes count by the largest."""
    data, new = weighted(DATA), weighted(NEW, seed=1)
    (total, largest), (new_total, new_largest) = weights_by_pair(data, ITEMS), weights_by_pair(new, ITEMS)
    x, queries = (total, new_total) if profile == "count" else (largest, new_largest)
    measure = tanimoto if name == "jaccard" else lambda a, b: similar(name, a, b)
    expected = {}
    table = np.array([[measure(a, b) for b in x.T] for a in x.T])
    np.fill_diagonal(table, 0)
    expected["item_knn"] = new_largest @ table
    votes = np.array([[measure(a, b) if a.any() and b.any() else 0.0 for b in x] for a in queries])
    expected["user_knn"] = votes @ largest
    for type_, values in expected.items():
        config = {"neighbours": 99, "similarity": name, "profile": profile, "shrinkage": 0.0}
        model = build(type_, config, n_items=ITEMS, max_length=20)
        model.uses_weights = True
        model.fit(data)
        np.testing.assert_allclose(scores(model, new), values, rtol=1e-4, atol=1e-4)
        other = build(type_, config, n_items=ITEMS, max_length=20)
        other.uses_weights = True
        other.load_tensors(model.state_dict())
        np.testing.assert_array_equal(scores(model, new), scores(other, new))


def test_tiny_weights_whose_products_vanish_are_no_neighbours():
    data = replace(sequences([[1, 2], [1, 2], [2, 3]]), weights=np.full(6, 1e-30, np.float32))
    for type_ in ("item_knn", "user_knn"):
        model = build(type_, {"similarity": "euclidean"}, n_items=3, max_length=5)
        model.fit(data)
        assert np.isfinite(model.recommend(sequences([[1]]), 3)[1][0, :2]).all()


@pytest.mark.parametrize("neighbours", [1, 7])
def test_only_the_nearest_are_used(neighbours):
    config = {"neighbours": neighbours, "similarity": "kl", "shrinkage": 0.5}  # without ties, unlike most
    rng = np.random.default_rng(0)
    data = sequences([(rng.permutation(ITEMS)[: rng.integers(2, 12)] + 1).tolist() for _ in range(40)])
    users, items = (build(name, config, n_items=ITEMS, max_length=20) for name in ("user_knn", "item_knn"))
    users.fit(data)
    items.fit(data)
    x, queries = counts(data, "binary"), counts(NEW, "binary")
    table = np.array([[similar("kl", a, b, 0.5) for b in x] for a in queries])
    untied = [u for u in range(len(NEW)) if np.diff(np.sort(table[u])[::-1])[neighbours - 1] < -1e-6]
    assert len(untied) > 10
    expected = best(table, neighbours) @ x
    np.testing.assert_allclose(scores(users, NEW)[untied], expected[untied], rtol=1e-4, atol=1e-5)
    between = np.array([[similar("kl", a, b, 0.5) for b in x.T] for a in x.T])
    np.fill_diagonal(between, 0)
    selected = np.sort(best(between, neighbours), 1)[:, ::-1][:, :neighbours]
    np.testing.assert_allclose(items.similarity[1:, :neighbours], selected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("neighbours", [1, 4, 99])
@pytest.mark.parametrize(("similarity", "profile"), KINDS)
def test_sparse_neighbours_of_large_catalogues_are_the_best_of_dense_rows(similarity, profile, neighbours, monkeypatch):
    config = {"neighbours": neighbours, "similarity": similarity, "profile": profile}
    everything = build("item_knn", {**config, "neighbours": 99}, n_items=ITEMS, max_length=20)
    everything.fit(DATA)
    table = np.zeros((ITEMS + 1, ITEMS + 1), np.float32)
    np.put_along_axis(table, everything.near.numpy(), everything.similarity.numpy(), 1)
    for products in (1, 50, 1 << 23):
        monkeypatch.setattr(item_knn, "DENSE_ITEMS", 0)
        monkeypatch.setattr(item_knn, "PRODUCTS", products)
        model = build("item_knn", config, n_items=ITEMS, max_length=20)
        model.fit(DATA)
        order = np.argsort(-table, axis=1, kind="stable")[:, : min(neighbours, ITEMS)]
        values = np.take_along_axis(table, order, 1)
        np.testing.assert_array_equal(model.similarity, values)
        np.testing.assert_array_equal(model.near, np.where(values > 0, order, 0))
        assert model.near.dtype == torch.int32
        if neighbours == 99:
            np.testing.assert_allclose(scores(model, NEW), scores(everything, NEW), rtol=1e-5)


def test_item_knn_reads_the_last_events_only():
    config = {"neighbours": 99, "shrinkage": 3.0}
    whole, last = (build("item_knn", {**config, "last": n}, n_items=ITEMS, max_length=20) for n in (None, 2))
    whole.fit(DATA)
    last.fit(DATA)
    np.testing.assert_array_equal(scores(last, NEW), scores(whole, NEW.last(2)))


def test_blocks_change_nothing(monkeypatch):
    whole = {}
    for size in (1 << 26, 100):
        for module in ("item_knn", "user_knn"):
            monkeypatch.setattr(f"recpipe.models.{module}.DENSE", size)
            model = build(module, {"neighbours": 5}, n_items=ITEMS, max_length=20)
            model.fit(DATA)
            whole.setdefault(module, []).append(scores(model, NEW))
    for one, other in whole.values():
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_a_bundle_of_users_serves_strangers_without_the_training_data():
    model = build("user_knn", {}, n_items=ITEMS, max_length=20)
    model.fit(DATA)
    other = build("user_knn", {}, n_items=ITEMS, max_length=20)
    assert scores(other, NEW).sum() == 0  # queries before it is loaded, which must leave nothing behind
    other.load_tensors(model.state_dict())
    np.testing.assert_array_equal(scores(model, NEW), scores(other, NEW))
    assert set(model.state_dict()) == {"offsets", "items", "counts"}
    assert model.offsets.tolist()[-1] == len(model.items) < len(DATA.items) + 1


def test_who_shares_nothing_is_no_neighbour():
    data = sequences([[1, 2], [3, 4]])
    for name in SIMILARITIES:
        model = build("user_knn", {"similarity": name, "shrinkage": 0.0}, n_items=ITEMS, max_length=20)
        model.fit(data)
        actual = scores(model, sequences([[1], [15], []]))
        assert actual[0, 1] > 0 and actual[0, 2] == 0
        assert (actual[1:] == 0).all()


@pytest.mark.parametrize("type_", ["item_knn", "user_knn"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"similarity": "cosinus"}, "allowed: cosine"),
        ({"profile": "ratings"}, "allowed: binary, count"),
        ({"similarity": "jaccard", "profile": "count"}, "compares sets"),
        ({"shrinkage": -1.0}, "at least 0"),
        ({"neighbours": 0}, "at least 1"),
    ],
)
def test_bad_settings_are_refused(type_, config, message):
    with pytest.raises(ValueError, match=message):
        build(type_, config, n_items=ITEMS, max_length=20)


def test_the_kernel_of_kl_is_zero_where_the_profile_is():
    measure = NeighbourConfig(similarity="kl", profile="count")
    first, second = measure.encode(torch.tensor([0.0, 2.0]), torch.tensor(2.0), 2)
    assert first[0] == 0 and second[0] == 0 and second[1] > 0
