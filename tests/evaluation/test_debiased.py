"""Debiased metrics: the limit and sample of RecTools, weights by hand, cases in which nothing is corrected."""

import numpy as np
import pyarrow as pa
import pytest
from tests.evaluation.rectools_debias import CASE, EXPECTED_KEPT, EXPECTED_LIMIT, EXPECTED_RECALL

from recpipe.evaluation.debiased import debiased_metrics, downsample
from recpipe.evaluation.metrics import metrics_from_ranks


def ranks_of(rank, users=None):
    users = [f"u{n}" for n in range(len(rank))] if users is None else users
    return pa.table({"user_id": users, "rank": rank, "cold": [False] * len(rank)})


def test_the_sample_is_as_large_as_that_of_rectools_for_every_item():
    _, items, _ = CASE
    limit, rows = downsample(np.array(items))
    assert limit == EXPECTED_LIMIT
    kept = dict(zip(*(each.tolist() for each in np.unique(np.array(items)[rows], return_counts=True)), strict=True))
    assert kept == EXPECTED_KEPT


def test_the_mean_over_samples_is_that_of_rectools():
    users, items, rank = CASE
    table = ranks_of(rank, users)
    values = [
        metrics_from_ranks(table.take(downsample(np.array(items), seed=seed)[1]), cutoffs=[5])["recall@5"]
        for seed in range(200)
    ]
    assert np.mean(values) == pytest.approx(EXPECTED_RECALL, abs=4 * np.std(values) / np.sqrt(200))


def test_weights_are_inverse_propensities_and_self_normalised():
    ranks, items, events = ranks_of([1, 5, 2]), np.array([1, 2, 3]), np.array([0, 16, 4, 0])
    result = debiased_metrics(ranks, items, events, cutoffs=[3])
    weights = np.array([1 / 4, 1 / 2, 1])  # 16^0.5, 4^0.5, and one for an item without events
    assert result["recall_ips@3"] == pytest.approx(weights @ [1, 0, 1] / weights.sum())
    assert result["ndcg_ips@3"] == pytest.approx(weights @ [1, 0, 1 / np.log2(3)] / weights.sum())
    assert result["effective_targets_ips"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_power_one_is_the_mean_over_items_where_test_and_training_are_alike():
    items = np.repeat([1, 2, 3], [8, 4, 2])
    hit = np.random.default_rng(0).random(len(items)) < 0.5
    ranks, events = ranks_of(np.where(hit, 1, 9).tolist()), np.array([0, 80, 40, 20])
    result = debiased_metrics(ranks, items, events, cutoffs=[3], power=1.0)
    assert result["recall_ips@3"] == pytest.approx(np.mean([hit[items == item].mean() for item in (1, 2, 3)]))


@pytest.mark.parametrize("several", [False, True], ids=["one target", "several targets"])
def test_nothing_is_corrected_where_all_items_are_equally_popular(several):
    items = np.tile(np.arange(1, 11), 4)
    users = [f"u{n // 2 if several else n}" for n in range(40)]
    ranks = ranks_of((np.arange(40) * 7 % 40 + 1).tolist(), users)
    result = debiased_metrics(ranks, items, np.append(0, np.full(10, 5)), cutoffs=[5, 10])
    plain = metrics_from_ranks(ranks, cutoffs=[5, 10])
    for name in ("recall", "ndcg"):
        for k in (5, 10):
            assert result[f"{name}_downsampled@{k}"] == pytest.approx(plain[f"{name}@{k}"], abs=1e-12)
            assert result[f"{name}_ips@{k}"] == pytest.approx(plain[f"{name}@{k}"], abs=1e-12)
    assert (result["targets_downsampled"], result["effective_targets_ips"]) == (40, pytest.approx(40))


def test_power_zero_gives_the_plain_metrics():
    ranks = ranks_of([1, 3, 2, 8], ["a", "a", "b", "c"])
    result = debiased_metrics(ranks, np.array([1, 2, 2, 3]), np.array([0, 9, 2, 1]), cutoffs=[2], power=0.0)
    plain = metrics_from_ranks(ranks, cutoffs=[2])
    assert result["ndcg_ips@2"] == pytest.approx(plain["ndcg@2"])
    assert result["recall_ips@2"] == pytest.approx(plain["recall@2"])


def test_one_target_is_its_own_mean():
    result = debiased_metrics(ranks_of([2]), np.array([4]), np.arange(6), cutoffs=[2])
    assert result["recall_downsampled@2"] == result["recall_ips@2"] == 1
    assert (result["max_targets"], result["targets_downsampled"]) == (1, 1)
