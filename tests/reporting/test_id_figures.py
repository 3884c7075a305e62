"""Figures of semantic ids: what is drawn against plain counts, and titles that come from outside."""

from __future__ import annotations

import json
import re
from collections import Counter

import numpy as np
import plotly.io
import pytest

from recpipe.reporting.figures.semantic_ids import quality_rows, sunburst, usage_heatmap

EVIL = '<script>alert("title")</script> & <a href="http://x">'


def drawn(n, sizes, seed=0):
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
    assert list(first) == [
        3.0,
        1.0,
        0,
        0,
        None,
        None,
    ]  # 3, 1, 0, 0 items; even use is 1; two cells are not there
    assert list(second) == [4.0, 1.5, 0, 0, 0, 0]  # 3 items are 4.5 times the even use, drawn as 4
    assert list(figure.data[0].y) == ["level 1<br>2 of 4", "level 2<br>2 of 6"]
    assert list(figure.data[0].text[1][:3]) == ["code 1: 3", "code 2: 1", "code 0: 0"]


def test_heatmap_takes_sizes_of_levels_that_the_codes_lack():
    codes, _ = drawn(50, (4, 4))
    assert usage_heatmap(codes, (4, 4, 256)) == usage_heatmap(codes, (4, 4))


def test_sunburst_counts_items_and_fills_every_parent():
    codes, titles = drawn(3000, (40, 20, 8))
    found = sectors(sunburst(codes, titles, most=5, below=2))
    counts = Counter(tuple(row[:depth]) for row in codes.tolist() for depth in (1, 2, 3))
    assert len(found) == 1 + 5 + 5 * 2 + 5 * 2 * 2
    top = [code for (code, *rest), _ in counts.most_common() if not rest][:5]
    assert {id_ for id_ in found if id_.count(".") == 1} == {f"all.{code}" for code in top}
    inside = Counter()
    for id_, (parent, value, _, hover) in found.items():
        inside[parent] += value
        if parent:
            prefix = tuple(int(code) for code in id_.split(".")[1:])
            shown = int(re.match(r"codes [\d, ]+: ([\d\u202f]+) items", hover)[1].replace("\u202f", ""))
            assert shown == counts[prefix]
            assert parent == ".".join(["all", *map(str, prefix[:-1])])
    for id_, (_, value, _, _) in found.items():
        assert id_.count(".") == 3 or 0 <= value - inside[id_] <= 2


def test_sunburst_labels_a_sector_with_a_title_from_below_it():
    codes, titles = drawn(3000, (40, 20, 8))
    for id_, (_, _, label, hover) in sectors(sunburst(codes, titles)).items():
        prefix = id_.split(".")[1:]
        if prefix:
            assert label.startswith(f"kind{prefix[0]} ")
            assert all(line.startswith(f"kind{prefix[0]} ") for line in hover.split("<br>")[1:])
            assert len(prefix) < 2 or f"sort{prefix[1]} " in hover


def test_the_label_is_the_title_with_most_in_common():
    titles = ["gift card", "red rose soap", "rose soap set", "blue rose soap", "candle"]
    found = sectors(sunburst(np.zeros((5, 1), np.int32), titles))
    assert "rose soap" in found["all.0"][3].split("<br>")[1]
    assert "gift" not in found["all.0"][2]


def test_first_ring_carries_the_main_category_where_there_are_categories():
    codes = np.array([[0, 0], [0, 1], [0, 1], [1, 0]], np.int32)
    figure = sunburst(codes, ["a one", "b two", "c three", "d"], categories=["Nails", "Nails", "Hair", None])
    found = sectors(figure)
    assert found["all.0"][2] == "Nails"
    assert "2 of them Nails" in found["all.0"][3]
    assert found["all.1"][2] == "d"  # none of its items has a category
    assert found["all.0.1"][2] == "b two"


@pytest.mark.parametrize("categories", [None, [EVIL] * 60], ids=["titles", "categories"])
def test_what_comes_from_outside_is_escaped_and_cut(categories):
    codes, _ = drawn(60, (3, 3))
    figure = sunburst(codes, [EVIL, "x" * 5000, None, "&lt;b&gt;bold&lt;/b&gt;"] * 15, categories=categories)
    for _, _, label, hover in sectors(figure).values():
        for text in (label, hover):
            plain = text.replace("<br>", "")
            assert "<" not in plain
            assert ">" not in plain
            assert re.sub(r"&(amp|lt|gt);", "", plain).count("&") == 0
        assert len(label) < 80
        assert len(hover) < 1000


def test_entities_of_a_source_are_shown_as_what_they_stand_for():
    figure = sunburst(np.zeros((1, 1), np.int32), ["Face &amp; Hair"])
    assert sectors(figure)["all.0"][2] == "Face &amp; Hair"  # escaped once: Plotly shows Face & Hair


def test_figures_of_a_whole_catalogue_are_small():
    codes, titles = drawn(12_101, (256, 256, 256, 256))
    titles = [f"{title} {'long ' * 40}" for title in titles]
    for figure in (usage_heatmap(codes, (256,) * 4), sunburst(codes, titles)):
        assert len(figure.to_json()) < 100_000


@pytest.mark.parametrize(("n", "sizes"), [(1, (4,)), (1, (4, 4, 4)), (7, (2, 3))])
def test_the_smallest_catalogues_are_drawn(n, sizes):
    codes = np.zeros((n, len(sizes)), np.int32)
    found = sectors(sunburst(codes, [None] * n))
    assert list(found) == [".".join(["all"] + ["0"] * depth) for depth in range(len(sizes) + 1)]
    assert len(usage_heatmap(codes, sizes).data[0].z) == len(sizes)


@pytest.mark.parametrize(
    "make", [lambda c, t: usage_heatmap(c, (9, 9, 9)), sunburst], ids=["heat map", "sunburst"]
)
def test_the_page_sets_the_theme(make):
    """script.html colours texts and axes for light or dark; a figure has both axes, and no colour of its own there."""
    figure = make(*drawn(200, (9, 9, 9)))
    layout = json.loads(figure.to_json())["layout"]
    assert {"xaxis", "yaxis"} <= set(layout)
    assert "font" not in layout
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    assert plotly.io.from_json(figure.to_json()) == figure


def test_titles_that_do_not_fit_are_refused():
    codes, titles = drawn(20, (3, 3))
    with pytest.raises(ValueError, match="20 items have codes, but there are 19 titles"):
        sunburst(codes, titles[1:])
    with pytest.raises(ValueError, match="20 titles and 1 categories"):
        sunburst(codes, titles, categories=["a"])


def test_rows_say_what_was_asked():
    checks = [
        {"what": "codes used", "asks": "at least", "value": 0.4, "threshold": 0.5, "passed": False},
        {"what": "items that share", "asks": "at most", "value": 1 / 3, "threshold": 0.9, "passed": True},
    ]
    assert quality_rows({"checks": checks}) == [
        ("codes used", "0.400", "≥ 0.500", False),
        ("items that share", "0.333", "≤ 0.900", True),
    ]
