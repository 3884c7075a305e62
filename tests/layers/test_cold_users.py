"""Fallback for cold users: popularity by segment against loops, novelty, clusters, incomplete profiles."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.sequences import Sequences
from recpipe.layers.cold_users import ColdUsers, k_means
from recpipe.layers.top_k import top_k
from recpipe.models.registry import build

ITEMS, USERS = 30, 90
RNG = np.random.default_rng(5)
COUNTRY = [None if n % 9 == 8 else "NDB"[n % 3] for n in range(USERS)]
AGE = [None if n % 10 == 9 else int(18 + (n * 7) % 61) for n in range(USERS)]
HEIGHT = RNG.normal(size=USERS).tolist()


def skewed(users: int = USERS, *, items: int = ITEMS) -> Sequences:
    """Histories in which low indices are popular, and users of one country share a taste."""
    weight = 1 / np.arange(1, items + 1)
    rows = []
    for u in range(users):
        taste = np.roll(weight, 5 * (u % 3)) + 0.3 * weight
        rows.append(RNG.choice(items - 2, 12, p=(taste[:-2] / taste[:-2].sum())) + 1)
    return sequences([row.tolist() for row in rows])


def described(data: Sequences, **columns: list) -> Sequences:
    table = {"user_id": pa.array(data.users, pa.string()), **{name: pa.array(c) for name, c in columns.items()}}
    return data.with_profiles(pa.table(table))


DATA = described(skewed(), country=COUNTRY, age=AGE, height=HEIGHT)


def cold_user(**profile) -> Sequences:
    """One user without history."""
    return described(sequences([[]]), **{name: [value] for name, value in profile.items()})


def fitted(data: Sequences = DATA, **config) -> ColdUsers:
    return ColdUsers(ColdUsersConfig(**config), n_items=ITEMS).fit(data, seed=3)


def answer(model: ColdUsers, user: Sequences) -> np.ndarray:
    return model.scores(model.segments(user))[0, 1:].numpy()


def by_hand(users: list[int], *, smoothing: float, since: int | None = None) -> np.ndarray:
    """log p_s, from loops over events; ``users`` are those of the segment."""

    def events(u: int) -> list[int]:
        times = DATA.timestamps[DATA.offsets[u] : DATA.offsets[u + 1]]
        return [int(i) for i, t in zip(DATA.row(u), times, strict=True) if since is None or t > since]

    everyone = Counter(item for u in range(USERS) for item in events(u))
    segment = Counter(item for u in users for item in events(u))
    total, size, actual = sum(everyone.values()), sum(segment.values()), []
    for i in range(1, ITEMS + 1):
        p = (everyone[i] + 1 / ITEMS) / (total + 1)
        actual.append(np.log((segment[i] + smoothing * p) / (size + smoothing)))
    return np.array(actual)


def test_counts_are_sums_of_weights_over_their_mean():
    """Whole weights are events that occur as often, but for the scale."""
    times = RNG.integers(0, 4, len(DATA.items))
    rows = [DATA.row(u).repeat(times[DATA.offsets[u] : DATA.offsets[u + 1]]).tolist() for u in range(USERS)]
    repeated = fitted(described(sequences(rows), country=COUNTRY), segments="country")
    model = fitted(replace(DATA, weights=times.astype(np.float32)), segments="country")
    torch.testing.assert_close(model.counts, (repeated.counts / times.mean()).float())
    assert model.items[model.times > 0].tolist() == repeated.items.tolist()
    torch.testing.assert_close(model.times[model.times > 0], (repeated.times / times.mean()).float())
    equal = fitted(replace(DATA, weights=np.full(len(DATA.items), 7, np.float32)), segments="country")
    for user in (cold_user(country="N"), cold_user(country=None)):
        np.testing.assert_array_equal(answer(equal, user), answer(fitted(segments="country"), user))
    knn = build("item_knn", {}, n_items=ITEMS, max_length=5)
    knn.fit(DATA)
    knn.cold_users = model
    other = build("item_knn", {}, n_items=ITEMS, max_length=5)
    other.cold_users = ColdUsers.from_dict(model.to_dict(), n_items=ITEMS)
    other.load_tensors(knn.state_dict())
    np.testing.assert_array_equal(
        answer(other.cold_users, cold_user(country="D")), answer(model, cold_user(country="D"))
    )


def test_without_segments_it_is_the_popularity_of_all_and_ordered_as_popular_orders():
    model = fitted(sequences([row.tolist() for row in map(DATA.row, range(USERS))]))
    np.testing.assert_allclose(answer(model, cold_user()), by_hand([], smoothing=100), rtol=1e-5)
    assert np.exp(answer(model, cold_user()).astype(float)).sum() == pytest.approx(1, abs=1e-5)
    popular = build("popular", {}, n_items=ITEMS, max_length=5)
    popular.fit(DATA)
    ours, _ = top_k(model.scores(model.segments(cold_user())), ITEMS)
    theirs, _ = popular.recommend(sequences([[]]), ITEMS)
    assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("smoothing", [0.5, 100.0])
def test_a_segment_counts_the_events_of_its_users(smoothing):
    model = fitted(segments="country", smoothing=smoothing)
    for country in "NDB":
        users = [u for u in range(USERS) if COUNTRY[u] == country]
        np.testing.assert_allclose(
            answer(model, cold_user(country=country)), by_hand(users, smoothing=smoothing), rtol=1e-5
        )


def test_columns_are_combined_and_many_numbers_are_cut_into_quantiles():
    model = fitted(segments="country+age", bins=3)
    ages = [age for age in AGE if age is not None]
    edges = np.quantile(ages, [1 / 3, 2 / 3])
    for u in range(0, USERS, 4):
        if COUNTRY[u] is None or AGE[u] is None:
            continue
        alike = [
            v
            for v in range(USERS)
            if COUNTRY[v] == COUNTRY[u]
            and AGE[v] is not None
            and np.searchsorted(edges, AGE[v]) == np.searchsorted(edges, AGE[u])
        ]
        actual = answer(model, cold_user(country=COUNTRY[u], age=AGE[u]))
        np.testing.assert_allclose(actual, by_hand(alike, smoothing=100), rtol=1e-5)


@pytest.mark.parametrize(
    "profile", [{"country": "X"}, {"country": None}, {"other": "N"}, {}], ids=["new", "null", "other", "none"]
)
def test_who_is_in_no_segment_gets_what_is_popular_overall(profile):
    actual = answer(fitted(segments="country"), cold_user(**profile))
    np.testing.assert_allclose(actual, by_hand([], smoothing=100), rtol=1e-5)


def test_a_combination_that_training_never_saw_gets_what_is_popular_overall():
    data = described(sequences([[1, 2], [3, 3]]), a=["x", "y"], b=["p", "q"])
    model = fitted(data, segments="a+b")
    assert model.segments(described(sequences([[], []]), a=["x", "y"], b=["q", "q"])).tolist() == [2, 1]


def loops(data: Sequences, chain: list[list[int]], smoothing: float) -> np.ndarray:
    """log p, smoothed from the whole catalogue down a chain of groups of users, by loops over events."""
    total = Counter(int(item) for u in range(USERS) for item in data.row(u))
    p = {i: (total[i] + 1 / ITEMS) / (total.total() + 1) for i in range(1, ITEMS + 1)}
    for users in chain:
        group = Counter(int(item) for u in users for item in data.row(u))
        p = {i: (group[i] + smoothing * p[i]) / (group.total() + smoothing) for i in p}
    return np.log(list(p.values()))


@pytest.mark.parametrize("smoothing", [2.0, 100.0])
def test_with_a_hierarchy_a_segment_is_smoothed_towards_its_parent_and_that_towards_all(smoothing):
    """Three columns; users who lack one, or whose combination is new, are in the deepest segment there is."""
    left = [n % 4 != 0 for n in range(USERS)]
    data = described(skewed(), country=COUNTRY, age=AGE, left=left)
    model = fitted(data, segments="country+age+left", bins=3, smoothing=smoothing, hierarchy=True)
    edges = np.quantile([age for age in AGE if age is not None], [1 / 3, 2 / 3])
    ages = [None if age is None else int(np.searchsorted(edges, age)) for age in AGE]
    countries = [u for u in range(USERS) if COUNTRY[u] == "D"]
    old = [u for u in countries if ages[u] == 2]
    right = [u for u in old if not left[u]]
    assert 0 < len(right) < len(old) < len(countries)
    top = {"country": "D", "age": 99, "left": False}
    for profile, chain in (
        (top, [countries, old, right]),
        (top | {"left": None}, [countries, old]),
        (top | {"age": None}, [countries]),  # the last column alone is no segment
        ({"country": "D"}, [countries]),
        (top | {"country": None}, []),
        (top | {"country": "X"}, []),
    ):
        np.testing.assert_allclose(answer(model, cold_user(**profile)), loops(data, chain, smoothing), rtol=2e-5)
    assert (model.scores(model.segments(data))[:, 1:].exp().sum(1) - 1).abs().max() < 1e-5


def test_a_pair_that_training_lacks_is_in_the_segment_of_its_first_column():
    data = described(sequences([[1, 2], [3, 3], [4]]), a=["x", "y", "y"], b=["p", "q", None])
    model = fitted(data, segments="a+b", hierarchy=True, smoothing=1e-6)
    for profile, best in ((("x", "q"), {1, 2}), (("y", "p"), {3}), (("y", "q"), {3}), (("x", "p"), {1, 2})):
        row = answer(model, cold_user(a=profile[0], b=profile[1]))
        assert set((np.flatnonzero(row > row.max() - 1e-3) + 1).tolist()) == best
    assert answer(model, cold_user(a="y", b="p"))[3] == pytest.approx(np.log(1 / 3), abs=1e-3)  # events of all in y
    assert answer(model, cold_user(a="y", b="q"))[3] < -10


def test_one_column_has_the_same_numbers_with_a_hierarchy_and_without():
    plain, tree = fitted(segments="country"), fitted(segments="country", hierarchy=True)
    np.testing.assert_allclose(tree.scores(tree.segments(DATA)), plain.scores(plain.segments(DATA)), rtol=1e-5)


def test_columns_of_more_combinations_than_numbers_are_refused():
    columns = {f"c{n}": [f"{n} {u}" for u in range(USERS)] for n in range(12)}
    with pytest.raises(ValueError, match="name fewer columns"):
        fitted(described(skewed(), **columns), segments="+".join(columns))


@pytest.mark.parametrize("segments", ["none", "country", "country+age", "cluster"])
def test_the_dial_lowers_popularity_and_begins_at_the_most_popular(segments):
    counts = np.bincount(DATA.items, minlength=ITEMS + 1)
    pure = fitted(segments=segments)
    lists = []
    for novelty in np.linspace(0, 1, 11):
        model = fitted(segments=segments, novelty=float(novelty))
        items, _ = top_k(model.scores(model.segments(DATA)), 10)
        lists.append(counts[items.numpy()].mean(1))
    assert (np.diff(lists, axis=0) <= 1e-9).all()
    assert (lists[-1] < 0.8 * lists[0]).all()
    np.testing.assert_array_equal(
        fitted(segments=segments, novelty=0.0).scores(pure.segments(DATA)), pure.scores(pure.segments(DATA))
    )


def test_at_its_end_the_dial_puts_items_of_average_popularity_first():
    counts = np.bincount(DATA.items, minlength=ITEMS + 1)[1:]
    items, _ = top_k(fitted(novelty=1.0).scores(np.zeros(1, np.int64)), 3)
    nearest = np.sort(np.abs(counts - counts.mean()))[:6]
    assert np.abs(counts[items.numpy()[0] - 1] - counts.mean()).max() <= nearest[-1]


def test_only_recent_events_count():
    model = fitted(segments="country", recent_days=300 / 86_400)
    users = [u for u in range(USERS) if COUNTRY[u] == "D"]
    since = DATA.timestamps.max() - 300
    actual = answer(model, cold_user(country="D"))
    np.testing.assert_allclose(actual, by_hand(users, smoothing=100, since=since), rtol=1e-5)
    with pytest.raises(ValueError, match="recent_days needs timestamps"):
        fitted(sequences([[1]], times=False), recent_days=1.0)


def test_clusters_find_groups_that_are_far_apart():
    group = np.arange(USERS) % 3
    data = described(
        skewed(),
        kind=[f"k{g}" for g in group],
        size=(10.0 * group + RNG.normal(size=USERS)).tolist(),
        code=[f"zip {u}" for u in range(USERS)],  # says nothing: too many values
    )
    model = fitted(data, segments="cluster", clusters=3)
    assert [column.name for column in model.columns] == ["kind", "size"]
    actual = model.segments(data)
    assert {tuple(sorted({int(s) for s in actual[group == g]})) for g in range(3)} == {(0,), (1,), (2,)}
    unknown = described(sequences([[]]), kind=["k9"], size=pa.array([None], pa.float64()), code=["zip 1"])
    assert model.segments(unknown).tolist() == [3]
    np.testing.assert_array_equal(fitted(data, segments="cluster", clusters=3).centres, model.centres)


def test_k_means_against_scikit_learn():
    from sklearn.cluster import KMeans

    points = torch.cat([torch.randn(40, 3, generator=torch.Generator().manual_seed(g)) + 4 * g for g in range(4)])
    ours = k_means(points, 4, torch.Generator().manual_seed(0))
    theirs = KMeans(4, n_init=10, random_state=0).fit(points.numpy()).cluster_centers_
    np.testing.assert_allclose(sorted(ours.tolist()), sorted(theirs.tolist()), atol=1e-4)
    assert len(k_means(points[:1].repeat(9, 1), 4, torch.Generator().manual_seed(0))) == 1


@pytest.mark.parametrize(
    "config", [{}, {"segments": "country+age"}, {"segments": "country+age", "hierarchy": True}, {"segments": "cluster"}]
)
def test_restored_it_answers_the_same(config):
    import json

    model = fitted(novelty=0.3, **config)
    other = ColdUsers.from_dict(json.loads(json.dumps(model.to_dict())), n_items=ITEMS)
    for name, tensor in model.named_buffers():
        other.register_buffer(name, tensor.clone())
    np.testing.assert_array_equal(other.segments(DATA), model.segments(DATA))
    np.testing.assert_array_equal(other.scores(other.segments(DATA)), model.scores(model.segments(DATA)))


def test_training_of_the_caller_keeps_its_random_numbers():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    fitted(segments="cluster")
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"segments": "contry"}, "cold_users.segments asks for contry; columns there are: age, country, height"),
        ({"segments": "cluster", "cluster_by": "x+age"}, "cold_users.cluster_by asks for x; columns there are"),
        ({"novelty": 1.5}, "novelty is 1.5"),
        ({"smoothing": 0}, "smoothing is 0"),
        ({"bins": 1}, "bins is 1"),
        ({"hierarchy": True}, "set segments to columns"),
        ({"hierarchy": True, "segments": "cluster"}, "set segments to columns"),
        ({"hierarchy": "yes", "segments": "country"}, "hierarchy is 'yes'"),
        ({"clusters": True}, "clusters is True"),
        ({"recent_days": -1}, "recent_days is -1"),
        ({"segments": None}, "segments is None"),
    ],
)
def test_what_is_wrong_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(**config)


def test_where_nothing_is_known_of_users_there_are_no_segments(caplog):
    with caplog.at_level(logging.WARNING):
        model = fitted(random_sequences(20, ITEMS), segments="country")
    assert "nothing is known of the users" in caplog.text
    assert len(model.keys) == 0 and np.isfinite(answer(model, cold_user(country="N"))).all()


@pytest.mark.parametrize("config", [{}, {"segments": "country+age", "hierarchy": True}, {"recent_days": 1}])
@pytest.mark.parametrize("weights", [False, True])
def test_counts_by_parts_of_users_are_those_of_the_whole(monkeypatch, config, weights):
    times = np.sort(np.random.default_rng(0).integers(0, 10 * 86_400, len(DATA.items)))
    data = replace(DATA, timestamps=times, weights=np.arange(len(times), dtype=np.float32) % 7 if weights else None)
    whole = fitted(data, **config).state_dict()
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", 100)
    parts = fitted(data, **config).state_dict()
    assert len(list(data.parts())) > 5 and whole["counts"].sum() > 0
    for name, values in whole.items():
        assert parts[name].dtype == values.dtype
        torch.testing.assert_close(parts[name], values, rtol=1e-6 if weights else 0, atol=0)
