"""Section of semantic ids: figures against plain counts, escaped titles, facts and quality gate."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter

import numpy as np
import plotly.graph_objects as go
import plotly.io
import pytest

from recpipe.reporting.figures.semantic_ids import id_section, quality_rows, sunburst, usage_heatmap
from recpipe.reporting.html import render_page

EVIL = '<script>alert("title")</script> & <a href="http://x">'


def make_codes(n, sizes, seed=0):
    """Codes whose first level follows a power law, and titles that name the first two of them."""
    generator = np.random.default_rng(seed)
    codes = np.stack([generator.integers(0, size, n) for size in sizes], axis=1).astype(np.int32)
    codes[:, 0] = np.minimum(generator.zipf(1.6, n) - 1, sizes[0] - 1)
    return codes, [f"kind{a} sort{b} item{row}" for row, (a, b) in enumerate(codes[:, :2].tolist())]


def sectors(figure):
    """Sector id to its fields."""
    trace = figure.data[0]
    rows = zip(trace.ids, trace.parents, trace.values, trace.labels, trace.customdata, strict=True)
    return {id_: (parent, value, label, hover) for id_, parent, value, label, hover in rows}


def test_heatmap_shows_every_code_most_used_first():
    codes = np.array([[0, 1], [0, 2], [0, 1], [3, 1]], np.int32)
    figure = usage_heatmap(codes, (4, 6))
    first, second = figure.data[0].z
    assert list(first) == [3.0, 1.0, 0, 0, None, None]  # 3, 1, 0, 0 items; even usage is 1; two cells do not exist
    assert list(second) == [4.0, 1.5, 0, 0, 0, 0]  # 3 items are 4.5 times even usage, clipped to 4
    assert list(figure.data[0].y) == ["level 1<br>2 of 4", "level 2<br>2 of 6"]
    assert list(figure.data[0].text[1][:3]) == ["code 1: 3", "code 2: 1", "code 0: 0"]


def test_heatmap_ignores_sizes_of_further_levels():
    codes, _ = make_codes(50, (4, 4))
    assert usage_heatmap(codes, (4, 4, 256)) == usage_heatmap(codes, (4, 4))


def test_sunburst_counts_items_and_fills_every_parent():
    codes, titles = make_codes(3000, (40, 20, 8))
    result = sectors(sunburst(codes, titles, first_codes=5, next_codes=2))
    counts = Counter(tuple(row[:depth]) for row in codes.tolist() for depth in (1, 2, 3))
    assert len(result) == 1 + 5 + 5 * 2 + 5 * 2 * 2
    first = [code for (code, *rest), _ in counts.most_common() if not rest][:5]
    assert {id_ for id_ in result if id_.count(".") == 1} == {f"all.{code}" for code in first}
    children = Counter()
    for id_, (parent, value, _, hover) in result.items():
        children[parent] += value
        if parent:
            prefix = tuple(int(code) for code in id_.split(".")[1:])
            size = int(re.match(r"codes [\d, ]+: ([\d\u202f]+) items", hover)[1].replace("\u202f", ""))
            assert size == counts[prefix]
            assert parent == ".".join(["all", *map(str, prefix[:-1])])
    for id_, (_, value, _, _) in result.items():
        assert id_.count(".") == 3 or 0 <= value - children[id_] <= 2


def test_sunburst_labels_a_sector_with_a_title_of_its_items():
    codes, titles = make_codes(3000, (40, 20, 8))
    for id_, (_, _, label, hover) in sectors(sunburst(codes, titles)).items():
        prefix = id_.split(".")[1:]
        if prefix:
            assert label.startswith(f"kind{prefix[0]} ")
            assert all(line.startswith(f"kind{prefix[0]} ") for line in hover.split("<br>")[1:])
            assert len(prefix) < 2 or f"sort{prefix[1]} " in hover


def test_the_label_is_the_title_with_most_in_common():
    titles = ["gift card", "red rose soap", "rose soap set", "blue rose soap", "candle"]
    result = sectors(sunburst(np.zeros((5, 1), np.int32), titles))
    assert "rose soap" in result["all.0"][3].split("<br>")[1]
    assert "gift" not in result["all.0"][2]


def test_the_first_ring_has_the_main_category():
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0]], np.int32)
    figure = sunburst(codes, ["a one", "b two", "c three", "d"], categories=["Nails", "Nails", "Hair", None])
    result = sectors(figure)
    assert result["all.0"][2] == "Nails"
    assert "2 of them Nails" in result["all.0"][3]
    assert result["all.1"][2] == "d"  # none of its items has a category
    assert result["all.0.1"][2] == "b two"


@pytest.mark.parametrize("categories", [None, [EVIL] * 60], ids=["titles", "categories"])
def test_texts_from_outside_are_escaped_and_cut(categories):
    codes, _ = make_codes(60, (3, 3))
    figure = sunburst(codes, [EVIL, "x" * 5000, None, "&lt;b&gt;bold&lt;/b&gt;"] * 15, categories=categories)
    for _, _, label, hover in sectors(figure).values():
        for text in (label, hover):
            plain = text.replace("<br>", "")
            assert "<" not in plain
            assert ">" not in plain
            assert re.sub(r"&(amp|lt|gt);", "", plain).count("&") == 0
        assert len(label) < 80
        assert len(hover) < 1000


def test_html_entities_of_a_source_are_unescaped():
    figure = sunburst(np.zeros((1, 1), np.int32), ["Face &amp; Hair"])
    assert sectors(figure)["all.0"][2] == "Face &amp; Hair"  # escaped once: Plotly shows Face & Hair


def test_figures_of_a_whole_catalogue_are_small():
    codes, titles = make_codes(12_101, (256, 256, 256, 256))
    titles = [f"{title} {'long ' * 40}" for title in titles]
    for figure in (usage_heatmap(codes, (256,) * 4), sunburst(codes, titles)):
        assert len(figure.to_json()) < 100_000


@pytest.mark.parametrize(("n", "sizes"), [(1, (4,)), (1, (4, 4, 4)), (7, (2, 3))])
def test_the_smallest_catalogues_are_drawn(n, sizes):
    codes = np.zeros((n, len(sizes)), np.int32)
    result = sectors(sunburst(codes, [None] * n))
    assert list(result) == [".".join(["all"] + ["0"] * depth) for depth in range(len(sizes) + 1)]
    assert len(usage_heatmap(codes, sizes).data[0].z) == len(sizes)


@pytest.mark.parametrize("make", [lambda c, t: usage_heatmap(c, (9, 9, 9)), sunburst], ids=["heat map", "sunburst"])
def test_figures_leave_the_theme_to_the_page(make):
    """script.html colours texts and axes for light and dark mode, so a figure needs both axes and no font."""
    figure = make(*make_codes(200, (9, 9, 9)))
    layout = json.loads(figure.to_json())["layout"]
    assert {"xaxis", "yaxis"} <= set(layout)
    assert "font" not in layout
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert plotly.io.from_json(figure.to_json()) == figure


def test_sunburst_needs_a_title_and_a_category_per_item():
    codes, titles = make_codes(20, (3, 3))
    with pytest.raises(ValueError, match="20 items .* 19 titles"):
        sunburst(codes, titles[1:])
    with pytest.raises(ValueError, match="20 titles .* 1 categories"):
        sunburst(codes, titles, categories=["a"])


def test_quality_rows_have_value_limit_and_result():
    checks = [
        {"what": "codes used", "asks": "at least", "value": 0.4, "threshold": 0.5, "passed": False},
        {"what": "items that share", "asks": "at most", "value": 1 / 3, "threshold": 0.9, "passed": True},
    ]
    assert quality_rows({"checks": checks}) == [
        ("codes used", "0.400", "≥ 0.500", False),
        ("items that share", "0.333", "≤ 0.900", True),
    ]


QUALITY = {
    "format": 1,
    "modality": "text",
    "items": 3179,
    "without_content": 4,
    "added": 0,
    "sizes": [256, 256, 256, 256],
    "policy": "extra_digit",
    "levels": [{"level": 1, "size": 256, "used": 256, "usage": 1.0}, {"level": 2, "size": 256, "usage": 0.75}],
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


def test_facts_show_measures_next_to_chance() -> None:
    values = [value for _, value in id_section(QUALITY, {}).facts]
    assert "140; 5 items" in values and "75.0\u202f%" in values
    assert "42.0\u202f%, by chance 1.00\u202f%" in values and "36.0\u202f%, by chance 8.00\u202f%" in values


def test_missing_measures_are_left_out() -> None:
    section = id_section(QUALITY | {"purity": None, "neighbours": None}, {})
    assert len(section.facts) == len(id_section(QUALITY, {}).facts) - 2
    assert len(id_section(QUALITY | {"reconstruction": None}, {}).facts) == len(id_section(QUALITY, {}).facts) - 1


def test_neighbours_by_item_vectors_of_a_model_are_facts_of_their_own() -> None:
    by_depth = [{"depth": 1, "overlap": 0.2, "random": 0.01}, {"depth": 2, "overlap": 0.04, "random": 0.0}]
    facts = dict(id_section(QUALITY | {"collaborative": {"model": "sasrec", "by_depth": by_depth}}, {}).facts)
    assert facts["nearest neighbours by item vectors of sasrec with the same first code"].startswith("20.0")
    assert facts["nearest neighbours by item vectors of sasrec with the same first two codes"].startswith("4.00")


def page(quality: dict, figures: dict) -> str:
    return render_page({"name": "shop"}, [], semantic_ids=[id_section(quality, figures)])


def test_the_page_shows_the_gate_and_the_figures() -> None:
    text = page(QUALITY, {"usage": go.Figure(go.Heatmap(z=[[1]])), "sunburst": go.Figure()})
    for name in ("semantic-ids", "text_ids_usage-data", "text_ids_sunburst-data"):
        assert f'id="{name}"' in text
    assert "did not pass the gate" not in text and "passed</td>" in text


def test_a_failed_check_has_escaped_advice_and_missing_figures_a_message() -> None:
    text = page(failed(), {})
    assert "did not pass the gate" in text
    assert "set dead_codes &lt;b&gt;on&lt;/b&gt;" in text
    assert "run the pipeline semantic_ids again" in text
    assert "did NOT pass" in id_section(failed(), {}).line
