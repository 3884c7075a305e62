"""Section of semantic ids: facts, quality gate, and figures of code usage and of the first codes.

Shape letters: N items, L levels.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import plotly.graph_objects as go
import polars as pl
from numpy.typing import NDArray

from recpipe.reporting.figures import COLOURS, Axis, base_layout, escape
from recpipe.reporting.formatting import codes_per_level, count, percent

MAX_USAGE = 4.0  # multiple of even usage that gets the full colour
LABEL_WIDTH, LABEL_LINES = 14, 2  # characters and lines of a sector label
TITLE_LENGTH = 70  # characters of a title in a hover text
MIN_WORD_LENGTH = 3  # shorter words (of, 3, in) are ignored in the comparison of titles
HEIGHT = 420
FULL_CIRCLE = 10**9  # integer angles, as Plotly draws nothing where children exceed their parent
UNUSED = "rgba(140,140,140,0.22)"
LOW, EVEN, HIGH = (f"rgba(34,131,200,{alpha})" for alpha in (0.22, 0.5, 1))
USAGE_COLOURS = [[0, UNUSED], [0.001, UNUSED], [0.001, LOW], [1 / MAX_USAGE, EVEN], [1, HIGH]]
MODALITIES = {
    "text": "text", "image": "images", "text_image": "text and images", "text_parts": "parts of text vectors",
    "text_parts_32": "32 parts of text vectors", "text_collaborative": "text and item vectors of a model",
    "foreign": "a file",
}  # fmt: skip
COLLISION_POLICIES = {
    "extra_digit": "one more digit",
    "reallocate": "the nearest free code",
    "sinkhorn": "balanced re-assignment",
    "keep": "not resolved",
    "refuse": "none",
}


@dataclass(frozen=True)
class IdSection:
    """One kind of semantic ids on the page; ``line`` is for the terminal."""

    name: str  # such as text_ids; prefix of the names of its figures
    title: str
    passed: bool
    facts: list[tuple[str, str]]
    checks: list[dict[str, Any]]
    figures: Mapping[str, Any] = field(default_factory=dict)  # ``usage`` and ``sunburst``
    line: str = ""


def id_section(quality: Mapping[str, Any], figures: Mapping[str, Any]) -> IdSection:
    """Build a section from quality.json and the figures that the pipeline semantic_ids wrote."""
    modality = str(quality["modality"])
    keys = ("name", "value", "threshold", "passed", "advice")
    rows = zip(quality_rows(quality), quality["checks"], strict=True)
    return IdSection(
        name=f"{modality}_ids",
        title=f"Semantic ids from {MODALITIES.get(modality, modality)}",
        passed=bool(quality["passed"]),
        facts=_facts(quality),
        checks=[dict(zip(keys, (*row, str(check["advice"])), strict=True)) for row, check in rows],
        figures=figures,
        line=_summary_line(quality),
    )


def quality_rows(quality: Mapping[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Return a row per check of the quality gate: measure, value, limit, whether it passed."""
    signs = {"at least": "≥", "at most": "≤"}
    rows = []
    for check in quality["checks"]:
        value, limit = f"{check['value']:.3f}", f"{signs[check['asks']]} {check['threshold']:.3f}"
        rows.append((str(check["what"]), value, limit, bool(check["passed"])))
    return rows


def usage_heatmap(codes_NL: NDArray[np.integer], sizes: Sequence[int]) -> go.Figure:
    """Draw a row per level and a cell per code, by usage relative to even usage; ``sizes`` may have more levels."""
    levels, width = codes_NL.shape[1], max(sizes[: codes_NL.shape[1]])
    usage, hover, names = [], [], []
    for level in range(levels):
        counts = np.bincount(codes_NL[:, level], minlength=sizes[level])
        order, even = np.argsort(-counts, kind="stable"), len(codes_NL) / sizes[level]
        blank = [None] * (width - sizes[level])
        relative = np.minimum(counts[order] / even, MAX_USAGE).round(3)
        usage.append([*relative.tolist(), *blank])
        hover.append([*(f"code {code}: {count(counts[code])}" for code in order), *blank])
        names.append(f"level {level + 1}<br>{int((counts > 0).sum())} of {sizes[level]}")
    above = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "len": 1}
    title = {"text": "1: even usage, grey: unused", "side": "top", "font": {"size": 12}}
    ticks = {"tickvals": [0, 1, 2, 3, 4], "ticktext": ["0", "1", "2", "3", "≥ 4"]}
    heatmap = go.Heatmap(
        z=usage,
        y=names,
        text=hover,
        hovertemplate="level %{y}<br>%{text} items<extra></extra>",
        colorscale=USAGE_COLOURS,
        zmin=0,
        zmax=MAX_USAGE,
        ygap=6,
        hoverongaps=False,
        colorbar={**above, **ticks, "title": title, "thickness": 8, "outlinewidth": 0},
    )
    axis = Axis.DEFAULT | {"showgrid": False}
    layout = base_layout(
        height=max(HEIGHT, 150 + 45 * levels),
        xaxis={**axis, "title": {"text": "codes by usage"}, "range": [-0.5, width - 0.5]},
        yaxis={**axis, **Axis.REVERSED_CATEGORIES, "ticklabelstandoff": 6},
    )
    return go.Figure([heatmap], layout)


def sunburst(
    codes_NL: NDArray[np.integer],
    titles: Sequence[str | None],
    *,
    categories: Sequence[str | None] | None = None,
    depth: int = 3,
    first_codes: int = 10,
    next_codes: int = 3,
) -> go.Figure:
    """Draw the most frequent first codes as a ring, and outside each its most frequent next codes, down to ``depth``.

    Angles are shares among the sectors shown. The label is the most typical title of a sector, in the first ring its
    main category if any. Raises ValueError unless titles and categories have a value per item.
    """
    if len(titles) != len(codes_NL) or (categories is not None and len(categories) != len(codes_NL)):
        suffix = "" if categories is None else f" and {len(categories)} categories"
        raise ValueError(f"{len(codes_NL)} items have codes, but there are {len(titles)} titles{suffix}")
    depth = min(depth, codes_NL.shape[1])
    columns: dict[str, Any] = {f"c{level}": codes_NL[:, level] for level in range(depth)}
    columns["title"] = pl.Series([*titles], dtype=pl.String).fill_null("")
    columns["category"] = pl.Series([*(categories or [None] * len(titles))], dtype=pl.String)
    items = pl.DataFrame(columns).with_row_index("row")
    sectors = _sectors(items, [first_codes, *[next_codes] * (depth - 1)]).to_dict(as_series=False)
    ring = go.Sunburst(
        ids=sectors["id"],
        parents=sectors["parent"],
        values=sectors["angle"],
        labels=sectors["label"],
        customdata=sectors["hover"],
        branchvalues="total",
        maxdepth=3,
        sort=False,
        rotation=90,
        insidetextorientation="auto",
        marker={"colors": sectors["colour"], "line": {"width": 0.5, "color": "rgba(0,0,0,0)"}},
        leaf={"opacity": 1},
        hovertemplate="%{customdata}<extra></extra>",
    )
    invisible, text = {"visible": False}, {"minsize": 8, "mode": "hide"}
    return go.Figure([ring], base_layout(height=HEIGHT, xaxis=invisible, yaxis=invisible, uniformtext=text))


def _sectors(items: pl.DataFrame, ring_sizes: list[int]) -> pl.DataFrame:
    """One row per sector, parents before children: id, parent, angle, label, hover, colour."""
    first_codes = items["c0"].n_unique()
    label = f"{min(ring_sizes[0], first_codes)} of {count(first_codes)}<br>first codes"
    root = {"id": "all", "parent": "", "angle": FULL_CIRCLE, "label": label, "hover": f"{count(items.height)} items"}
    rings = [pl.DataFrame([{**root, "colour": "rgba(0,0,0,0)"}])]
    items = items.with_columns(parent=pl.lit("all"))
    for level, size in enumerate(ring_sizes):
        largest = _largest(items, f"c{level}", size)
        items = items.join(largest.select("parent", f"c{level}", "id"), on=["parent", f"c{level}"])
        rings.append(_ring(largest.join(_labels(items), on="id", maintain_order="left"), rings[-1], level))
        items = items.drop("parent").rename({"id": "parent"})
    return pl.concat(rings)


def _largest(items: pl.DataFrame, code: str, size: int) -> pl.DataFrame:
    """The ``size`` most frequent codes of every parent: parent, code, items, place, id."""
    return (
        items.group_by("parent", code)
        .len("items")
        .sort("parent", "items", code, descending=[False, True, False])
        .with_columns(place=pl.int_range(pl.len()).over("parent"))
        .filter(pl.col("place") < size)
        .with_columns(id=pl.format("{}.{}", pl.col("parent"), pl.col(code)))
    )


def _ring(sectors: pl.DataFrame, inner: pl.DataFrame, level: int) -> pl.DataFrame:
    """The sectors of a level; those of one parent fill its angle and, except in the first ring, have its colour."""
    parents = inner.select(parent="id", angle_of_parent="angle", colour_of_parent="colour")
    size = pl.col("items").cast(pl.Int64)
    rows = sectors.join(parents, on="parent", maintain_order="left").with_columns(
        angle=pl.col("angle_of_parent") * size // size.sum().over("parent")
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


def _labels(items: pl.DataFrame) -> pl.DataFrame:
    """Per sector ``id`` its main category and the title whose words occur in most other titles of the sector."""
    pattern = rf"\w{{{MIN_WORD_LENGTH},}}"
    words_of_title = pl.col("title").str.to_lowercase().str.extract_all(pattern).list.unique()
    word = pl.concat_list(pl.lit(""), words_of_title)  # with an empty word, so that titles without words stay
    words = items.select("id", "row", "title", word=word).explode("word")
    words = words.with_columns(shared=pl.len().over("id", "word"))
    typical = (
        words.group_by("id", "row", "title")
        .agg(score=pl.col("shared").filter(pl.col("word") != "").sum() / (pl.len() + 1))
        .sort("id", "score", "row", descending=[False, True, False])
        .group_by("id", maintain_order=True)
        .agg(pl.col("title").first(), others=pl.col("title").slice(1, 3))
    )
    categories = (
        items.drop_nulls("category")
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
        lines.append(f"{count(row['of_category'])} of them {_short(row['category'])}")
    lines += [_short(title) for title in (row["title"], *row["others"]) if title]
    return "<br>".join(lines)


def _label(text: str) -> str:
    lines = textwrap.wrap(_one_line(text), LABEL_WIDTH, max_lines=LABEL_LINES, placeholder="…")
    return "<br>".join(map(escape, lines))


def _short(text: str) -> str:
    text = _one_line(text)
    return escape(text if len(text) <= TITLE_LENGTH else f"{text[: TITLE_LENGTH - 1].rstrip()}…")


def _one_line(text: str) -> str:
    """Unescape HTML entities of a source and collapse white space."""
    return " ".join(html.unescape(text).split())


def _facts(quality: Mapping[str, Any]) -> list[tuple[str, str]]:
    before, after = quality["collisions"]["before"], quality["collisions"]["after"]
    depths = (quality["neighbours"] or {}).get("by_depth") or [{}]
    purity = quality.get("purity") or {}
    collisions = f"{count(before['sharing'])}; {count(before['largest'])} items"
    sampled = (quality["neighbours"] or {}).get("sample", quality["items"])
    sample = f" (of {count(sampled)} random items)" if sampled < quality["items"] else ""
    facts = [
        ("items with an id", count(quality["items"])),
        ("items without content and so without an id", count(quality["without_content"])),
        ("items added after the quantizer was fitted", count(quality["added"])),
        ("codes per level", codes_per_level(quality["sizes"])),
        ("codes used on the least used level", _least_usage(quality)),
        ("distinct ids before collisions were resolved", count(before["distinct"])),
        ("items in a collision before; largest collision", collisions),
        ("collisions resolved by", COLLISION_POLICIES.get(quality["policy"], quality["policy"])),
        ("items in a collision now", count(after["sharing"])),
        ("variance of the vectors lost in the codes", _lost(quality["reconstruction"])),
        ("nearest neighbours with the same first code", _with_chance(depths[0], "overlap", "random") + sample),
        *_collaborative_facts(quality.get("collaborative")),
        ("items of their first code\u2019s main category", _with_chance(purity, "first_code", "shuffled")),
    ]
    return [(name, value) for name, value in facts if value]


def _collaborative_facts(neighbours: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Facts on the nearest neighbours by item vectors of a trained model."""
    if not neighbours:
        return []
    names = ("the same first code", "the same first two codes")
    rows = zip(names, neighbours["by_depth"], strict=False)
    what = f"nearest neighbours by item vectors of {neighbours['model']}"
    return [(f"{what} with {name}", _with_chance(row, "overlap", "random")) for name, row in rows]


def _with_chance(values: Mapping[str, Any], name: str, chance: str) -> str:
    """Format as ``31 %, by chance 8 %``; empty without a value."""
    return "" if values.get(name) is None else f"{percent(values[name])}, by chance {percent(values[chance])}"


def _lost(reconstruction: Mapping[str, Any] | None) -> str:
    """Format the lost variance; empty where the quantizer is unknown."""
    return "" if reconstruction is None else percent(reconstruction["relative"])


def _least_usage(quality: Mapping[str, Any]) -> str:
    return percent(min(level["usage"] for level in quality["levels"]))


def _summary_line(quality: Mapping[str, Any]) -> str:
    verdict = "passed the gate" if quality["passed"] else "did NOT pass the gate"
    codes, distinct = codes_per_level(quality["sizes"]), count(quality["collisions"]["before"]["distinct"])
    return (
        f"{quality['modality']}: {count(quality['items'])} items, {codes} codes; {verdict}\n"
        f"   codes used on the least used level: {_least_usage(quality)}; "
        f"distinct ids before collisions were resolved: {distinct}"
    )
