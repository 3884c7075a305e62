"""Maps keep who is near whom; nearest items are those of a loop."""

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from recpipe.evaluation.geometry.maps import map_of, nearest_items, tsne
from recpipe.evaluation.geometry.tables import Table
from recpipe.evaluation.segments import popularity_groups

DRAW = np.random.default_rng(0)
VECTORS = np.repeat(DRAW.normal(size=(5, 8)), 30, 0) + 0.3 * DRAW.normal(size=(150, 8))  # five kinds
EVENTS = DRAW.zipf(1.4, 160).clip(max=500)
GROUPS = popularity_groups(EVENTS)
TITLES = [f"title {n}" for n in range(160)]
TABLE = Table(VECTORS, np.arange(10, 160))  # the first ten items have no vector


def test_what_is_near_on_the_map_is_alike() -> None:
    places = tsne(VECTORS, seed=1)
    assert trustworthiness(VECTORS, places, metric="cosine") > 0.9
    np.testing.assert_array_equal(places, tsne(3 * VECTORS, seed=1))
    with pytest.raises(ValueError, match="map of 3 items"):
        tsne(VECTORS[:3], seed=1)
    assert tsne(VECTORS[:4, :1], seed=1).shape == (4, 2)


def test_the_map_has_the_popular_items_and_others_with_their_titles() -> None:
    drawn = map_of(TABLE, TITLES, EVENTS, GROUPS, most=60, seed=3)
    rows = [TITLES.index(title) for title in drawn["titles"]]
    assert len({*rows}) == len(drawn["x"]) == len(drawn["y"]) == 60 and min(rows) >= 10
    assert drawn["events"] == EVENTS[rows].tolist()
    head = {row for row in TABLE.rows if GROUPS[row] == 0}
    assert head and head <= {*rows}
    assert {row for row, group in zip(rows, drawn["groups"], strict=True) if group == "head"} == head
    assert len(map_of(TABLE, TITLES, EVENTS, GROUPS, most=999, seed=3)["x"]) == 150


def test_nearest_items_are_the_nearest_of_both_tables() -> None:
    other = Table(VECTORS[::-1].copy(), np.arange(5, 155))
    found = nearest_items({"a": TABLE, "b": other}, TITLES, EVENTS, GROUPS, per_group=2, k=3, seed=0)
    assert [each["group"] for each in found] == sorted(each["group"] for each in found)
    assert {each["group"] for each in found} == {"head", "mid", "tail"} and len(found) <= 6
    for each in found:
        row = TITLES.index(each["title"])
        assert 10 <= row < 155 and each["events"] == EVENTS[row]
        for name, table in (("a", TABLE), ("b", other)):
            own = table.vectors[table.rows == row][0]
            cosines = {
                int(item): own @ x / np.linalg.norm(own) / np.linalg.norm(x)
                for item, x in zip(table.rows, table.vectors, strict=True)
                if item != row
            }
            best = sorted(cosines, key=cosines.__getitem__, reverse=True)[:3]
            assert [shown["title"] for shown in each["nearest"][name]] == [TITLES[item] for item in best]
            assert each["nearest"][name][0]["cosine"] == pytest.approx(cosines[best[0]], abs=1e-4)


def test_one_item_has_no_nearest() -> None:
    alone = Table(VECTORS[:1], np.array([4]))
    assert nearest_items({"a": alone}, TITLES, EVENTS, GROUPS, per_group=2, k=3, seed=0) == []
    assert nearest_items({}, TITLES, EVENTS, GROUPS, per_group=2, k=3, seed=0) == []
