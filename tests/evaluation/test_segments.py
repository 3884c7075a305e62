"""Segments sum to the overall metric; groups match their definition and counts by hand."""

import numpy as np
import pyarrow as pa
import pytest

from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.segments import HEAD, MID, TAIL, length_names, popularity_groups, segments

ITEMS = 40
IDS = np.array([f"i{n}" for n in range(ITEMS)], dtype=object)


def random_ranks(seed, most_targets):
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(60):
        places = draw.permutation(30)[: draw.integers(1, most_targets + 1)] + 1
        history = int(draw.integers(0, 300))
        for rank in places:
            target, missing = int(draw.integers(ITEMS)), draw.random() < 0.1
            rows.append((f"u{user}", f"i{target}", 0 if missing else int(rank), history, target % 7 == 0))
    rows = [rows[at] for at in draw.permutation(len(rows))]
    return pa.table(dict(zip(("user_id", "target", "rank", "history", "cold"), zip(*rows, strict=True), strict=True)))


@pytest.mark.parametrize("most_targets", [1, 6])
@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_weighted_segments_of_every_kind_are_the_overall_metric(seed, k, most_targets):
    ranks = random_ranks(seed, most_targets)
    events = np.random.default_rng(seed).geometric(0.05, ITEMS) - 1
    table = segments(ranks, item_ids=IDS, train_events=events, k=k).to_pylist()
    overall = metrics_from_ranks(ranks, cutoffs=[k])
    kinds = {row["by"] for row in table}
    assert kinds == {"popularity", "history", "activity", "warmth"}
    for kind in kinds:
        rows = [row for row in table if row["by"] == kind]
        assert sum(row["weight"] for row in rows) == pytest.approx(1, abs=1e-12)
        assert sum(row["targets"] for row in rows) == ranks.num_rows
        for name in ("recall", "ndcg"):
            total = sum(row["weight"] * row[name] for row in rows)
            assert total == pytest.approx(overall[f"{name}@{k}"], abs=1e-12), (kind, name)


def test_a_segment_of_whole_users_is_the_metric_of_these_users():
    ranks = random_ranks(3, 5)
    table = segments(ranks, item_ids=IDS, train_events=np.ones(ITEMS, int), k=10).to_pylist()
    history = ranks["history"].to_numpy()
    for row in (row for row in table if row["by"] == "history"):
        low, _, high = row["segment"].rstrip("+").partition("\u2013")
        members = (history >= int(low)) & (
            history <= (int(high) if high else (10**9 if "+" in row["segment"] else int(low)))
        )
        expected = metrics_from_ranks(ranks.filter(pa.array(members)), cutoffs=[10])
        assert (row["users"], row["targets"]) == (expected["users"], expected["targets"])
        assert row["recall"] == pytest.approx(expected["recall@10"])
        assert row["ndcg"] == pytest.approx(expected["ndcg@10"])


def test_activity_quarters_hold_a_quarter_of_the_users_each_and_never_part_equals():
    n = 80
    columns = {"user_id": [f"u{u}" for u in range(n)], "target": ["i0"] * n, "rank": [1] * n, "cold": [False] * n}
    events = np.ones(ITEMS, int)

    def users(history):
        table = segments(pa.table({**columns, "history": history}), item_ids=IDS, train_events=events, k=1)
        return {row["segment"]: row["users"] for row in table.to_pylist() if row["by"] == "activity"}

    assert list(users(np.random.default_rng(0).permutation(n)).values()) == [20, 20, 20, 20]
    assert users([7] * n) == {"least active quarter": n}


def brute_force_groups(events):
    total = sum(events)
    codes = []
    for count in events:
        above = sum(other for other in events if other > count) < 0.2 * total
        below = sum(other for other in events if other < count) < 0.2 * total
        codes.append(TAIL if count == 0 else MID if above == below else HEAD if above else TAIL)
    return codes


@pytest.mark.parametrize("seed", range(5))
def test_head_and_tail_hold_a_fifth_of_the_events_each(seed):
    draw = np.random.default_rng(seed)
    events = (draw.zipf(1.4, 300) % 97) * (draw.random(300) < 0.9)
    assert popularity_groups(events).tolist() == brute_force_groups(events.tolist())


def test_groups_by_hand():
    # 100 events: 10 and 10 make the head; the four of 5 the tail; an item without events belongs there too
    assert popularity_groups(np.array([10, 10, 20 - 12, 8, 8, 8, 8, 8, 7, 5, 5, 5, 5, 5, 0])).tolist() == [
        *[HEAD] * 2,
        *[MID] * 7,
        *[TAIL] * 6,
    ]
    assert set(popularity_groups(np.full(9, 3))) == {MID}
    assert set(popularity_groups(np.zeros(4, int))) == {TAIL}
    assert popularity_groups(np.array([4])).tolist() == [MID]


def test_names_and_a_target_of_another_catalogue():
    assert length_names()[:4] == ["0", "1\u20134", "5\u20139", "10\u201319"]
    assert length_names()[-1] == "200+"
    ranks = pa.table({"user_id": ["a"], "target": ["zzz"], "rank": [1], "history": [3], "cold": [False]})
    with pytest.raises(ValueError, match="'zzz' is not in the catalogue of 40 items"):
        segments(ranks, item_ids=IDS, train_events=np.ones(ITEMS, int), k=1)


def test_one_user():
    ranks = pa.table({"user_id": ["a"], "target": ["i1"], "rank": [2], "history": [3], "cold": [False]})
    table = segments(ranks, item_ids=IDS, train_events=np.arange(ITEMS), k=2).to_pylist()
    assert [(row["by"], row["weight"], row["recall"]) for row in table] == [
        (by, 1, 1) for by in ("popularity", "history", "activity", "warmth")
    ]
    assert table[0]["ndcg"] == pytest.approx(1 / np.log2(3))
