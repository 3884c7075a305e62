"""The hop graph against breadth-first search and sorted lists."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from tests.synthetic import catalogue, random_sequences, sequences, side_of, weighted

from recpipe.data.sequences import Sequences
from recpipe.layers.top_k import tie_order
from recpipe.models import hop_graph
from recpipe.models.registry import build

ITEMS = 25
DATA, NEW = random_sequences(40, ITEMS, longest=9, seed=5), random_sequences(25, ITEMS, seed=8)
ORDER = tie_order(ITEMS + 1).numpy()


def fitted(data: Sequences = DATA, *, side=None, **config):
    model = build("hop_graph", config, n_items=ITEMS, max_length=20, side=side)
    model.fit(data)
    return model


def edges(data: Sequences) -> dict[int, Counter]:
    follows: dict[int, Counter] = defaultdict(Counter)
    for u in range(len(data)):
        row = data.row(u).tolist()
        for first, second in pairwise(row):
            follows[first][second] += 1
    return follows


def path_rings(follows: dict[int, Counter], source: int, hops: int) -> list[dict[int, float]]:
    """Probability of the paths to each item of rings 1, 2, ... of ``source``."""
    rings: list[dict[int, float]] = []
    walk = {source: 1.0}
    for hop in range(hops):
        arrived: dict[int, float] = defaultdict(float)
        for item, p in walk.items():
            for following, count in follows[item].items():
                arrived[following] += p * count / sum(follows[item].values())
        visited = {item for ring in rings for item in ring} | ({source} if hop else set())
        walk = {item: p for item, p in arrived.items() if item not in visited}
        rings.append(walk)
    return rings


def in_order(ring: dict[int, float]) -> list[int]:
    return sorted(ring, key=lambda item: (-np.float32(ring[item]), ORDER[item]))


def expected_list(history: list[int], budgets: list[list[int]], rank_ring) -> list[int]:
    """Budgets of all rings first, then what is left of them, then the rest by popularity."""
    first, behind = [], []
    for source, rings in zip(history[::-1], budgets, strict=False):
        for hop, budget in enumerate(rings):
            items = rank_ring(source, hop)
            first += items[:budget]
            behind += items[budget:]
    popular = Counter(DATA.items.tolist())
    rest = sorted(range(1, ITEMS + 1), key=lambda item: (-popular[item], ORDER[item]))
    return list(dict.fromkeys([*first, *behind, *rest]))


@pytest.mark.parametrize("budgets", [[[7, 2, 1]], [[2, 1], [1, 1]], [[1], [2, 2, 2]], [[0, 3]], [[3], [3]]])
def test_lists_take_their_budget_of_each_ring(budgets):
    follows = edges(DATA)
    hops = max(map(len, budgets))
    lists, _ = fitted(budgets=budgets, neighbours=ITEMS).recommend(NEW, ITEMS, exclude_seen=False)
    for u in range(len(NEW)):
        rings = {item: path_rings(follows, item, hops) for item in NEW.row(u).tolist()}
        expected = expected_list(
            NEW.row(u).tolist(), budgets, lambda source, hop, rings=rings: in_order(rings[source][hop])
        )
        assert lists[u].tolist() == expected


def test_content_vectors_order_rings_by_cosine_and_edges():
    table = catalogue(ITEMS)[1]["text"][0]
    norms = np.linalg.norm(table, axis=1, keepdims=True)
    unit = np.concatenate([np.zeros((1, table.shape[1])), table / np.where(norms > 0, norms, 1)])
    follows = edges(DATA)

    def rank_ring(source: int, hop: int) -> list[int]:
        ring = path_rings(follows, source, 2)[hop]
        largest = max((np.log1p(count) for count in follows[source].values()), default=1)
        edge = {item: 0.5 * np.log1p(follows[source][item]) / largest if hop == 0 else 0.0 for item in ring}
        return sorted(ring, key=lambda item: (-(unit[source] @ unit[item] + edge[item]).round(5), ORDER[item]))

    model = fitted(side=side_of(DATA, ITEMS, vectors="text"), neighbours=ITEMS)
    lists, _ = model.recommend(NEW, ITEMS, exclude_seen=False)
    for u in range(len(NEW)):
        assert lists[u].tolist() == expected_list(NEW.row(u).tolist(), [[5, 1], [3, 1]], rank_ring)


def test_blocks_change_nothing(monkeypatch):
    whole = fitted(budgets=[[7, 2, 1]])
    monkeypatch.setattr(hop_graph, "PATHS", 3)
    assert (fitted(budgets=[[7, 2, 1]]).near == whole.near).all()


def test_only_the_best_neighbours_are_stored():
    few, many = fitted(neighbours=2), fitted(neighbours=ITEMS)
    assert few.near.shape == (ITEMS + 1, 2, 2)
    assert (few.near == many.near[:, :, :2]).all()


def test_a_graph_without_edges_and_users_without_history_get_popular_items():
    popular = build("popular", {}, n_items=ITEMS, max_length=20)
    for data in (sequences([[3], [5], [3]]), sequences([[], []])):
        popular.fit(data)
        model = fitted(data)
        assert not model.near.any()
        np.testing.assert_array_equal(model.recommend(NEW, 9)[0], popular.recommend(NEW, 9)[0])
    popular.fit(DATA)
    empty = sequences([[], [0, 0]])
    np.testing.assert_array_equal(fitted().recommend(empty, 9)[0], popular.recommend(empty, 9)[0])


def test_ties_of_a_ring_are_in_the_fixed_random_order():
    model = fitted(sequences([[1, item] for item in range(2, ITEMS + 1)]), budgets=[[4]])
    expected = sorted(range(2, ITEMS + 1), key=lambda item: ORDER[item])
    assert model.recommend(sequences([[1]]), ITEMS - 1)[0][0].tolist() == expected


def test_weights_of_events_are_those_of_edges():
    data = sequences([[1, 2], [1, 3], [1, 3], [4, 1]])
    heavy = Sequences(
        data.users, data.items, None, data.offsets, weights=np.array([1, 5, 1, 1, 1, 1, 1, 1], np.float32)
    )
    assert fitted(data).near[1, 0, :2].tolist() == [3, 2]
    assert fitted(heavy).near[1, 0, :2].tolist() == [2, 3]
    assert not (fitted(weighted(DATA)).near == fitted(DATA).near).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"budgets": [5, 1]}, "hop_graph.budgets.0"),
        ({"budgets": []}, "one number per ring"),
        ({"budgets": [[]]}, "one number per ring"),
        ({"budgets": [[-1]]}, "one number per ring"),
        ({"neighbours": 0}, "at least 1"),
        ({"edge_weight": -1.0}, "at least 0"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        fitted(**config)


def test_other_side_information_is_refused():
    with pytest.raises(ValueError, match="set side.items=none"):
        fitted(side=side_of(DATA, ITEMS, items="price"))
