"""Figures of semantic ids, in Plotly and without titles: how the codes are used, and what the first ones mean.

Shape letters: N items, L levels.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from recpipe.reporting.figures import COLOURS
from recpipe.reporting.formatting import count

LIMIT = 4.0  # times the even use from which on a code is drawn in full colour
LINE, LINES = 14, 2  # characters of a label and the lines they are broken into
HOVER = 70  # characters of a title in a hover text
WORD_LENGTH = 3  # shorter words (of, 3, in) say nothing about what things have in common
HEIGHT = 420
WHOLE = 10**9  # the full circle; whole numbers, as Plotly draws nothing where children exceed their parent
UNUSED, FAINT, EVEN, FULL = (
    "rgba(140,140,140,0.22)",
    *(f"rgba(34,131,200,{alpha})" for alpha in (0.22, 0.5, 1)),
)
SCALE = [[0, UNUSED], [0.001, UNUSED], [0.001, FAINT], [1 / LIMIT, EVEN], [1, FULL]]


def usage_heatmap(codes_NL: NDArray[np.integer], sizes: Sequence[int]) -> go.Figure:
    """A row per level of ``codes_NL``, a cell per code, most used first: items of the code against even use.

    A code that no item has is grey; ``sizes`` may name more levels than the codes have.
    """
    levels = codes_NL.shape[1]
    width = max(sizes[:levels])
    shown, hover, names = [], [], []
    for level in range(levels):
        counts = np.bincount(codes_NL[:, level], minlength=sizes[level])
        order = np.argsort(-counts, kind="stable")
        even = len(codes_NL) / sizes[level]
        blank = [None] * (width - sizes[level])
        relative = np.minimum(counts[order] / even, LIMIT).round(3)
        shown.append([*relative.tolist(), *blank])
        hover.append([*(f"code {code}: {count(counts[code])}" for code in order), *blank])
        names.append(f"level {level + 1}<br>{int((counts > 0).sum())} of {sizes[level]}")
    cells = go.Heatmap(
        z=shown,
        y=names,
        text=hover,
        hovertemplate="level %{y}<br>%{text} items<extra></extra>",
        colorscale=SCALE,
        zmin=0,
        zmax=LIMIT,
        ygap=6,
        hoverongaps=False,
        colorbar=_colour_bar(),
    )
    axis = {"automargin": True, "zeroline": False, "showgrid": False}
    x_axis = {**axis, "title": {"text": "codes, most used first"}, "range": [-0.5, width - 0.5]}
    layout = _layout(
        height=max(HEIGHT, 150 + 45 * levels),
        xaxis=x_axis,
        yaxis={**axis, "autorange": "reversed", "type": "category", "ticklabelstandoff": 6},
    )
    return go.Figure([cells], layout)


def sunburst(
    codes_NL: NDArray[np.integer],
    titles: Sequence[str | None],
    *,
    categories: Sequence[str | None] | None = None,
    depth: int = 3,
    most: int = 10,
    below: int = 3,
) -> go.Figure:
    """The ``most`` used first codes as a ring, around each its ``below`` most used next ones, down to ``depth``.

    Angles are shares among the sectors shown, numbers of items are in the hover texts. A sector carries the title that
    has most in common with the others below it, in the first ring the main category where there are ``categories``.
    """
    depth = min(depth, codes_NL.shape[1])
    items = _items(codes_NL[:, :depth], titles, categories)
    sectors = _sectors(items, [most, *[below] * (depth - 1)])
    ring = go.Sunburst(
        ids=sectors["id"].to_list(),
        parents=sectors["parent"].to_list(),
        values=sectors["angle"].to_list(),
        labels=sectors["label"].to_list(),
        customdata=sectors["hover"].to_list(),
        branchvalues="total",
        maxdepth=3,
        sort=False,
        rotation=90,
        insidetextorientation="auto",
        marker={"colors": sectors["colour"].to_list(), "line": {"width": 0.5, "color": "rgba(0,0,0,0)"}},
        leaf={"opacity": 1},
        hovertemplate="%{customdata}<extra></extra>",
    )
    return go.Figure(
        [ring],
        _layout(
            height=HEIGHT,
            xaxis={"visible": False},
            yaxis={"visible": False},
            uniformtext={"minsize": 8, "mode": "hide"},
        ),
    )


def quality_rows(quality: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What each check of the gate looks at, the value measured, what was asked for, and whether it passed."""
    signs = {"at least": "≥", "at most": "≤"}
    return [
        (
            str(check["what"]),
            f"{check['value']:.3f}",
            f"{signs[check['asks']]} {check['threshold']:.3f}",
            bool(check["passed"]),
        )
        for check in quality["checks"]
    ]


def _items(
    codes_NL: NDArray[np.integer], titles: Sequence[str | None], categories: Sequence[str | None] | None
) -> pl.DataFrame:
    if len(titles) != len(codes_NL) or (categories is not None and len(categories) != len(codes_NL)):
        others = "" if categories is None else f" and {len(categories)} categories"
        raise ValueError(f"{len(codes_NL)} items have codes, but there are {len(titles)} titles{others}")
    columns: dict[str, Any] = {f"c{level}": codes_NL[:, level] for level in range(codes_NL.shape[1])}
    columns |= {"title": pl.Series([*titles], dtype=pl.String).fill_null("")}
    columns |= {"category": pl.Series([*(categories or [None] * len(titles))], dtype=pl.String)}
    return pl.DataFrame(columns).with_row_index("row")


def _sectors(items: pl.DataFrame, kept: list[int]) -> pl.DataFrame:
    """One row per sector, parents before children: id, parent, angle, label, hover, colour."""
    used = items["c0"].n_unique()
    middle = f"{min(kept[0], used)} of {count(used)}<br>first codes"
    root = {
        "id": "all",
        "parent": "",
        "angle": WHOLE,
        "label": middle,
        "hover": f"{count(items.height)} items",
    }
    rings = [pl.DataFrame([{**root, "colour": "rgba(0,0,0,0)"}])]
    items = items.with_columns(parent=pl.lit("all"))
    for level, most in enumerate(kept):
        largest = _largest(items, f"c{level}", most)
        items = items.join(largest.select("parent", f"c{level}", "id"), on=["parent", f"c{level}"])
        rings.append(_ring(largest.join(_labels(items), on="id", maintain_order="left"), rings[-1], level))
        items = items.drop("parent").rename({"id": "parent"})
    return pl.concat(rings)


def _largest(items: pl.DataFrame, code: str, most: int) -> pl.DataFrame:
    """The ``most`` used codes of every parent: parent, code, items, place, id."""
    return (
        items.group_by("parent", code)
        .len("items")
        .sort("parent", "items", code, descending=[False, True, False])
        .with_columns(place=pl.int_range(pl.len()).over("parent"))
        .filter(pl.col("place") < most)
        .with_columns(id=pl.format("{}.{}", pl.col("parent"), pl.col(code)))
    )


def _ring(labelled: pl.DataFrame, inner: pl.DataFrame, level: int) -> pl.DataFrame:
    """The sectors of a level; those of a parent fill its angle and, but for the first ring, have its colour."""
    parents = inner.select(parent="id", angle_of_parent="angle", colour_of_parent="colour")
    rows = labelled.join(parents, on="parent", maintain_order="left").with_columns(
        angle=pl.col("angle_of_parent")
        * pl.col("items").cast(pl.Int64)
        // pl.col("items").cast(pl.Int64).sum().over("parent")
    )
    return pl.DataFrame(
        {
            "id": row["id"],
            "parent": row["parent"],
            "angle": row["angle"],
            "label": _label(row["category"] if level == 0 and row["category"] else row["title"]),
            "hover": _hover(row),
            "colour": row["colour_of_parent"] if level else COLOURS[row["place"] % (len(COLOURS) - 1)],
        }
        for row in rows.iter_rows(named=True)
    )


def _labels(below: pl.DataFrame) -> pl.DataFrame:
    """Per sector ``id`` its main category and the title whose words most other titles of the sector share."""
    words = below.select("id", "row", "title").with_columns(
        pl.concat_list(  # with an empty word, so that a title without any is kept
            pl.lit(""),
            pl.col("title").str.to_lowercase().str.extract_all(rf"\w{{{WORD_LENGTH},}}").list.unique(),
        ).alias("word")
    )
    words = words.explode("word").with_columns(shared=pl.len().over("id", "word"))
    typical = (
        words.group_by("id", "row", "title")
        .agg(score=pl.col("shared").filter(pl.col("word") != "").sum() / (pl.len() + 1))
        .sort("id", "score", "row", descending=[False, True, False])
        .group_by("id", maintain_order=True)
        .agg(pl.col("title").first(), others=pl.col("title").slice(1, 3))
    )
    categories = (
        below.drop_nulls("category")
        .group_by("id", "category")
        .len()
        .sort("id", "len", "category", descending=[False, True, False])
        .group_by("id", maintain_order=True)
        .agg(pl.col("category").first(), of_category=pl.col("len").first())
    )
    return typical.join(categories, on="id", how="left")


def _hover(row: Mapping[str, Any]) -> str:
    codes = str(row["id"]).split(".")[1:]
    lines = [f"codes {', '.join(codes)}: {count(row['items'])} items"]
    if row["category"]:
        lines.append(f"{count(row['of_category'])} of them {_short(row['category'], HOVER)}")
    lines += [_short(title, HOVER) for title in (row["title"], *row["others"]) if title]
    return "<br>".join(lines)


def _label(text: str) -> str:
    lines = textwrap.wrap(_plain(text), LINE, max_lines=LINES, placeholder="…")
    return "<br>".join(html.escape(line, quote=False) for line in lines)


def _short(text: str, length: int) -> str:
    """A title from outside, cut to a length; what Plotly would read as HTML is escaped."""
    text = _plain(text)
    cut = text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
    return html.escape(cut, quote=False)


def _plain(text: str) -> str:
    """One line; entities that a source left in its titles are read as what they stand for."""
    return " ".join(html.unescape(text).split())


def _colour_bar() -> dict[str, Any]:
    return {
        "title": {"text": "1 is even use, grey is unused", "side": "top", "font": {"size": 12}},
        "orientation": "h",
        "thickness": 8,
        "len": 1,
        "x": 0,
        "xanchor": "left",
        "y": 1.02,
        "yanchor": "bottom",
        "outlinewidth": 0,
        "tickvals": [0, 1, 2, 3, 4],
        "ticktext": ["0", "1", "2", "3", "≥ 4"],
    }


def _layout(**more: Any) -> go.Layout:
    return go.Layout(
        template="none",
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        separators=".\u202f",
        **more,
    )
