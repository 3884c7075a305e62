"""List metrics against RecTools 0.19.0, scipy and brute force, with ties, cold items, short and empty lists."""

import math
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from scipy.spatial.distance import jensenshannon
from tests.evaluation.rectools_values import ITEMS, PLACES, USERS, case

from recpipe.data.sequences import Sequences
from recpipe.evaluation import lists as lists_module
from recpipe.evaluation.lists import Lists, Popularity, divergence, diversity, gini, list_metrics
from recpipe.evaluation.metrics import coverage
from recpipe.semantic_ids.vector_rows import VectorRows

IDS = np.array([f"i{n:02}" for n in range(1, ITEMS + 1)], dtype=object)
EVERYTHING = ("coverage", "arp", "novelty", "serendipity", "diversity", "gini", "divergence")

# printed by rectools_values.py
EXPECTED = {
    (0, 3): {
        "coverage": 0.32,
        "arp": 16.5875,
        "novelty": 1.2939687506386175,
        "serendipity": 0.003999999999999999,
        "diversity": 0.808552951921573,
    },
    (0, 6): {
        "coverage": 0.36,
        "arp": 15.89375,
        "novelty": 1.4851731804870945,
        "serendipity": 0.002999999999999999,
        "diversity": 0.8097457086270425,
    },
    (1, 3): {
        "coverage": 0.32,
        "arp": 12.179166666666667,
        "novelty": 2.231901998820061,
        "serendipity": 0.026666666666666665,
        "diversity": 0.7386377136070728,
    },
    (1, 6): {
        "coverage": 0.4,
        "arp": 12.0975,
        "novelty": 2.2600426185471134,
        "serendipity": 0.017,
        "diversity": 0.7844507047440649,
    },
}


def tables(seed, k=PLACES, short=True):
    train, targets, rows, vectors = case(seed)
    users, items = (np.array(column) for column in zip(*train, strict=True))
    lengths = np.bincount(users, minlength=USERS)
    names = np.array([f"u{u}" for u in range(USERS)], dtype=object)
    sequences = Sequences(names, items.astype(np.int32), None, np.concatenate([[0], np.cumsum(lengths)]))
    ranks = pa.table({"user_id": [f"u{u}" for u, _ in targets], "target": [IDS[item - 1] for _, item in targets]})
    lists = [(u, place, item) for u, row in enumerate(rows) for place, item in enumerate(row, 1) if item]
    lists = [lists[at] for at in np.random.default_rng(seed).permutation(len(lists))]
    recommendations = pa.table(
        {
            "user_id": [f"u{u}" for u, _, _ in lists],
            "rank": [place for _, place, _ in lists],
            "item_id": [IDS[item - 1] for _, _, item in lists],
        }
    )
    return sequences, ranks, Lists.of(recommendations, IDS, k), vectors


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("k", [3, PLACES])
def test_the_values_of_rectools(seed, k):
    train, ranks, lists, vectors = tables(seed, k)
    result = list_metrics(
        lists, Popularity.of(train, ITEMS), ranks, item_ids=IDS, vectors=(vectors, np.ones(ITEMS, bool))
    )
    for name, value in EXPECTED[seed, k].items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    assert result["coverage"] == coverage(lists.items_UK, catalogue=ITEMS, cutoffs=[k])[f"coverage@{k}"]
    assert result["users"] == USERS


def test_diversity_reads_the_vectors_of_a_few_lists_at_once(monkeypatch):
    _, _, lists, vectors = tables(0, 5)
    present = np.arange(ITEMS) % 4 > 0
    whole = diversity(lists, vectors.astype(np.float32), present)
    monkeypatch.setattr("recpipe.evaluation.lists.ELEMENTS_PER_CHUNK", 1)
    some = VectorRows(vectors[::-1].astype(np.float32), np.arange(ITEMS)[::-1])
    assert diversity(lists, some, present) == pytest.approx(whole, rel=1e-12)


def by_brute_force(seed, k, present):
    """The definitions, one user and one item at a time."""
    train, targets, rows, vectors = case(seed)
    events = [sum(item == i for _, item in train) for i in range(1, ITEMS + 1)]
    had = [len({user for user, item in train if item == i}) for i in range(1, ITEMS + 1)]
    trained = len({user for user, _ in train})
    levels = sorted({count for count in events if count}, reverse=True)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    arp, novelty, surprise, varied = [], [], [], []
    for user, places in enumerate(rows):
        row = [int(item) for item in places[:k] if item]
        arp.append(np.mean([events[i - 1] for i in row]))
        novelty.append(np.mean([-math.log2(max(had[i - 1], 1) / trained) for i in row]))
        gains = []
        for place, i in enumerate(row, 1):
            anyway = (ITEMS - levels.index(events[i - 1])) / ITEMS if events[i - 1] else 0
            gains.append(max(0, (ITEMS + 1 - place) / ITEMS - anyway) * ((user, i) in targets))
        surprise.append(np.mean(gains))
        pairs = [1 - unit[a - 1] @ unit[b - 1] for a, b in combinations(row, 2) if present[a - 1] and present[b - 1]]
        varied += [np.mean(pairs)] if pairs else []
    counts = np.bincount(rows[:, :k].ravel(), minlength=ITEMS + 1)[1:]
    apart = np.abs(counts[:, None] - counts[None]).sum() / (2 * ITEMS**2 * counts.mean())
    shares = (counts / counts.sum(), np.array(events) / sum(events))
    means = [float(np.mean(values)) for values in (arp, novelty, surprise, varied)]
    return [float((counts > 0).mean()), *means, float(apart), float(jensenshannon(*shares, base=2) ** 2)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("k", [1, 4])
def test_brute_force(seed, k, monkeypatch):
    monkeypatch.setattr(lists_module, "ELEMENTS_PER_CHUNK", 100)  # several chunks
    train, ranks, lists, vectors = tables(seed, k)
    present = np.random.default_rng(seed).random(ITEMS) < 0.8
    result = list_metrics(lists, Popularity.of(train, ITEMS), ranks, item_ids=IDS, vectors=(vectors, present))
    expected = dict(zip(EVERYTHING, by_brute_force(seed, k, present), strict=True)) if k > 1 else {}
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-9), name
    assert k > 1 or result["diversity"] is None  # a list of one item has no pair
    assert result["head"] + result["mid"] + result["tail"] == pytest.approx(1)


@pytest.mark.parametrize("chunk", [2, 1 << 22])
def test_repeats_raise_popularity_and_not_the_number_of_users(monkeypatch, chunk):
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", chunk)
    sequences = Sequences(
        np.array(["a", "b"], dtype=object), np.array([1, 1, 1, 2], np.int32), None, np.array([0, 3, 4])
    )
    result = Popularity.of(sequences, 3)
    assert (result.events.tolist(), result.users.tolist(), result.n_users) == ([3, 1, 0], [1, 1, 0], 2)


def test_extremes():
    assert gini(np.full(7, 5)) == pytest.approx(0)
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)
    assert gini(np.zeros(3, int)) is None
    assert divergence(np.array([2, 0]), np.array([0, 5])) == pytest.approx(1)
    assert divergence(np.array([2, 4]), np.array([1, 2])) == pytest.approx(0)
    assert divergence(np.array([2]), np.array([0])) is None
    same = Lists(np.array(["a"], dtype=object), np.array([[1, 2]]))
    assert diversity(same, np.array([[1.0, 0], [3, 0]]), np.ones(2, bool)) == pytest.approx(0)
    assert diversity(same, np.array([[1.0, 0], [0, 0]]), np.ones(2, bool)) is None  # no vector at all
    assert diversity(same, np.zeros((2, 0)), np.zeros(2, bool)) is None  # no item has content


def test_empty_lists_and_items_of_another_catalogue():
    train, ranks, *_ = tables(0)
    schema = pa.schema([("user_id", pa.string()), ("rank", pa.int32()), ("item_id", pa.string())])
    nothing = list_metrics(Lists.of(schema.empty_table(), IDS, 5), Popularity.of(train, ITEMS), ranks, item_ids=IDS)
    assert nothing["users"] == 0 and {value for name, value in nothing.items() if name != "users"} == {None}
    other = pa.table({"user_id": ["u0"], "rank": [1], "item_id": ["x"]})
    with pytest.raises(ValueError, match="1 recommended items are not in the catalogue of 25"):
        Lists.of(other, IDS, 5)
