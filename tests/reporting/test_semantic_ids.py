"""Semantic ids on the page: facts beside chance, a failed check with its advice, figures, nothing unescaped."""

from __future__ import annotations

import copy

import plotly.graph_objects as go

from recpipe.reporting import html, summary
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.semantic_ids import section

QUALITY = {
    "format": 1,
    "modality": "text",
    "items": 3179,
    "without_content": 4,
    "added": 0,
    "sizes": [256, 256, 256, 256],
    "policy": "extra_digit",
    "levels": [
        {"level": 1, "size": 256, "used": 256, "usage": 1.0},
        {"level": 2, "size": 256, "usage": 0.75},
    ],
    "collisions": {
        "before": {"distinct": 3100, "sharing": 140, "share": 0.044, "largest": 5},
        "after": {"distinct": 3179, "sharing": 0, "share": 0.0, "largest": 1},
    },
    "reconstruction": {"mse": 0.3, "relative": 0.31},
    "neighbours": {"k": 10, "by_depth": [{"depth": 1, "overlap": 0.42, "random": 0.01}]},
    "purity": {"categories": 20, "first_code": 0.36, "shuffled": 0.08},
    "checks": [
        {
            "name": "usage",
            "what": "codes used",
            "asks": "at least",
            "value": 0.75,
            "threshold": 0.5,
            "passed": True,
            "advice": "more items",
        }
    ],
    "passed": True,
}


def failed() -> dict:
    quality = copy.deepcopy(QUALITY) | {"passed": False}
    quality["checks"][0] |= {"passed": False, "advice": "set dead_codes <b>on</b>"}
    return quality


def test_facts_name_what_was_measured_and_chance_beside_it() -> None:
    facts = dict(section(QUALITY, {}).facts)
    assert facts["items shared one then, at most with"] == "140, 4"
    assert facts["of the codes of the least used level are used"].startswith("75.0")
    assert "by chance 1.00" in facts["of an item\u2019s nearest neighbours share its first code"]
    assert "36.0" in facts["of items are of the main category of their first code"]


def test_what_was_not_measured_is_not_shown() -> None:
    facts = dict(section(QUALITY | {"purity": None, "neighbours": None}, {}).facts)
    assert not [name for name in facts if "category" in name or "neighbours" in name]


def page(quality: dict, figures: dict) -> str:
    return html.page({"name": "shop"}, [], semantic_ids=[section(quality, figures)])


def test_the_page_shows_the_gate_and_the_figures() -> None:
    text = page(QUALITY, {"usage": go.Figure(go.Heatmap(z=[[1]])), "sunburst": go.Figure()})
    assert 'id="semantic-ids"' in text
    assert 'id="text_ids_usage-data"' in text
    assert 'id="text_ids_sunburst-data"' in text
    assert "did not pass the gate" not in text
    assert "passed</td>" in text


def test_a_failed_check_shows_its_advice_escaped_and_missing_figures_are_said() -> None:
    text = page(failed(), {})
    assert "did not pass the gate" in text
    assert "set dead_codes &lt;b&gt;on&lt;/b&gt;" in text
    assert "run the pipeline semantic_ids again" in text


def test_without_ids_the_page_has_no_such_section_and_the_summary_no_such_line() -> None:
    assert "semantic-ids" not in html.page({"name": "shop"}, [])
    text = summary.summary(leaderboard([]), [], title="Shop", links={})
    assert "Semantic ids" not in text
    line = section(failed(), {}).line
    assert "did NOT pass" in line
    assert line in summary.summary(leaderboard([]), [], title="Shop", links={}, ids=[line])
