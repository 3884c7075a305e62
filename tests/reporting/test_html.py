"""The page: one file, no network, nothing unescaped, no empty figure, whatever is missing."""

import base64
import gzip
import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import polars as pl
import pytest
from tests.reporting.browser import open_page
from tests.reporting.finished import catalogue, finished

from recpipe.reporting.captions import CAPTIONS
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.figures.runs import figures
from recpipe.reporting.html import before_and_after, page
from recpipe.reporting.insights import insights
from recpipe.reporting.leaderboard import leaderboard

EVIL = "<script>alert('title')</script>"  # also the title of an item in conftest.py
DATASET = {
    "name": "online_retail",
    "title": f"Online Retail {EVIL}",
    "licence": "CC BY 4.0",
    "homepage": "https://archive.ics.uci.edu/dataset/352/online+retail",
    "citation": "Chen, Sain, Guo (2012), doi 10.1057/dbm.2012.17",
}
OF_STUDIES = {"gradient_norm", "effective_context", "attribution", "gap_by_length"}  # which nobody made here
LOADING = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """What a browser would see: tags with attributes, and the text inside scripts and styles."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.words, self.inside = [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        (self.scripts[-1][2] if self.inside else self.words).append(data)


@pytest.fixture(scope="module")
def closer(make_run):
    """Of four models; sasrec has three seeds and the others one, as among `runs`."""
    runs, on_disk = finished(make_run, seeds=(42, 123, 2023))
    protocol = runs[0]["protocol"]["id"]
    return insights(runs, on_disk, catalogue(), protocol=protocol, seed=42, resamples=200)


@pytest.fixture(scope="module")
def text(runs, data_profile, steps, curves, shown, closer):
    given = {"profile": data_profile, "steps": steps, "curves": curves, "examples": shown}
    return page(DATASET, runs, **given, insights=closer, made_at=datetime(2026, 11, 21, tzinfo=UTC))


def test_nothing_is_loaded_from_elsewhere(text):
    seen = Page(text)
    for tag, attributes in seen.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert not LOADING & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    for tag, attributes, parts in seen.scripts:
        if tag == "style" or attributes.get("type") not in ("text/plain", "application/json"):
            assert not re.search(
                r"https?:|//[a-z]+\.|@import|url\(", "".join(parts).replace("http-equiv", "")
            ), tag
    policy = [attributes["content"] for tag, attributes in seen.tags if attributes.get("http-equiv")]
    assert policy and policy[0].startswith("default-src 'none'")  # and the browser would refuse to


def test_titles_and_names_are_escaped(text):
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&#39;title&#39;)") >= 2  # the heading and at least one example
    words = "".join(Page(text).words)
    assert EVIL in words


def test_a_script_in_a_model_name_stays_text(curves, make_run):
    name = "</script><img src=x onerror=alert(1)>"
    table = next(iter(curves.values()))
    got = page(DATASET, [make_run(name, 42, quality=0.1)], curves={name: table})
    assert not any(tag == "img" for tag, _ in Page(got).tags)
    figure = figures([make_run(name, 42, quality=0.1)])["ndcg_at_cutoffs"]
    assert "<" not in figure.data[0].name


def test_twenty_models_are_told_apart(make_run):
    many = figures([make_run(f"model {n}", 42, quality=0.1 + n / 100) for n in range(20)])
    for name in ("ndcg_at_cutoffs", "quality_seconds"):
        looks = {(each.marker.color, each.marker.symbol) for each in many[name].data}
        assert len(looks) == 20


def test_every_figure_has_data_a_caption_and_a_place(text, runs, data_profile, steps, curves, closer):
    seen = Page(text)
    plots = [attributes["id"] for tag, attributes in seen.tags if attributes.get("class") == "plot"]
    # one target per user: recall is the hit rate
    assert set(plots) == set(CAPTIONS) - {"recall_at_cutoffs"} - OF_STUDIES
    data = {
        a["id"]: json.loads("".join(parts))
        for _, a, parts in seen.scripts
        if a.get("type") == "application/json"
    }
    for plot in plots:
        traces = data[f"{plot}-data"]["data"]
        assert traces, plot
        for trace in traces:
            assert len(trace["x"]) == len(trace["y"]) > 0, plot
            assert all(value is not None for value in (*trace["x"], *trace["y"])), plot
    of_insights = insight_figures(closer, leaderboard(runs).head(4))
    assert {*figures(runs, profile=data_profile, steps=steps, curves=curves), *of_insights} == set(plots)


def test_what_was_found_closer_stands_on_the_page_in_words_and_tables(text, closer):
    words = " ".join("".join(Page(text).words).split())
    for expected in (
        "How sure is that?",
        "200 draws of 150 users",
        "For whom is it good?",
        "Beyond accuracy",
        "baseline",
    ):
        assert expected in words
    low, high = (
        closer["certainty"][closer["protocol"]]["estimates"]["popular"][name] for name in ("low", "high")
    )
    assert f"{low:.4f}\u2013{high:.4f}".replace("0.", ".") in words


def test_problems_of_insights_are_said(make_run):
    got = page(DATASET, [make_run("popular", 42)], insights={"problems": [f"no ranks {EVIL}"]})
    assert f"no ranks {EVIL}" in "".join(Page(got).words) and EVIL not in got


def test_plotly_travels_inside(text):
    packed = next(parts for _, a, parts in Page(text).scripts if a.get("id") == "plotly")
    assert b"plotly.js v" in gzip.decompress(base64.b64decode("".join(packed)))[:2000]


def test_size(text):
    assert len(text.encode()) < 3_000_000  # of 5 MB, so that there is room for more models and figures


def test_facts_fields_and_sources_are_on_the_page(text):
    words = " ".join("".join(Page(text).words).split())
    for expected in (
        "3f9a1c02",
        "c2d4e6f8",
        "exclude_seen",
        "CC BY 4.0",
        "10.1057/dbm.2012.17",
        "21 Nov 2026",
    ):
        assert expected in words
    for expected in (
        "torch 2.13.0",
        "keep first, by user_id, item_id",
        "policy quarantine, reasons no user 135080, cancellation 8905",
        "-1291190400000 \u2013 9 Dec 2011",  # the raw log may hold any number
        "5 / 92.9 / 7 670",
        "541 909",
        "12 of them never seen in training",
        "one user, ms",
        "3.1 / 12",
    ):
        assert expected in words


def test_the_log_before_stands_beside_what_is_left(steps, text):
    head, rows = before_and_after(steps)
    assert head[1:] == ["raw log", "as models see it"]
    assert {name: cells for name, *cells in rows} == {
        "interactions": ["541\u202f909", "391\u202f150"],
        "users": ["4\u202f373", "4\u202f210"],
        "items": ["4\u202f070", "3\u202f190"],
        "interactions over possible user-item pairs": ["3.04\u202f%", "2.91\u202f%"],
        "interactions of the median user": ["42", "43.5"],
        "of the average user": ["123.9", "92.9"],
        "from, to": ["-1291190400000 \u2013 9 Dec 2011", "1 Dec 2010 \u2013 9 Dec 2011"],
    }
    assert "as models see it" in "".join(Page(text).words)
    older = before_and_after(steps.drop_columns(["events_median"]))[1]
    assert [row[1:] for row in older if "median" in row[0]] == [["\u2013", "\u2013"]]
    assert before_and_after(None) is None is before_and_after(steps.slice(0, 1))


def test_bare_page_says_what_is_missing():
    words = " ".join("".join(Page(page({"name": "x"}, [])).words).split())
    for expected in (
        "No run has been evaluated yet",
        "No finished run yet",
        "No training curves",
        "No recommendations have been written",
        "No profile of the interactions",
        "names no licence",
    ):
        assert expected in words


def test_notes_stand_on_the_page_escaped():
    got = page(DATASET, [], notes=[f"another log {EVIL}"])
    assert f"another log {EVIL}" in "".join(Page(got).words)
    assert EVIL not in got


def test_problems_are_said_and_the_rest_is_made(shown, make_run):
    runs = [{"model": "older"}, make_run("popular", 42) | {"cost": {}, "versions": {}}]
    words = "".join(Page(page(DATASET, runs, examples=shown)).words)
    assert "run 1 (older) is left out" in words
    assert "popular" in words


def test_figures_come_from_one_protocol_only(runs):
    drawn = figures(runs)
    assert [trace.name for trace in drawn["ndcg_at_cutoffs"].data] == [
        "sasrec",
        "item_knn",
        "popular_recent",
        "popular",
    ]


def test_curves_of_a_model_without_epochs_are_left_out(curves):
    closed_form = pl.DataFrame({"epoch": [], "step": [], "seconds": [], "loss": []})
    assert "training_loss" not in figures(curves={"popular": closed_form})
    assert len(figures(curves={"popular": closed_form, **curves})["training_loss"].data) == 3


@pytest.mark.browser
def test_a_browser_draws_every_figure_without_a_complaint(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text)
    shown = open_page(path, tmp_path / "user")
    html = next(attributes for tag, attributes in Page(shown.html).tags if tag == "html")
    assert html.get("data-ready") == "yes" and "data-error" not in html
    assert shown.console == [] and shown.empty == []
    placed = {attributes["id"] for tag, attributes in Page(text).tags if attributes.get("class") == "plot"}
    assert set(shown.figures) == placed


@pytest.mark.browser
def test_a_figure_without_data_and_an_error_in_a_script_would_be_seen(text, tmp_path):
    path = tmp_path / "report.html"
    broken = text.replace("foldLists();\n  if", "setTimeout(() => { nothing.here(); });\n  if", 1)
    name = "quality_seconds-data"
    before, after = broken.split(f'id="{name}">', 1)
    figure, rest = after.split("</script>", 1)
    emptied = json.dumps({**json.loads(figure), "data": []})
    path.write_text(f'{before}id="{name}">{emptied}</script>{rest}')
    shown = open_page(path, tmp_path / "user")
    assert shown.empty == ["quality_seconds"]
    assert "nothing is not defined" in shown.console[0]
