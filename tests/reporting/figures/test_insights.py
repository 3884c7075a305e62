"""Tables and figures of insights show the values of the insights."""

import pytest
from tests.reporting.runs_on_disk import catalogue, finished_runs, key_of

from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.reporting.figures.insights import TIES, certainty_table, insight_figures, lists_table
from recpipe.reporting.insights import RunOutputs, compute_insights
from recpipe.reporting.leaderboard import leaderboard, to_markdown

FIGURES = {
    "certainty",
    "segments_popularity",
    "segments_history",
    "segments_warmth",
    "popularity_of_lists",
    "calibration",
}


def compute(runs, outputs, items=None):
    options = {"protocol": runs[0]["protocol"]["id"], "seed": runs[0]["seed"], "resamples": 500}
    return compute_insights(runs, outputs, items or catalogue(), **options)


@pytest.fixture(scope="module")
def runs_and_insights(make_run):
    runs, outputs = finished_runs(make_run, seeds=(42, 123, 2023))
    return runs, compute(runs, outputs)


def test_the_certainty_table_has_a_row_per_model_and_a_baseline(runs_and_insights):
    runs, insights = runs_and_insights
    board = leaderboard(runs)
    head, rows = certainty_table(insights, board)
    assert head[0] == "model" and len(head) == 4
    assert [row[0] for row in rows] == board["model"].to_list()
    assert rows[0][1:] == ["\u2013", "\u2013", "baseline"]
    assert rows[-1][1].startswith("\u2212.") and rows[-1][3] == ".006"  # 1 / 500, times 3 by Holm
    assert certainty_table({}, board) is None
    assert certainty_table(insights, leaderboard([])) is None


def test_the_certainty_table_has_the_range_over_ties_if_measured(make_run):
    runs, outputs = finished_runs(make_run)
    tie = {"protocol": runs[0]["protocol"]["id"], "metric": "ndcg@10", "low": 0.1, "high": 0.2}
    tie["as_ordered"] = runs[0]["test"]["ndcg@10"]
    insights = compute(runs, RunOutputs(outputs.ranks, ties={"sasrec/seed_42": lambda: tie}))
    head, rows = certainty_table(insights, leaderboard(runs))
    assert head[-1] == TIES
    assert [row[-1] for row in rows] == [".1000\u2013.2000", "\u2013", "\u2013", "\u2013"]


def test_the_lists_table_has_no_empty_columns(runs_and_insights, make_run):
    runs, insights = runs_and_insights
    board = leaderboard(runs)
    (head, rows), meanings = lists_table(insights, board)
    assert [row[0] for row in rows] == ["training data", *board["model"]]
    assert {len(row) for row in rows} == {len(head)} == {len(meanings) + 1}
    assert {"calibration error", "diversity"} <= set(head)
    runs, outputs = finished_runs(make_run, models=("popular",))
    (head, _), _ = lists_table(compute(runs, outputs, catalogue(vectors=False)), leaderboard(runs))
    assert not {"calibration error", "diversity"} & set(head)
    assert lists_table({}, board) is None


def test_figures_show_the_values(runs_and_insights):
    runs, insights = runs_and_insights
    board = leaderboard(runs)
    figures = insight_figures(insights, board)
    assert set(figures) == FIGURES
    (points,) = figures["certainty"].data
    assert list(points.y) == board["model"].to_list()
    assert points.marker.symbol[0] == "circle" and points.marker.symbol[-1] == "circle-open"
    for trace in figures["segments_popularity"].data:
        rows = [row for row in insights["segments"][trace.name] if row["by"] == "popularity"]
        assert list(trace.y) == [row["ndcg"] for row in rows if row["users"] >= 20]
    traces = figures["popularity_of_lists"].data
    shares = {trace.name: dict(zip(trace.y, trace.x, strict=True)) for trace in traces}
    assert shares["head"]["training data"] == insights["training"]["head"]
    assert sum(share["sasrec"] for share in shares.values()) == pytest.approx(1)
    assert insight_figures({}, board) == {} == insight_figures(insights, leaderboard([]))


def test_one_user_has_no_intervals_and_no_figures(make_run):
    runs, outputs = finished_runs(make_run, models=("sasrec", "popular"))
    ranks = {name: load().slice(0, 1) for name, load in outputs.ranks.items()}
    for run in runs:
        run["test"] = metrics_from_ranks(ranks[key_of(run)], cutoffs=(10, 20))
    lists = {name: lambda load=load: load().slice(0, 0) for name, load in outputs.recommendations.items()}
    loaders = {name: lambda table=table: table for name, table in ranks.items()}
    insights = compute(runs, RunOutputs(loaders, lists))
    board = leaderboard(runs, certainty=insights["certainty"])
    assert "interval" not in to_markdown(board)
    assert insight_figures(insights, board) == {}
    _, rows = certainty_table(insights, board)
    assert [row[3] for row in rows] == ["baseline", "1.00"]
    (_, rows), _ = lists_table(insights, board)
    assert len(rows) == 3
