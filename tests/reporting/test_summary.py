"""The terminal summary fits 100 columns, whatever titles are like."""

import pytest

from recpipe.reporting.examples import Example, ExampleItem, RecommendedItem
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.summary import format_summary


def test_the_summary_fits_a_terminal(runs, users):
    links = {"report": "data/08_reporting/online_retail/report.html", "MLflow": "make mlflow"}
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


def test_an_empty_summary():
    text = format_summary(leaderboard([]), [], title="x", links={})
    assert "No finished run" in text and "Semantic ids" not in text
    assert "a line" in format_summary(leaderboard([]), [], title="x", links={}, ids=["a line"])
