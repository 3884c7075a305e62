"""Insights of finished runs: what the library says of each, what is said of runs that lack something."""

import json

import numpy as np
import polars as pl
import pytest
from tests.reporting.finished import IDS, catalogue, finished, lists_of, ranks_of

from recpipe.evaluation.lists import Lists, list_metrics
from recpipe.evaluation.metrics import calibration
from recpipe.evaluation.segments import segments
from recpipe.evaluation.significance import UserMetric, compare
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.insights import OnDisk, certainty_table, insights, lists_table
from recpipe.reporting.leaderboard import leaderboard, to_markdown, to_text

SEEDS = (42, 123, 2023)


@pytest.fixture(scope="module")
def measured(make_run):
    """Runs, what they left and their insights."""
    runs, on_disk = finished(make_run, seeds=SEEDS)
    protocol = runs[0]["protocol"]["id"]
    return runs, on_disk, insights(runs, on_disk, catalogue(), protocol=protocol, seed=42, resamples=500)


def test_it_is_json_and_says_what_the_library_says(measured):
    _, _, found = measured
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["problems"] == []
    protocol = found["protocol"]
    tables = {"sasrec": [ranks_of("sasrec", seed) for seed in SEEDS]}
    tables |= {name: [ranks_of(name, 42)] for name in ("item_knn", "popular_recent", "popular")}
    expected = compare(UserMetric.of(tables, metric="ndcg@10"), resamples=500)
    sure = found["certainty"][protocol]
    assert (sure["baseline"], sure["users"], sure["seeds"]["sasrec"]) == (expected.baseline, 150, 3)
    for name, each in expected.estimates.items():
        assert sure["estimates"][name] == {"mean": each.mean, "low": each.low, "high": each.high}
    assert sure["differences"]["popular"]["p_holm"] == expected.differences["popular"].p_holm
    given, ranks = catalogue(), ranks_of("item_knn", 42)
    assert (
        found["segments"]["item_knn"]
        == segments(ranks, item_ids=IDS, train_events=given.popularity.events, k=10).to_pylist()
    )
    assert found["lists"]["item_knn"] == list_metrics(
        Lists.of(lists_of("item_knn", 42), IDS, 10),
        given.popularity,
        ranks,
        item_ids=IDS,
        vectors=given.vectors,
    )
    assert list(found["calibration"]) == ["sasrec"]  # the others have no probabilities
    assert (
        found["calibration"]["sasrec"]["error"]
        == calibration(lists_of("sasrec", 42), ranks_of("sasrec", 42)).error
    )
    assert found["training"]["head"] >= 0.2 and found["training"]["items"]["tail"] > 0


def test_the_leaderboard_has_intervals_behind_its_metric(measured):
    runs, _, found = measured
    board = leaderboard(runs, certainty=found["certainty"])
    row = board.row(by_predicate=pl.col("model") == "sasrec", named=True)
    sure = found["certainty"][found["protocol"]]["estimates"]["sasrec"]
    assert (row["ndcg@10_low"], row["ndcg@10_high"]) == (sure["low"], sure["high"])
    assert row["ndcg@10"] == pytest.approx(sure["mean"], abs=1e-12)
    shown = f"{sure['low']:.4f}\u2013{sure['high']:.4f}".replace("0.", ".")
    for text in (to_markdown(board), to_text(board)):
        assert shown in text and "95\u202f% interval" in text
    assert max(map(len, to_text(board, width=70).splitlines())) <= 70
    assert "interval" not in to_markdown(leaderboard(runs))


def test_a_chosen_baseline(measured):
    runs, on_disk, found = measured
    protocol = found["protocol"]
    given = {"protocol": protocol, "seed": 42, "resamples": 50}
    chosen = insights(runs, on_disk, catalogue(), baseline="popular", **given)
    assert chosen["certainty"][protocol]["baseline"] == "popular"
    absent = insights(runs, on_disk, catalogue(), baseline="mf", **given)
    assert absent["certainty"][protocol]["baseline"] == "sasrec"


def test_what_a_run_lacks_is_said_and_the_rest_is_made(make_run, other_protocol):
    runs, on_disk = finished(make_run)
    ranks = dict(on_disk.ranks)
    del ranks["item_knn/seed_42"]
    ranks["popular/seed_42"] = lambda: ranks_of("popular", 7)  # of another evaluation
    lists = dict(on_disk.recommendations)
    lists["sasrec/seed_42"] = lambda: lists_of("sasrec", 42).set_column(
        2, "item_id", [["elsewhere"] * lists_of("sasrec", 42).num_rows]
    )
    other = finished(make_run, models=("mf",), protocol=other_protocol)
    runs, ranks = [*runs, *other[0], {"model": "older"}], {**ranks, **other[1].ranks}
    found = insights(
        runs, OnDisk(ranks, lists), catalogue(), protocol=runs[0]["protocol"]["id"], seed=42, resamples=50
    )
    assert found["problems"] == [
        "item_knn/seed_42 has no ranks on disk: how sure its numbers are is not known",
        "the ranks of popular/seed_42 on disk are not those behind its metrics: evaluate it again",
        "sasrec/seed_42: 1500 recommended items are not among the 40 known ones",
    ]
    assert set(found["certainty"]) == {runs[0]["protocol"]["id"], other_protocol["id"]}
    assert set(found["certainty"][runs[0]["protocol"]["id"]]["estimates"]) == {"sasrec", "popular_recent"}
    assert set(found["segments"]) == {"sasrec", "popular_recent"}
    assert set(found["lists"]) == {"popular_recent"}


def test_models_asked_for_other_targets_are_not_compared(make_run):
    runs, on_disk = finished(make_run, models=("sasrec", "popular"))
    moved = ranks_of("popular", 42)
    moved = moved.set_column(1, "target", moved["target"].take(np.roll(np.arange(150), 1)))
    found = insights(
        runs,
        OnDisk({**on_disk.ranks, "popular/seed_42": lambda: moved}, on_disk.recommendations),
        catalogue(),
        protocol=runs[0]["protocol"]["id"],
        seed=42,
    )
    assert found["certainty"] == {}
    assert "popular and sasrec cannot be compared: they differ in targets" in found["problems"][0]
    assert set(found["segments"]) == {"sasrec", "popular"}


def test_seeds_and_ties_that_belong(make_run):
    runs, on_disk = finished(make_run, seeds=(1, 2))
    name, value = "sasrec/seed_2", runs[1]["test"]["ndcg@10"]
    tie = {
        "protocol": runs[0]["protocol"]["id"],
        "metric": "ndcg@10",
        "as_ordered": value,
        "low": 0.1,
        "high": 0.2,
    }
    given = {"protocol": runs[0]["protocol"]["id"], "seed": 2, "resamples": 50}

    def ties(**changed):
        left = OnDisk(on_disk.ranks, on_disk.recommendations, {name: lambda: {**tie, **changed}})
        return insights(runs, left, catalogue(), **given)["ties"]

    assert ties() == {"sasrec": tie}
    assert ties(protocol="x") == ties(metric="mrr@10") == ties(as_ordered=value + 0.01) == {}
    board = leaderboard(runs)
    found = insights(runs, OnDisk(on_disk.ranks, ties={name: lambda: tie}), catalogue(), **given)
    head, rows = certainty_table(found, board)
    assert head[-1] == "other orders of ties"
    assert [row[-1] for row in rows] == [".1000\u2013.2000", "\u2013", "\u2013", "\u2013"]


def test_what_an_ensemble_is_made_of_stands_under_the_table(make_run):
    runs, _ = finished(make_run, models=("popular", "sasrec"), seeds=(1, 2))
    for run, weight in zip(runs[1:], (0.25, 0.75), strict=True):
        run["settings"] = {"type": "ensemble", "method": "rrf"}
        run["ensemble"] = {"members": ["a", "b|c"], "weights": [weight, 1 - weight]}
    board = leaderboard(runs)
    made_of = "0.50 a + 0.50 b|c, by rrf"
    assert dict(board.select("model", "members").rows()) == {"popular": None, "sasrec": made_of}
    assert "\n\nsasrec: 0.50 a + 0.50 b\\|c, by rrf\n" in to_markdown(board)
    assert f"\nsasrec: {made_of}\n" in to_text(board)
    assert ", by" not in to_text(leaderboard(runs[:1]))


def test_tables_have_a_row_per_model_and_only_columns_that_say_something(measured, make_run):
    runs, _, found = measured
    board = leaderboard(runs)
    head, rows = certainty_table(found, board)
    assert head == ["model", "difference", "95\u202f% interval", "p"]
    assert [row[0] for row in rows] == board["model"].to_list()
    assert rows[0][1:] == ["\u2013", "\u2013", "baseline"]
    assert rows[-1][1].startswith("\u2212.") and rows[-1][3] == ".006"  # of 500 draws, times 3
    (head, rows), meanings = lists_table(found, board)
    assert [row[0] for row in rows] == ["training data", *board["model"]]
    assert {len(row) for row in rows} == {len(head)} == {len(meanings) + 1}
    assert "calibration" in head and "diversity" in head
    runs, on_disk = finished(make_run, models=("popular",))
    bare = insights(runs, on_disk, catalogue(vectors=False), protocol=runs[0]["protocol"]["id"], seed=42)
    (head, _), _ = lists_table(bare, leaderboard(runs))
    assert not {"calibration", "diversity"} & set(head)
    assert certainty_table({}, board) is None and lists_table({}, board) is None
    assert certainty_table(found, leaderboard([])) is None


def test_figures_show_what_was_found(measured):
    runs, _, found = measured
    board = leaderboard(runs)
    drawn = insight_figures(found, board)
    assert set(drawn) == {
        "certainty",
        "segments_popularity",
        "segments_history",
        "segments_warmth",
        "popularity_of_lists",
        "calibration",
    }
    (points,) = drawn["certainty"].data
    assert list(points.y) == board["model"].to_list()
    assert points.marker.symbol[0] == "circle" and points.marker.symbol[-1] == "circle-open"
    for trace in drawn["segments_popularity"].data:
        rows = [
            row for row in found["segments"][trace.name] if row["by"] == "popularity" and row["users"] >= 20
        ]
        assert list(trace.y) == [row["ndcg"] for row in rows]
    shares = {
        trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in drawn["popularity_of_lists"].data
    }
    assert shares["head"]["training data"] == found["training"]["head"]
    assert sum(share["sasrec"] for share in shares.values()) == pytest.approx(1)
    assert insight_figures({}, board) == {} == insight_figures(found, leaderboard([]))


def test_one_user_and_a_model_that_recommends_nothing(make_run):
    runs, on_disk = finished(make_run, models=("sasrec", "popular"))
    one = {name: load().slice(0, 1) for name, load in on_disk.ranks.items()}
    from recpipe.evaluation.metrics import metrics_from_ranks

    runs = [
        run | {"test": metrics_from_ranks(one[f"{run['model']}/seed_42"], cutoffs=(10, 20))} for run in runs
    ]
    left = OnDisk(
        {name: lambda table=table: table for name, table in one.items()},
        {name: lambda load=load: load().slice(0, 0) for name, load in on_disk.recommendations.items()},
    )
    found = insights(runs, left, catalogue(), protocol=runs[0]["protocol"]["id"], seed=42, resamples=50)
    assert found["problems"] == [f"{model} recommends nothing to anybody" for model in ("popular", "sasrec")]
    board = leaderboard(runs, certainty=found["certainty"])
    assert "interval" not in to_markdown(board)
    assert set(insight_figures(found, board)) == set()
    _, rows = certainty_table(found, board)
    assert [row[3] for row in rows] == ["baseline", "1.00"]
    (_, rows), _ = lists_table(found, board)
    assert len(rows) == 3


def test_without_any_run_there_is_nothing_to_say():
    found = insights([], OnDisk(), catalogue(), protocol="x", seed=42)
    assert found["certainty"] == found["segments"] == found["lists"] == {} and found["problems"] == []
    assert insight_figures(found, leaderboard([], certainty=found["certainty"])) == {}
