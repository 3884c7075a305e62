"""Metrics from ranks against ranx, scikit-learn and by hand; calibration against scikit-learn and by simulation."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import ndcg_score

from recpipe.evaluation.metrics import (
    calibration,
    coverage,
    memorised_and_generalised,
    metrics_from_ranks,
    user_metrics,
    warm_and_cold_items,
)

CUTOFFS = (1, 3, 5, 10)
RANX = {
    "recall": "recall",
    "hit_rate": "hit_rate",
    "precision": "precision",
    "ndcg": "ndcg",
    "mrr": "mrr",
    "map": "map",
}


def ranked_lists(scores, candidates, priority):
    """Brute force: each user's candidates by falling score, equal scores by rising priority."""
    return [
        sorted(np.flatnonzero(mask), key=lambda i: (-row[i], priority[i]))
        for row, mask in zip(scores, candidates, strict=True)
    ]


def ranks_table(lists, targets):
    rows = [
        (f"u{user}", ranked.index(item) + 1 if item in ranked else 0, False)
        for user, (ranked, items) in enumerate(zip(lists, targets, strict=True))
        for item in items
    ]
    return pa.table(dict(zip(("user_id", "rank", "cold"), map(list, zip(*rows, strict=True)), strict=False)))


def random_case(seed, users=60, items=40, levels=4, most_targets=1):
    """Scores of only `levels` values, so that most items are tied; some targets are no candidates."""
    draw = np.random.default_rng(seed)
    scores = draw.integers(0, levels, (users, items)).astype(float)
    candidates = draw.random((users, items)) < 0.8
    counts = draw.integers(1, most_targets + 1, users)
    targets = [draw.choice(items, count, replace=False).tolist() for count in counts]
    return scores, candidates, targets, draw.permutation(items)


@pytest.fixture
def ranx(monkeypatch):
    """ranx as plain Python: compiling its metrics takes half a minute, running small cases no time."""
    numba = pytest.importorskip("numba", reason="numba comes with ranx")
    monkeypatch.setattr(numba.config, "DISABLE_JIT", True)
    return pytest.importorskip("ranx", reason="ranx, the peer, is a dev dependency")


@pytest.mark.parametrize("most_targets", [1, 15])
@pytest.mark.parametrize("seed", [0, 1])
def test_equal_to_ranx_on_strictly_ordered_lists(ranx, seed, most_targets):
    scores, candidates, targets, priority = random_case(seed, most_targets=most_targets)
    lists = ranked_lists(scores, candidates, priority)
    qrels = ranx.Qrels({f"u{u}": {f"i{i}": 1 for i in items} for u, items in enumerate(targets)})
    run = ranx.Run({f"u{u}": {f"i{i}": float(-place) for place, i in enumerate(r)} for u, r in enumerate(lists)})
    names = [f"{ranx_name}@{k}" for ranx_name in RANX.values() for k in CUTOFFS]
    expected = ranx.evaluate(qrels, run, names, make_comparable=True)
    got = metrics_from_ranks(ranks_table(lists, targets), cutoffs=CUTOFFS)
    for ours, ranx_name in RANX.items():
        for k in CUTOFFS:
            assert got[f"{ours}@{k}"] == pytest.approx(expected[f"{ranx_name}@{k}"], abs=1e-9), f"{ours}@{k}"


def test_ndcg_of_every_user_equals_scikit_learn():
    scores, _, targets, priority = random_case(7, most_targets=6)
    candidates = np.ones_like(scores, dtype=bool)
    lists = ranked_lists(scores, candidates, priority)
    relevant = np.zeros_like(scores)
    strict = np.zeros_like(scores)
    for user, items in enumerate(targets):
        relevant[user, items] = 1
        strict[user, lists[user]] = -np.arange(scores.shape[1])
    table = user_metrics(ranks_table(lists, targets), cutoffs=CUTOFFS)
    for k in CUTOFFS:
        one_by_one = [ndcg_score(r[None], s[None], k=k) for r, s in zip(relevant, strict, strict=True)]
        np.testing.assert_allclose(table[f"ndcg@{k}"], one_by_one, atol=1e-9)


def test_by_hand():
    # a: targets at 2 and 5, one was no candidate; b: one target at 1; c: one target at 11
    ranks = pa.table(
        {"user_id": ["b", "a", "c", "a", "a"], "rank": [1, 5, 11, 0, 2], "cold": [False, False, True, True, False]}
    )
    got = metrics_from_ranks(ranks, cutoffs=[10, 1])
    assert got["recall@10"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert got["hit_rate@10"] == pytest.approx(2 / 3)
    assert got["precision@10"] == pytest.approx((0.2 + 0.1) / 3)
    assert got["mrr@10"] == pytest.approx((1 / 2 + 1) / 3)
    assert got["map@10"] == pytest.approx(((1 / 2 + 2 / 5) / 3 + 1) / 3)
    ideal = 1 + 1 / np.log2(3) + 1 / 2
    assert got["ndcg@10"] == pytest.approx(((1 / np.log2(3) + 1 / np.log2(6)) / ideal + 1) / 3)
    assert got["hit_rate@1"] == pytest.approx(1 / 3)
    assert (got["users"], got["targets"], got["unrankable"], got["cold_targets"]) == (3, 5, 1, 2)


def test_a_constant_score_gets_the_expected_value_of_chance():
    """Over every rotation of the tie-break each target meets each rank once, so recall@k is k/I."""
    items, users = 20, 50
    popular = np.random.default_rng(3).zipf(1.5, users) % items  # targets crowd at the low indices
    targets = [[int(item)] for item in popular]
    scores, candidates = np.zeros((users, items)), np.ones((users, items), dtype=bool)
    priority = np.random.default_rng(4).permutation(items)
    by_rotation = [
        metrics_from_ranks(
            ranks_table(ranked_lists(scores, candidates, np.roll(priority, shift)), targets), cutoffs=CUTOFFS
        )
        for shift in range(items)
    ]
    for k in CUTOFFS:
        assert np.mean([got[f"recall@{k}"] for got in by_rotation]) == pytest.approx(k / items)


def test_order_of_rows_does_not_matter():
    scores, candidates, targets, priority = random_case(11, most_targets=5)
    ranks = ranks_table(ranked_lists(scores, candidates, priority), targets)
    shuffled = ranks.take(np.random.default_rng(0).permutation(ranks.num_rows))
    got, expected = metrics_from_ranks(shuffled, cutoffs=CUTOFFS), metrics_from_ranks(ranks, cutoffs=CUTOFFS)
    assert got == pytest.approx(expected, abs=1e-12)


def test_chunked_and_dictionary_columns():
    one = pa.table({"user_id": ["a", "b"], "rank": [1, 3], "cold": [False, False]})
    both = pa.concat_tables([one, pa.table({"user_id": ["a"], "rank": [2], "cold": [True]})])
    encoded = both.set_column(0, "user_id", both["user_id"].dictionary_encode())
    assert metrics_from_ranks(both, cutoffs=[2])["recall@2"] == pytest.approx(0.5)
    assert metrics_from_ranks(encoded, cutoffs=[2]) == metrics_from_ranks(both, cutoffs=[2])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["a", "a"], "rank": [2, 2], "cold": [False, False]}, "'a' has two targets at rank 2"),
        ({"user_id": ["a"], "rank": [-1], "cold": [False]}, "rank -1"),
        ({"user_id": [], "rank": [], "cold": []}, "no user was evaluated"),
        ({"user_id": ["a"], "place": [1]}, "lacks the columns .*cold.*rank"),
        ({"user_id": ["a", None], "rank": [1, 2], "cold": [False, False]}, "1 rows without user_id"),
    ],
    ids=["target twice", "negative rank", "empty", "columns missing", "user missing"],
)
def test_invalid_ranks_are_errors(columns, message):
    with pytest.raises(ValueError, match=message):
        metrics_from_ranks(pa.table(columns), cutoffs=[10])


@pytest.mark.parametrize("cutoffs", [[], [0], [2.5]])
def test_invalid_cutoffs_are_errors(cutoffs):
    with pytest.raises(ValueError, match="cut-offs"):
        user_metrics(pa.table({"user_id": ["a"], "rank": [1], "cold": [False]}), cutoffs=cutoffs)


def test_coverage_counts_distinct_items_of_the_top_k():
    items = np.array([[1, 2, 3], [1, 4, 0], [0, 0, 0]])
    assert coverage(items, catalogue=10, cutoffs=[1, 2, 3]) == {"coverage@1": 0.1, "coverage@2": 0.3, "coverage@3": 0.4}
    with pytest.raises(ValueError, match="coverage@4 needs"):
        coverage(items, catalogue=10, cutoffs=[4])
    with pytest.raises(ValueError, match="catalogue is 1…3"):
        coverage(items, catalogue=3, cutoffs=[1])


@pytest.mark.parametrize("most_targets", [1, 6])
def test_warm_and_cold_items_are_what_ranx_finds_when_only_they_are_relevant(ranx, most_targets):
    scores, candidates, targets, priority = random_case(5, most_targets=most_targets)
    lists = ranked_lists(scores, candidates, priority)
    is_cold = np.random.default_rng(6).random(scores.shape[1]) < 0.3
    ranks = ranks_table(lists, targets)
    ranks = ranks.set_column(2, "cold", [[bool(is_cold[item]) for items in targets for item in items]])
    result = warm_and_cold_items(ranks, cutoffs=CUTOFFS)
    assert list(result) == ["warm_items", "cold_items"]
    for name, kind in (("warm_items", ~is_cold), ("cold_items", is_cold)):
        relevant = {f"u{u}": {f"i{i}": 1 for i in items if kind[i]} for u, items in enumerate(targets)}
        relevant = {user: items for user, items in relevant.items() if items}
        run = {f"u{u}": {f"i{i}": float(-place) for place, i in enumerate(r)} for u, r in enumerate(lists)}
        names = [f"{metric}@{k}" for metric in ("recall", "ndcg") for k in CUTOFFS]
        expected = ranx.evaluate(
            ranx.Qrels(relevant), ranx.Run({u: run[u] for u in relevant}), names, make_comparable=True
        )
        assert {metric: result[name][metric] for metric in names} == pytest.approx(expected, abs=1e-9)
        assert result[name]["users"] == len(relevant)
        assert result[name]["targets"] == sum(map(len, relevant.values()))
        assert set(result[name]) == {*names, "users", "targets", "unrankable"}


def test_warm_and_cold_items_are_present_only_with_targets_of_both_kinds():
    ranks = pa.table({"user_id": ["a", "b"], "rank": [1, 3], "cold": [False, False]})
    assert warm_and_cold_items(ranks, cutoffs=[2]) == {}
    all_cold = warm_and_cold_items(ranks.set_column(2, "cold", [[True, True]]), cutoffs=[2])
    assert list(all_cold) == ["cold_items"] and all_cold["cold_items"]["recall@2"] == 0.5


def test_memorised_and_generalised_targets_are_the_metrics_of_their_rows():
    ranks = pa.table({"user_id": ["a", "a", "b", "c"], "rank": [1, 4, 3, 0], "cold": [False] * 4})
    assert memorised_and_generalised(ranks, cutoffs=[2]) == {}  # ranks of an older version
    seen = [True, False, True, False]
    halves = memorised_and_generalised(ranks.append_column("transition_seen", [seen]), cutoffs=[2])
    assert list(halves) == ["memorised", "generalised"]
    assert (halves["memorised"]["recall@2"], halves["memorised"]["users"]) == (0.5, 2)
    assert (halves["generalised"]["recall@2"], halves["generalised"]["unrankable"]) == (0, 1)
    only = memorised_and_generalised(ranks.append_column("transition_seen", [[False] * 4]), cutoffs=[2])
    assert list(only) == ["generalised"]
    assert only["generalised"]["ndcg@2"] == metrics_from_ranks(ranks, cutoffs=[2])["ndcg@2"]


def simulated(users=4000, places=5, seed=0, claimed=lambda p: p):
    """Lists whose item at each place is the target with a known probability; `claimed` says another."""
    draw = np.random.default_rng(seed)
    chance = np.sort(draw.dirichlet([0.3] * (places + 1), users)[:, :places])[:, ::-1]
    reached = np.cumsum(chance, axis=1) > draw.random((users, 1))
    place = np.where(reached.any(1), reached.argmax(1), -1)  # -1: outside of the list
    names = [f"u{u}" for u in range(users)]
    recommendations = pa.table(
        {
            "user_id": np.repeat(names, places),
            "item_id": np.tile([f"i{p}" for p in range(places)], users),
            "probability": claimed(chance).ravel().astype(np.float32),
        }
    )
    ranks = pa.table({"user_id": names, "target": [f"i{p}" for p in place]})
    return recommendations, ranks, (place[:, None] == np.arange(places)).ravel()


def test_bins_are_those_of_scikit_learn():
    recommendations, ranks, hit = simulated(users=500)
    result = calibration(recommendations, ranks, bins=8)
    chance = recommendations["probability"].to_numpy().astype(float)
    observed, stated = calibration_curve(hit, chance, n_bins=8, strategy="quantile")
    np.testing.assert_allclose(result.frequency, observed, atol=1e-9)
    np.testing.assert_allclose(result.probability, stated, atol=1e-9)
    apart = np.abs(np.array(result.frequency) - result.probability)
    assert result.error == pytest.approx(np.average(apart, weights=result.recommendations), abs=1e-12)
    assert result.so == pytest.approx(hit.sum() / 500)
    assert result.said == pytest.approx(chance.sum() / 500)


def test_true_probabilities_are_calibrated_and_inflated_ones_are_not():
    true = calibration(*simulated()[:2])
    inflated = calibration(*simulated(claimed=np.sqrt)[:2])
    assert true.error < 0.012
    assert inflated.error > 0.14
    assert true.said == pytest.approx(true.so, abs=0.02)
    assert inflated.said > 1.5 * inflated.so


def test_order_of_rows_does_not_matter_and_equal_probabilities_share_a_bin():
    recommendations, ranks, _ = simulated(users=50)
    order = np.random.default_rng(1).permutation(recommendations.num_rows)
    assert calibration(recommendations.take(order), ranks).error == pytest.approx(
        calibration(recommendations, ranks).error
    )
    flat = recommendations.set_column(2, "probability", pa.array(np.full(250, 0.2)))
    result = calibration(flat, ranks)
    assert result.recommendations == [250]
    assert result.error == pytest.approx(abs(0.2 - result.so / 5))


def test_without_probabilities_or_with_several_targets_there_is_none():
    recommendations, ranks, _ = simulated(users=5)
    without = recommendations.set_column(2, "probability", pa.nulls(25, pa.float32()))
    assert calibration(without, ranks) is None
    assert calibration(recommendations, pa.concat_tables([ranks, ranks])) is None
