"""Leaderboard: means over seeds, ranks within protocols, unreadable runs, Markdown."""

import statistics

import polars as pl
import pytest
from tests.reporting.runs_on_disk import catalogue, finished_runs

from recpipe.data.protocol import Protocol
from recpipe.reporting.formatting import MISSING
from recpipe.reporting.insights import compute_insights
from recpipe.reporting.leaderboard import footnotes, leaderboard, split_by_protocol, to_markdown, to_text


def test_seeds_are_averaged_and_models_ranked(runs):
    board = leaderboard(runs).filter(pl.col("protocol") == runs[0]["protocol"]["id"])
    assert board["model"].to_list() == ["sasrec", "item_knn", "popular_recent", "popular"]
    assert board["rank"].to_list() == [1, 2, 3, 4]
    assert board["seeds"].to_list() == [3, 1, 1, 1]
    values = [run["test"]["ndcg@10"] for run in runs if run["model"] == "sasrec"]
    assert board["ndcg@10"][0] == pytest.approx(statistics.mean(values))
    assert board["ndcg@10_std"][0] == pytest.approx(statistics.stdev(values))
    assert board["ndcg@10_std"].null_count() == 3


def test_rank_starts_again_in_every_protocol(runs, other_protocol):
    board = leaderboard(runs)
    assert board["protocol"].to_list() == [runs[0]["protocol"]["id"]] * 4 + [
        other_protocol["id"]
    ]  # the larger group first
    assert board["rank"].to_list() == [1, 2, 3, 4, 1]


def test_other_data_sets_are_ranked_apart(make_run):
    beauty = make_run("popular", 42)["protocol"] | {"dataset": "beauty"}
    board = leaderboard([make_run("sasrec", 42), make_run("popular", 42, beauty)])
    assert board["rank"].to_list() == [1, 1]


def test_the_latest_run_of_a_seed_counts(make_run):
    old = make_run("sasrec", 42, quality=0.5, finished="2026-11-01T00:00:00")
    new = make_run("sasrec", 42, quality=0.1, finished="2026-11-02T00:00:00")
    for runs in ([old, new], [new, old]):
        board = leaderboard(runs)
        assert board["seeds"].to_list() == [1]
        assert board["ndcg@10"][0] == new["test"]["ndcg@10"]


def test_runs_with_other_settings_are_not_averaged(make_run):
    def run(seed, quality, **settings):
        return make_run("sasrec", seed, quality=quality) | settings

    a = [run(seed, 0.1, settings_id="a1b2c3d4") for seed in (42, 123)]
    b, older = run(42, 0.2, settings_id="00ff00ff"), run(42, 0.05)
    board = leaderboard([*a, b, older, make_run("popular", 42, quality=0.01) | {"settings_id": "12345678"}])
    assert board["model"].to_list() == [
        "sasrec (00ff00ff)",
        "sasrec (a1b2c3d4)",
        "sasrec (settings unknown)",
        "popular",
    ]
    assert board["name"].to_list() == ["sasrec"] * 3 + ["popular"]
    assert board["seeds"].to_list() == [1, 2, 1, 1]
    assert board["ndcg@10"][0] == b["test"]["ndcg@10"]
    assert board["ndcg@10"][1] == pytest.approx(statistics.mean(metrics["test"]["ndcg@10"] for metrics in a))
    assert leaderboard(a)["model"].to_list() == ["sasrec"]
    assert leaderboard([older]).schema["settings"] == pl.String


def test_equal_metrics_share_a_rank(make_run):
    runs = [make_run(model, 42, quality=0.1) for model in ("a", "b")] + [make_run("c", 42, quality=0.05)]
    assert leaderboard(runs)["rank"].to_list() == [1, 1, 3]


def test_a_model_without_the_metric_has_no_rank(make_run):
    broken = make_run("broken", 42)
    broken["test"] = {"ndcg@10": float("nan"), "users": 4338}
    board = leaderboard([broken, make_run("popular", 42)])
    assert board.select("model", "rank").rows() == [("popular", 1), ("broken", None)]


def test_unreadable_runs_are_named_and_the_rest_is_ranked(caplog, make_run):
    older = {name: value for name, value in make_run("sasrec", 42).items() if name != "protocol"}
    nameless = make_run("popular", 42) | {"protocol": {"split": "ratio"}}
    board = leaderboard([older, nameless, ["not", "an", "object"], make_run("item_knn", 42)])
    assert board["model"].to_list() == ["item_knn"]
    assert "online_retail, sasrec, 42" in caplog.text
    assert "no protocol" in caplog.text
    assert "no id" in caplog.text
    assert "a list, not an object" in caplog.text


def test_no_run_at_all():
    board = leaderboard([])
    assert board.height == 0
    assert {"rank", "protocol", "model"} <= set(board.columns)
    assert to_text(board) == to_markdown(board) and "No finished run" in to_text(board)


def test_text_fits_the_terminal(runs, make_run):
    runs = [*runs, make_run("a_model_with_quite_a_long_name", 42)]
    for width in (100, 80):
        lines = to_text(leaderboard(runs), width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert any("sasrec" in line and "±" in line for line in lines)


def test_markdown_has_the_same_cells_in_every_line(make_run):
    table = to_markdown(leaderboard([make_run("a|b", 42, quality=0.5), make_run("popular", 42)])).splitlines()[2:]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "a\\|b" in table[2]


def test_markdown_rows_have_the_commits_of_their_runs(make_run):
    runs = [
        make_run("sasrec", seed) | {"commit": commit}
        for seed, commit in ((1, "abc1234"), (2, "def5678+"), (3, "abc1234"))
    ]
    old = {key: value for key, value in make_run("popular", 1).items() if key != "commit"}
    head, _, first, second = to_markdown(leaderboard([*runs, old])).splitlines()[2:6]
    assert head.endswith("| commit |")
    assert first.endswith("| abc1234, def5678+ |")
    assert second.endswith(f"| {MISSING} |")
    assert "commit" not in to_markdown(leaderboard([old]))


def test_recall_is_shown_only_if_it_differs_from_the_hit_rate(make_run):
    run = make_run("sasrec", 42)
    assert "Recall@10" not in to_text(leaderboard([run]))
    run["test"]["recall@10"] /= 2
    assert "Recall@10" in to_text(leaderboard([run]))


def test_cold_items_have_columns_if_they_are_one_percent_of_the_targets(make_run):
    def run(seed, cold_targets):
        metrics = make_run("sasrec", seed)
        metrics["test"] |= {"targets": 1000, "cold_targets": cold_targets}
        blocks = {"warm_items": (0.3, 1000 - cold_targets), "cold_items": (seed / 1000, cold_targets)}
        return metrics | {
            name: {"recall@10": recall, "ndcg@10": 0.1, "users": n, "targets": n}
            for name, (recall, n) in blocks.items()
        }

    few, many = ([run(seed, n) for seed in (42, 62)] for n in (9, 10))
    for runs in (few, many):
        board = leaderboard([*runs, make_run("popular", 42) | {"test": runs[0]["test"]}])
        assert board.filter(pl.col("name") == "sasrec")["cold_recall@10"].item() == pytest.approx(0.052)
        assert board.filter(pl.col("name") == "sasrec")["cold_recall@10_std"].item() == pytest.approx(
            statistics.stdev([0.042, 0.062])
        )
        assert "cold_targets@10" not in board.columns and "cold_users" not in board.columns
        text = to_text(board)
        assert ("Cold recall@10" in text) == ("Warm recall@10" in text) == (runs is many)
    assert ".0520 ± .0141" in text and ".3000 ± .0000" in text
    assert to_markdown(board).count("Cold recall@10") == 1
    assert "cold_recall@10" not in leaderboard([make_run("popular", 42)]).columns


def test_intervals_follow_the_metric(make_run):
    runs, outputs = finished_runs(make_run, seeds=(42, 123))
    protocol = runs[0]["protocol"]["id"]
    options = {"protocol": protocol, "seed": 42, "resamples": 50}
    certainty = compute_insights(runs, outputs, catalogue(), **options)["certainty"]
    board = leaderboard(runs, certainty=certainty)
    row = board.row(by_predicate=pl.col("model") == "sasrec", named=True)
    estimate = certainty[protocol]["estimates"]["sasrec"]
    assert (row["ndcg@10_low"], row["ndcg@10_high"]) == (estimate["low"], estimate["high"])
    assert row["ndcg@10"] == pytest.approx(estimate["mean"], abs=1e-12)
    interval = f"{estimate['low']:.4f}\u2013{estimate['high']:.4f}".replace("0.", ".")
    for text in (to_markdown(board), to_text(board)):
        assert interval in text and "interval" in text
    assert max(map(len, to_text(board, width=70).splitlines())) <= 70
    assert "interval" not in to_markdown(leaderboard(runs))


def test_members_of_an_ensemble_are_a_footnote(make_run):
    runs = [make_run("popular", 1), *(make_run("sasrec", seed) for seed in (1, 2))]
    for run, weight in zip(runs[1:], (0.25, 0.75), strict=True):
        run["settings"] = {"type": "ensemble", "method": "rrf"}
        run["ensemble"] = {"members": ["a", "b|c"], "weights": [weight, 1 - weight]}
    board = leaderboard(runs)
    members = "0.50 a + 0.50 b|c, by rrf"
    assert dict(board.select("model", "members").rows()) == {"popular": None, "sasrec": members}
    assert "\n\nsasrec: 0.50 a + 0.50 b\\|c, by rrf\n" in to_markdown(board)
    assert f"\nsasrec: {members}\n" in to_text(board)
    assert ", by" not in to_text(leaderboard(runs[:1]))


def test_targets_that_a_beam_missed_are_a_footnote_of_their_model(make_run):
    runs = [make_run("tiger", 42), make_run("popular", 42)]
    for run, missed in zip(runs, (123, 0), strict=True):
        run["test"] |= {"unrankable": 3 + missed, "outside_candidates": 3, "missed_by_beam": missed}
    board = leaderboard(runs)
    (line,) = footnotes(board)
    assert line.startswith("tiger: ") and "123 of 4\u202f338 targets" in line and "models.tiger.beam" in line
    assert line in to_text(board, width=200) and board["outside_candidates"].to_list() == [3, 3]
    assert not {"missed_by_beam_std", "outside_candidates_std"} & {*board.columns}


def rolling_runs(make_run, model, values, *, seeds=(1,), folds=3, name="rolling"):
    """A run for each fold with a value and each seed; the value of fold f and seed s is ``values[f - 1] + s``."""
    runs = []
    for fold, value in enumerate(values, 1):
        protocol = Protocol(dataset="online_retail", split="rolling", folds=folds, fold=fold, name=name)
        fields = {"id": protocol.id, **protocol.to_dict()}
        runs += [make_run(model, seed, fields) | {"test": {"ndcg@10": value + seed, "users": 9}} for seed in seeds]
    return runs


def test_folds_have_a_table_each_and_one_of_their_means(make_run):
    values = (0.1, 0.4, 0.7)
    whole = rolling_runs(make_run, "sasrec", values, seeds=(0, 2))
    board = leaderboard([*whole, *rolling_runs(make_run, "popular", values[:2])])
    over_folds = Protocol(dataset="online_retail", split="rolling").id
    (row,) = board.filter(pl.col("protocol") == over_folds).to_dicts()  # popular lacks a fold
    assert (row["rank"], row["model"], row["folds"], row["seeds"]) == (1, "sasrec", 3, 2)
    means = [value + 1 for value in values]
    assert row["ndcg@10"] == pytest.approx(statistics.mean(means))
    assert row["ndcg@10_std"] == pytest.approx(statistics.stdev(means))
    assert row["protocol_name"] == "rolling, mean of 3 folds"
    names = {part["protocol_name"][0]: part["model"].to_list() for _, _, part in split_by_protocol(board)}
    assert names["rolling, fold 1 of 3"] == ["popular", "sasrec"] and names["rolling, fold 3 of 3"] == ["sasrec"]
    assert "protocol rolling, mean of 3 folds (`" in to_markdown(board)


def test_the_name_of_a_protocol_stands_before_its_id(make_run):
    protocol = make_run("sasrec", 1)["protocol"] | {"name": "papers"}
    board = leaderboard([make_run("sasrec", 1, protocol), make_run("popular", 1)])  # an older run has no name
    assert board["protocol_name"].to_list() == ["papers", "papers"]
    assert f"protocol papers (`{protocol['id']}`)" in to_markdown(board)
    assert f"protocol papers ({protocol['id']})" in to_text(board)
