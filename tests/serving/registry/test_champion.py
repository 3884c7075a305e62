"""Who gets the alias champion: by ranks whose differences are known, against scipy's test of pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from recpipe.serving.registry.champion import Evidence, decide

USERS = 60


def ranks(values: list[int] | np.ndarray, *, users: str = "u") -> pa.Table:
    """Ranks of one target for each user; 0 is a miss."""
    names = [f"{users}{n}" for n in range(len(values))]
    columns = {"user_id": names, "target": [f"i{n}" for n in range(len(values))], "rank": list(values)}
    return pa.table(columns | {"cold": [False] * len(values)})


def evidence(values: list[int] | np.ndarray, **fields: object) -> Evidence:
    return Evidence(**{"run": "shop/a/seed_1", "run_version": "v1", "protocol": "p", "ranks": ranks(values)} | fields)


WORSE, BEST = evidence([5] * USERS), evidence([1] * USERS, run="shop/b/seed_1")


def test_the_first_version_is_champion() -> None:
    assert decide(WORSE, None).champion


def test_only_a_significantly_better_version_becomes_champion() -> None:
    better, worse = decide(BEST, WORSE), decide(WORSE, BEST)
    assert better.champion and better.p is not None and better.p < 0.05
    assert better.difference == pytest.approx(1 - 1 / np.log2(6))
    assert not worse.champion and worse.difference == pytest.approx(-better.difference)


@pytest.mark.parametrize(("improved", "champion"), [(4, False), (8, True)])
def test_the_test_is_that_of_pairs(improved: int, champion: bool) -> None:
    old = np.full(USERS, 3)
    new = np.where(np.arange(USERS) < improved, 1, old)
    gain = np.where(new == 1, 0.5, 0.0)
    expected = stats.permutation_test((gain[:improved],), np.sum, permutation_type="samples", n_resamples=np.inf).pvalue
    decision = decide(evidence(new), evidence(old, run="shop/b/seed_1"))
    assert decision.p == pytest.approx(expected)
    assert decision.champion is champion is bool(expected < 0.05)


def test_no_difference_is_no_reason() -> None:
    decision = decide(WORSE, WORSE)
    assert (decision.champion, decision.p) == (False, 1)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        (replace(BEST, protocol="q"), "protocol q, the champion under p"),
        (replace(BEST, ranks=None), "its own ranks"),
        (replace(BEST, ranks=ranks([1] * USERS, users="other")), "differ in 120 users"),
    ],
    ids=["protocol", "no ranks", "other users"],
)
def test_what_cannot_be_compared_leaves_the_alias_and_says_why(new: Evidence, reason: str) -> None:
    decision = decide(new, WORSE)
    assert not decision.champion and decision.reason.startswith("not compared") and reason in decision.reason
    assert decide(new, WORSE, rule="always").champion
    assert "the champion's ranks" in decide(BEST, replace(WORSE, ranks=None)).reason


def test_a_refit_of_the_run_that_the_champion_stands_for_takes_its_place() -> None:
    refit = replace(WORSE, made_by="refit", bundle_version="2026-02")
    assert decide(refit, replace(WORSE, bundle_version="2026-01")).champion
    older, other = replace(refit, bundle_version="2025-12"), replace(refit, run_version="v2")
    for loser in (older, other, replace(refit, made_by="train")):
        assert not decide(loser, replace(WORSE, bundle_version="2026-01")).champion


def test_never_keeps_every_new_version_a_challenger() -> None:
    assert not decide(BEST, None, rule="never").champion
    assert not decide(BEST, WORSE, rule="never").champion
