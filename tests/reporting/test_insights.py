"""Insights against direct calls of the evaluation functions, and messages for unusable outputs."""

import json

import numpy as np
import pytest
from tests.reporting.runs_on_disk import IDS, catalogue, finished_runs, key_of, lists_of, ranks_of

from recpipe.evaluation.lists import Lists, list_metrics
from recpipe.evaluation.metrics import calibration, metrics_from_ranks
from recpipe.evaluation.segments import segments
from recpipe.evaluation.significance import UserMetric, compare
from recpipe.reporting.insights import RunOutputs, compute_insights

ID = "3f9a1c02"  # of the protocol of make_run


def compute(runs, outputs, **options):
    options = {"protocol": runs[0]["protocol"]["id"], "seed": 42, "resamples": 50} | options
    return compute_insights(runs, outputs, catalogue(), **options)


def test_insights_are_json_and_equal_to_those_of_the_evaluation_functions(make_run):
    seeds = (42, 123, 2023)
    runs, outputs = finished_runs(make_run, seeds=seeds)
    result = compute(runs, outputs, resamples=500)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["problems"] == []
    tables = {"sasrec": [ranks_of("sasrec", seed) for seed in seeds]}
    tables |= {name: [ranks_of(name, 42)] for name in ("item_knn", "popular_recent", "popular")}
    expected = compare(UserMetric.of(tables, metric="ndcg@10"), resamples=500)
    certainty = result["certainty"][result["protocol"]]
    assert (certainty["baseline"], certainty["users"]) == (expected.baseline, 150)
    assert certainty["seeds"]["sasrec"] == 3
    for name, estimate in expected.estimates.items():
        assert certainty["estimates"][name] == {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    assert certainty["differences"]["popular"]["p_holm"] == expected.differences["popular"].p_holm
    items, ranks = catalogue(), ranks_of("item_knn", 42)
    expected = segments(ranks, item_ids=IDS, train_events=items.popularity.events, k=10)
    assert result["segments"]["item_knn"] == expected.to_pylist()
    lists = Lists.of(lists_of("item_knn", 42), IDS, 10)
    expected = list_metrics(lists, items.popularity, ranks, item_ids=IDS, vectors=items.vectors)
    assert result["lists"]["item_knn"] == expected
    assert list(result["calibration"]) == ["sasrec"]  # the others have no probabilities
    expected = calibration(lists_of("sasrec", 42), ranks_of("sasrec", 42))
    assert result["calibration"]["sasrec"]["error"] == expected.error
    assert result["training"]["head"] >= 0.2 and result["training"]["items"]["tail"] > 0


@pytest.mark.parametrize(("baseline", "expected"), [("popular", "popular"), ("mf", "sasrec")])
def test_the_baseline_is_the_configured_one_or_else_the_best(make_run, baseline, expected):
    result = compute(*finished_runs(make_run), baseline=baseline)
    assert result["certainty"][result["protocol"]]["baseline"] == expected


def test_problems_of_single_runs_are_listed_and_the_rest_is_computed(make_run, other_protocol):
    runs, outputs = finished_runs(make_run)
    ranks = {name: load for name, load in outputs.ranks.items() if name != f"item_knn/seed_42/{ID}"}
    ranks[f"popular/seed_42/{ID}"] = lambda: ranks_of("popular", 7)  # of another evaluation
    unknown = [["elsewhere"] * lists_of("sasrec", 42).num_rows]
    lists = {
        **outputs.recommendations,
        f"sasrec/seed_42/{ID}": lambda: lists_of("sasrec", 42).set_column(2, "item_id", unknown),
    }
    other_runs, other_outputs = finished_runs(make_run, models=("mf",), protocol=other_protocol)
    outputs = RunOutputs({**ranks, **other_outputs.ranks}, lists)
    result = compute([*runs, *other_runs, {"model": "older"}], outputs)
    first, second, third = result["problems"]
    assert "item_knn/seed_42 has no ranks" in first
    assert f"ranks of popular/seed_42/{ID}" in second and "do not match" in second
    assert third.startswith("sasrec/seed_42: 1500 ")
    protocol = runs[0]["protocol"]["id"]
    assert set(result["certainty"]) == {protocol, other_protocol["id"]}
    assert set(result["certainty"][protocol]["estimates"]) == {"sasrec", "popular_recent"}
    assert set(result["segments"]) == {"sasrec", "popular_recent"}
    assert set(result["lists"]) == {"popular_recent"}


def test_models_with_different_targets_are_not_compared(make_run):
    runs, outputs = finished_runs(make_run, models=("sasrec", "popular"))
    moved = ranks_of("popular", 42)
    moved = moved.set_column(1, "target", moved["target"].take(np.roll(np.arange(150), 1)))
    ranks = {**outputs.ranks, f"popular/seed_42/{ID}": lambda: moved}
    result = compute(runs, RunOutputs(ranks, outputs.recommendations))
    assert result["certainty"] == {}
    assert "popular" in result["problems"][0] and "targets" in result["problems"][0]
    assert set(result["segments"]) == {"sasrec", "popular"}


def test_tie_sensitivity_counts_only_for_the_same_protocol_metric_and_evaluation(make_run):
    runs, outputs = finished_runs(make_run, seeds=(1, 2))
    tie = {"protocol": runs[0]["protocol"]["id"], "metric": "ndcg@10", "low": 0.1, "high": 0.2}
    tie["as_ordered"] = value = runs[1]["test"]["ndcg@10"]

    def ties(**changes):
        loaders = {"sasrec/seed_2": lambda: {**tie, **changes}}
        return compute(runs, RunOutputs(outputs.ranks, outputs.recommendations, loaders), seed=2)["ties"]

    assert ties() == {"sasrec": tie}
    assert ties(protocol="x") == ties(metric="mrr@10") == ties(as_ordered=value + 0.01) == {}


def test_one_user_and_empty_lists(make_run):
    runs, outputs = finished_runs(make_run, models=("sasrec", "popular"))
    ranks = {name: load().slice(0, 1) for name, load in outputs.ranks.items()}
    runs = [run | {"test": metrics_from_ranks(ranks[key_of(run)], cutoffs=(10, 20))} for run in runs]
    outputs = RunOutputs(
        {name: lambda table=table: table for name, table in ranks.items()},
        {name: lambda load=load: load().slice(0, 0) for name, load in outputs.recommendations.items()},
    )
    result = compute(runs, outputs)
    assert [problem.split()[0] for problem in result["problems"]] == ["popular", "sasrec"]
    (certainty,) = result["certainty"].values()
    assert {estimate["low"] for estimate in certainty["estimates"].values()} == {None}


def test_without_runs_insights_are_empty():
    result = compute_insights([], RunOutputs(), catalogue(), protocol="x", seed=42)
    assert result["certainty"] == result["segments"] == result["lists"] == {} and result["problems"] == []
