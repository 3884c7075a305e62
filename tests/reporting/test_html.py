"""The HTML page: one file, no network, everything escaped, no empty figure, messages for missing parts."""

import base64
import gzip
import json
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from tests.reporting.browser import CHROMIUM, FLAGS, open_page
from tests.reporting.runs_on_disk import catalogue, finished_runs

from recpipe.reporting.figures import CAPTIONS
from recpipe.reporting.figures.insights import insight_figures
from recpipe.reporting.figures.runs import data_figures, run_figures
from recpipe.reporting.html import render_page, sizes_table
from recpipe.reporting.insights import compute_insights
from recpipe.reporting.leaderboard import leaderboard

EVIL = "<script>alert('title')</script>"  # also the title of an item in conftest.py
DATASET = {
    "name": "online_retail",
    "title": f"Online Retail {EVIL}",
    "licence": "CC BY 4.0",
    "homepage": "https://archive.ics.uci.edu/dataset/352/online+retail",
    "citation": "Chen, Sain, Guo (2012), doi 10.1057/dbm.2012.17",
}
LOADING = {"src", "srcset", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Tags with attributes, scripts and styles, and the words outside them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.parts, self.inside = [], [], [], None
        self.feed(text)
        self.words = " ".join("".join(self.parts).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self.inside = tag
            self.scripts.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data):
        (self.scripts[-1][2] if self.inside else self.parts).append(data)

    @property
    def plots(self):
        return [attributes["id"] for _, attributes in self.tags if attributes.get("class") == "plot"]


@pytest.fixture(scope="module")
def insights(make_run):
    """Insights of four models; sasrec has three seeds and the others one, as in ``runs``."""
    runs, outputs = finished_runs(make_run, seeds=(42, 123, 2023))
    protocol = runs[0]["protocol"]["id"]
    return compute_insights(runs, outputs, catalogue(), protocol=protocol, seed=42, resamples=200)


@pytest.fixture(scope="module")
def text(runs, data_profile, steps, curves, users, insights):
    parts = {"profile": data_profile, "steps": steps, "curves": curves, "examples": users}
    created = datetime(2026, 11, 21, tzinfo=UTC)
    return render_page(DATASET, runs, **parts, insights=insights, created=created)


def test_nothing_is_loaded_from_the_network(text):
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        assert not LOADING & set(attributes), (tag, attributes)
        assert attributes.get("href", "#").startswith("#")
    for tag, attributes, parts in page.scripts:
        if tag == "style" or attributes.get("type") not in ("text/plain", "application/json"):
            code = "".join(parts).replace("http-equiv", "")
            assert not re.search(r"https?:|//[a-z]+\.|@import|url\(", code), tag
    policy = [attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv")]
    assert policy and policy[0].startswith("default-src 'none'")


def test_titles_and_names_are_escaped(text):
    assert EVIL not in text
    assert text.count("&lt;script&gt;alert(&#39;title&#39;)") >= 2  # the heading and at least one example
    assert EVIL in Page(text).words


def test_a_script_in_a_model_name_stays_text(curves, make_run):
    run = make_run("</script><img src=x onerror=alert(1)>", 42, quality=0.1)
    text = render_page(DATASET, [run], curves={run["model"]: next(iter(curves.values()))})
    assert not any(tag == "img" for tag, _ in Page(text).tags)
    assert "<" not in run_figures([run])["ndcg_at_cutoffs"].data[0].name


@pytest.mark.parametrize(
    "options", [{"insights": {"problems": [f"no ranks {EVIL}"]}}, {"notes": [f"no ranks {EVIL}"]}], ids=list
)
def test_messages_are_shown_and_escaped(make_run, options):
    text = render_page(DATASET, [make_run("popular", 42)], **options)
    assert f"no ranks {EVIL}" in Page(text).words and EVIL not in text


def test_every_figure_has_data_a_caption_and_a_place(text, runs, data_profile, steps, curves, insights):
    page = Page(text)
    others = {"gradient_norm", "effective_context", "attribution", "gap_by_length", "usage", "sunburst"}
    others |= {name for name in CAPTIONS if name.startswith(("study", "tuning", "geometry", "audit"))}
    assert set(page.plots) == set(CAPTIONS) - others - {"recall_at_cutoffs"}  # equal to the hit rate
    data = {
        attributes["id"]: json.loads("".join(parts))
        for _, attributes, parts in page.scripts
        if attributes.get("type") == "application/json"
    }
    for plot in page.plots:
        traces = data[f"{plot}-data"]["data"]
        assert traces, plot
        for trace in traces:
            assert len(trace["x"]) == len(trace["y"]) > 0, plot
            assert all(value is not None for value in (*trace["x"], *trace["y"])), plot
    figures = run_figures(runs, curves=curves) | data_figures(data_profile, steps)
    assert {*figures, *insight_figures(insights, leaderboard(runs).head(4))} == set(page.plots)


def test_insights_have_sections_and_an_interval(text, insights):
    page = Page(text)
    ids = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert {"certainty", "segments", "lists"} <= ids
    assert "200 resamples of 150 test users" in page.words
    estimate = insights["certainty"][insights["protocol"]]["estimates"]["sasrec"]
    assert f"{estimate['low']:.4f}\u2013{estimate['high']:.4f}".replace("0.", ".") in page.words


def test_plotly_is_embedded_and_the_page_stays_small(text):
    packed = next(parts for _, attributes, parts in Page(text).scripts if attributes.get("id") == "plotly")
    assert b"plotly.js v" in gzip.decompress(base64.b64decode("".join(packed)))[:2000]
    assert len(text.encode()) < 3_000_000


@pytest.mark.parametrize(
    "expected",
    [
        "3f9a1c02",
        "c2d4e6f8",
        "exclude_seen",
        "CC BY 4.0",
        "10.1057/dbm.2012.17",
        "21 Nov 2026",
        "torch 2.13.0",
        "keep first, by user_id, item_id",
        "policy quarantine, reasons no user 135080, cancellation 8905",
        "-1291190400000 \u2013 9 Dec 2011",  # the raw log may have any number
        "5 / 92.9 / 7 670",
        "541 909",
        "12 of them cold",
        "latency p50 / p95, ms",
        "3.1 / 12",
    ],
)
def test_facts_protocol_fields_and_sources_are_shown(text, expected):
    assert expected in Page(text).words


def test_sizes_before_and_after_the_steps(steps):
    _, rows = sizes_table(steps)
    assert [cells for _, *cells in rows] == [
        ["541\u202f909", "391\u202f150"],
        ["4\u202f373", "4\u202f210"],
        ["4\u202f070", "3\u202f190"],
        ["3.04\u202f%", "2.91\u202f%"],
        ["42", "43.5"],
        ["123.9", "92.9"],
        ["-1291190400000 \u2013 9 Dec 2011", "1 Dec 2010 \u2013 9 Dec 2011"],
    ]
    older = sizes_table(steps.drop_columns(["events_median"]))[1]
    assert [row[1:] for row in older if "median" in row[0]] == [["\u2013", "\u2013"]]
    assert sizes_table(None) is None is sizes_table(steps.slice(0, 1))


@pytest.mark.parametrize(
    "expected",
    [
        "No run has been evaluated",
        "No finished run yet",
        "No training curves",
        "No recommendations",
        "No data profile",
        "no licence",
    ],
)
def test_an_empty_page_says_what_is_missing(expected):
    text = render_page({"name": "x"}, [])
    assert expected in Page(text).words
    assert not {"geometry", "semantic-ids", "studies"} & {attributes.get("id") for _, attributes in Page(text).tags}


def test_unusable_runs_are_named_and_the_others_shown(users, make_run):
    runs = [{"model": "older"}, make_run("popular", 42) | {"cost": {}, "versions": {}}]
    words = Page(render_page(DATASET, runs, examples=users)).words
    assert "run 1 (older) is left out" in words and "popular" in words


def test_fallback_lists_are_marked(users):
    item = replace(users[0].recommendations["sasrec"][0], fallback=True)
    user = replace(users[0], recommendations={"sasrec": (item,)})
    for example in (user, users[0]):
        words = Page(render_page({"name": "x"}, [], examples=[example])).words
        assert ("popularity fallback" in words) == (example is user)


@pytest.mark.browser
def test_a_browser_draws_every_figure_without_errors(text, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(text)
    rendered = open_page(path, tmp_path / "user")
    html = next(attributes for tag, attributes in Page(rendered.html).tags if tag == "html")
    assert html.get("data-ready") == "yes" and "data-error" not in html
    assert rendered.console == [] and rendered.empty == []
    assert set(rendered.figures) == set(Page(text).plots)


@pytest.mark.browser
def test_the_browser_check_detects_empty_figures_and_script_errors(text, tmp_path):
    path = tmp_path / "report.html"
    broken = text.replace("foldLists();\n  if", "setTimeout(() => { nothing.here(); });\n  if", 1)
    name = "quality_seconds-data"
    before, after = broken.split(f'id="{name}">', 1)
    figure, rest = after.split("</script>", 1)
    emptied = json.dumps({**json.loads(figure), "data": []})
    path.write_text(f'{before}id="{name}">{emptied}</script>{rest}')
    rendered = open_page(path, tmp_path / "user")
    assert rendered.empty == ["quality_seconds"]
    assert "nothing is not defined" in rendered.console[0]


@pytest.mark.browser
def test_tables_and_navigation_that_scroll_on_a_phone_show_it_at_the_edge(text, tmp_path):
    """A column of pixels at the right edge of the content, without scripts and with nothing else there."""
    path, shot = tmp_path / "report.html", tmp_path / "shot.png"
    rows = {}
    for name, css in (("shadows", ""), ("none", "<style>.scroll, nav { background: none }</style>")):
        path.write_text(re.sub("<script.*?</script>", "", text, flags=re.DOTALL).replace("</head>", f"{css}</head>"))
        size = ["--window-size=390,1000", "--hide-scrollbars", f"--screenshot={shot}"]
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'user'}", *size, path.as_uri()]
        subprocess.run(command, capture_output=True, timeout=120, check=True)
        pixels = np.asarray(Image.open(shot).convert("L"))[:, 373].astype(int)
        rows[name] = pixels < pixels.max() - 30
    assert rows["shadows"].sum() > rows["none"].sum() + 150
