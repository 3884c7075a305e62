"""The terminal summary fits 100 columns, whatever titles are like."""

import json

import polars as pl
import pytest

from recpipe.reporting.examples import Example, ExampleItem, RecommendedItem
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.summary import format_log, format_summary


def test_the_summary_fits_a_terminal(runs, users):
    links = {"report": "data/08_reporting/online_retail/report.html", "MLflow": "mlflow ui"}
    text = format_summary(leaderboard(runs), users, title="Online Retail", links=links)
    assert max(map(len, text.splitlines())) <= 100
    assert "sasrec" in text
    assert text.count("target: ") == 3
    assert "report  data/08_reporting/online_retail/report.html" in text


@pytest.mark.parametrize("title", ["\x1b[31mRED\x1b[0m\nSECOND LINE", "茶" * 90, "e\u0301" * 90, ""])
def test_titles_cannot_break_the_layout(title):
    items = (RecommendedItem(1, "i", title, 1.0, 0.5, True), RecommendedItem(2, "j", "plain", 0.5, None, False))
    history, targets = (ExampleItem("i", title, "3 Dec 2010"),), (ExampleItem("i", title),)
    example = Example("u", 1, history, targets, {"model": items})
    text = format_summary(leaderboard([]), [example], title="x", links={})
    assert "\x1b" not in text
    lines = text.splitlines()
    assert "✓ 1" in next(line for line in lines if " 3 Dec 2010" in line)
    widths = [sum(2 if "一" <= char <= "鿿" else char != "\u0301" for char in line) for line in lines]
    assert max(widths) <= 100


@pytest.mark.parametrize("character", ["\x1b", "\x9b", "\x07", "\r", "\u202e", "\u2066", "\x00", "\u200b", "\ue000"])
def test_nothing_that_a_terminal_obeys_is_shown(character):
    items = (RecommendedItem(1, "i", f"a{character}b", 1.0, 0.5, True),)
    example = Example(f"u{character}", 1, (), (ExampleItem("i", f"a{character}b"),), {"model": items})
    warnings = [f"about {character}"]
    text = format_summary(leaderboard([]), [example], title=f"x{character}y", links={}, warnings=warnings)
    assert character not in text
    assert "👩\u200d🔬" in format_summary(leaderboard([]), [], title="👩\u200d🔬", links={})


def test_the_log_after_ingest_is_one_block():
    steps = pl.DataFrame(
        {
            "step": [0, 1, 2],
            "name": ["raw", "bad_rows", "k_core"],
            "detail": [
                "{}",
                '{"policy": "quarantine", "reasons": {"empty user_id": 7, "null byte in item_id": 3}}',
                "{}",
            ],
            "rows": [1010, 1000, 900],
        }
    )
    per_user = {"min": 5, "median": 8.0, "max": 90}
    profile = {"rows": 900, "users": 80, "items": 70, "events_per_user": per_user, "span_days": 365.0}
    times = {"first_timestamp": 1_500_000_000, "last_timestamp": 1_531_536_000}
    lines = dict(line.split(None, 1) for line in format_log({**profile, **times}, steps, title="shop").splitlines()[1:])
    assert lines == {
        "events": "900 of 1,010 rows",
        "unusable": "10 rows (quarantine): empty user_id 7, null byte in item_id 3",
        "users": "80",
        "items": "70",
        "per": "user  5 to 90 events, median 8",
        "time": "14 Jul 2017 \u2013 14 Jul 2018 (365 days)",
    }
    reasons = {f"timestamp in an unknown zone {number}": number for number in range(1, 9)}
    detail = json.dumps({"policy": "quarantine", "reasons": reasons})
    many = steps.with_columns(detail=pl.when(name="bad_rows").then(pl.lit(detail)).otherwise("detail"))
    text = format_log({**profile, **times}, many, title="shop")
    assert max(map(len, text.splitlines())) <= 100
    assert all(f"{reason} {n}" in " ".join(text.split()) for reason, n in reasons.items())
    joins = [{"table": "items", "file": "items.csv", "ids": 70, "matched": 68, "without_text": 2}]
    text = format_log({**profile, **times, "joins": joins}, steps, title="shop")
    assert "68 of 70 items are in items.csv, 2 of these without text" in text
    untimed = {**profile, **dict.fromkeys([*times, "span_days"])}
    text = " ".join(format_log(untimed, steps.head(1), title="shop").split())
    assert "time no time column: the order of the rows decides" in text and "name a time column as `timestamp`" in text


def test_warnings_about_the_data_follow_the_leaderboard():
    warning = "54 of 60 test targets are in the history of their user and cannot be hit " * 2
    text = format_summary(leaderboard([]), [], title="x", links={}, warnings=[warning])
    assert "Warning: 54 of 60 test targets" in text and max(map(len, text.splitlines())) <= 100


def test_an_empty_summary():
    text = format_summary(leaderboard([]), [], title="x", links={})
    assert "No finished run" in text and "Semantic ids" not in text
    assert "a line" in format_summary(leaderboard([]), [], title="x", links={}, ids=["a line"])
