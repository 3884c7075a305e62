"""Section of item geometry: tables with null bands, and figures of spectra, norms and agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import plotly.graph_objects as go

from recpipe.evaluation.segments import POPULARITY
from recpipe.reporting.figures import (
    CATEGORIES,
    COLOURS,
    FROM_ZERO,
    GREY,
    LOG,
    PERCENT,
    REVERSED_CATEGORIES,
    TEXTS,
    Table,
    drop_missing,
    escape,
    figure,
    line,
)
from recpipe.reporting.formatting import MISSING, count, percent

Cells = list[float | None]
Measures = Mapping[str, Any]  # of one table, as JSON
MAX_LINES, MAX_CELLS = 6, 12  # tables in a figure of lines, rows and columns of a matrix
TITLE_LENGTH = 80
PALE, STRONG = "#edf4f9", "#2283c8"
FULL_COLOUR = {"overlap": 0.2, "cka": 0.5}  # smallest maximum of the colour scale
COMMAND = "kedro run --pipelines=geometry,report"
COLUMNS: dict[str, list[str]] = TEXTS["geometry_columns"]  # head and meaning by measure
GROUP_COLUMNS = {
    **{key: head for key, (head, _) in COLUMNS.items() if key not in ("effective_rank", "norm_popularity")},
    "norm": "norm, mean = 1",
    "occurrence": "neighbour count, mean = 1",
}


class Cell(NamedTuple):
    """A value, its null band, and whether it lies within the band."""

    value: str
    band: str
    inside: bool


Row = tuple[str, str, list[Cell]]  # name, description, cells


@dataclass(frozen=True)
class GeometrySection:
    """Item geometry on the page."""

    head: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    meanings: list[list[str]] = field(default_factory=list)
    group_head: list[str] = field(default_factory=list)
    group_rows: list[Row] = field(default_factory=list)
    stability: Table | None = None
    examples: Sequence[Mapping[str, Any]] = ()
    intro: Mapping[str, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    problems: Sequence[str] = ()
    figures: Mapping[str, go.Figure] = field(default_factory=dict)


def geometry_section(geometry: Mapping[str, Any] | None, split: str) -> GeometrySection | None:
    """Build the section from geometry.json, None without it; ``split`` is the protocol id of the split on disk."""
    if not geometry:
        return None
    tables, problems = geometry["tables"], list(geometry["problems"])
    if geometry["protocol"] != split:
        problems.insert(
            0, f"Measured on another split than that on disk ({geometry['protocol']}): run `{COMMAND}` again"
        )
    return GeometrySection(
        head=["table", *(head for head, _ in COLUMNS.values())],
        rows=[_row(table, geometry["items"]) for table in tables],
        meanings=list(COLUMNS.values()),
        group_head=["items", *GROUP_COLUMNS.values()],
        group_rows=[row for table in tables for row in _group_rows(table)],
        stability=_stability(geometry["stability"]),
        examples=geometry["nearest"],
        intro={
            "measured": count(geometry["items"]),
            "all": count(geometry["with_events"]),
            "k": count(geometry["k"]),
            "nulls": count(geometry["nulls"]),
        },
        without=geometry["without"],
        problems=problems,
        figures=geometry_figures(geometry),
    )


def geometry_figures(geometry: Mapping[str, Any] | None) -> dict[str, go.Figure]:
    """Draw geometry.json by name, without figures that lack data."""
    if not geometry or not geometry["tables"]:
        return {}
    tables = _select(geometry["tables"], MAX_LINES)
    groups = [{**tables[0], "name": name, **group} for name, group in tables[0]["groups"].items()]
    return drop_missing(
        {
            "geometry_variance": _curves(tables, "cumulative"),
            "geometry_spectrum": _curves(tables, "eigenvalues"),
            "geometry_groups": _curves(groups, "cumulative"),
            "geometry_norms": _norms(tables),
            "geometry_overlap": _matrix(geometry, "overlap", "neighbours in common", ".0%"),
            "geometry_cka": _matrix(geometry, "cka", "CKA", ".2f"),
            "geometry_map": _map(geometry["map"]),
        }
    )


def _select(tables: Sequence[Measures], limit: int) -> list[Measures]:
    """The first models, at least one, and the encoders."""
    models = [table for table in tables if table["run"]]
    encoders = [table for table in tables if not table["run"]]
    return [*models[: max(limit - len(encoders), 1)], *encoders][:limit]


def _curves(tables: Sequence[Measures], kind: str) -> go.Figure:
    """Curves over the share of dimensions; dotted in the same colour: the mean of the null tables."""
    cumulative = kind == "cumulative"
    traces = []
    for colour, table in zip(COLOURS, tables, strict=False):
        name = escape(table["name"])
        for source, label, style in (
            ("own", name, {"width": 2}),
            ("chance", f"{name}, {table['null']}", {"width": 1, "dash": "dot"}),
        ):
            points = [
                (round(place / table["width"], 4), float(f"{value:.4g}"))
                for place, value in zip(table["curves"]["place"], table["curves"][source][kind], strict=True)
                if value is not None and (cumulative or value > 1e-6)
            ]
            traces.append(
                line(
                    [x for x, _ in points],
                    [y for _, y in points],
                    name=label,
                    mode="lines",
                    colour=colour,
                    hover=f"{label}: %{{y:{'.1%' if cumulative else '.3g'}}}",
                    showlegend=source == "own",
                    **style,
                )
            )
    return figure(
        traces,
        x="share of the dimensions, largest first",
        y="share of the variance" if cumulative else "variance, mean = 1",
        x_axis=PERCENT,
        y_axis=PERCENT | FROM_ZERO if cumulative else LOG,
        height=340 + 17 * max(len(tables) - 3, 0),
    )


def _norms(tables: Sequence[Measures]) -> go.Figure | None:
    """Norms by popularity, without tables whose norms are all equal."""
    traces = [
        line(
            [round(value, 2) for value in table["norms"]["events"]],
            [round(value, 4) for value in table["norms"]["norms"]],
            name=escape(table["name"]),
            colour=colour,
            hover=f"{escape(table['name'])}: %{{y:.2f}} of the mean<br>"
            "%{customdata:,} items with about %{x:.3~s} events",
            data=table["norms"]["items"],
        )
        for colour, table in zip(COLOURS, tables, strict=False)
        if table["values"]["norm_popularity"] is not None and len(table["norms"]["events"]) > 1
    ]
    if not traces:
        return None
    events = [value for trace in traces for value in trace.x]
    steps = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    ticks = [tick for tick in steps if min(events) / 1.5 <= tick <= max(events) * 1.5]
    x_axis = {"type": "log", "tickvals": ticks, "ticktext": [count(tick) for tick in ticks]}
    drawing = figure(traces, x="training events", y="norm, mean = 1", x_axis=x_axis, y_axis=FROM_ZERO)
    return drawing.add_hline(y=1, line={"color": GREY, "width": 1, "dash": "dot"})


def _matrix(geometry: Mapping[str, Any], kind: str, label: str, form: str) -> go.Figure | None:
    """Agreement of pairs of tables, with an empty diagonal."""
    names = [table["name"] for table in _select(geometry["tables"], MAX_CELLS)]
    agreement = geometry["agreement"]
    rows = [agreement["names"].index(name) for name in names]
    if len(rows) < 2:
        return None

    def cells(key: str) -> list[Cells]:
        return [[None if a == b else agreement[key][a][b] for b in rows] for a in rows]

    values, labels = cells(kind), [escape(name) for name in names]
    heatmap = go.Heatmap(
        x=labels,
        y=labels,
        z=_round(values),
        customdata=_round(cells(f"{kind}_by_chance")),
        colorscale=[[0, PALE], [1, STRONG]],
        zmin=0,
        zmax=max(FULL_COLOUR[kind], *(value for row in values for value in row if value is not None)),
        showscale=False,
        xgap=2,
        ygap=2,
        texttemplate=f"%{{z:{form}}}",
        hoverongaps=False,
        hovertemplate=f"%{{y}}, %{{x}}<br>%{{z:{form}}} {label}, untrained %{{customdata:{form}}}<extra></extra>",
    )
    x_axis = CATEGORIES | {"tickangle": -30, "showline": False}
    y_axis = REVERSED_CATEGORIES | {"showgrid": False}
    return figure([heatmap], x_axis=x_axis, y_axis=y_axis, height=max(340, 140 + 34 * len(names)))


def _round(cells: list[Cells]) -> list[Cells]:
    return [[None if value is None else round(value, 4) for value in row] for row in cells]


def _map(item_map: Mapping[str, Any] | None) -> go.Figure | None:
    """A dot per item, popular items on top."""
    if not item_map:
        return None
    traces = []
    for code, group in reversed(list(enumerate(POPULARITY))):
        rows = [row for row, name in enumerate(item_map["groups"]) if name == group]
        if not rows:
            continue
        traces.append(
            go.Scatter(
                x=[item_map["x"][row] for row in rows],
                y=[item_map["y"][row] for row in rows],
                name=group,
                mode="markers",
                marker={"color": COLOURS[code], "size": (9, 6, 5)[code], "opacity": (0.9, 0.7, 0.5)[code]},
                customdata=[[_short(item_map["titles"][row]), item_map["events"][row]] for row in rows],
                hovertemplate="%{customdata[0]}<br>%{customdata[1]:,} events, " + group + "<extra></extra>",
            )
        )
    hidden = {"visible": False}
    return figure(
        traces,
        x_axis=hidden,
        y_axis={**hidden, "scaleanchor": "x"},
        height=520,
        showlegend=True,
        legend_traceorder="reversed",
        hovermode="closest",
    )


def _short(title: str) -> str:
    return escape(title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…")


def _row(table: Measures, items: int) -> Row:
    """Cells of a table, and the number of its items where some have no vector."""
    suffix = "" if table["items"] == items else f", {count(table['items'])} items"
    cells = [_cell(key, table["values"][key], table["bands"][key]) for key in COLUMNS]
    if table["values"]["participation_ratio"] is not None:
        cells[0] = cells[0]._replace(value=f"{cells[0].value} of {table['width']}")
    return table["name"], f"{table['null']}{suffix}", cells


def _group_rows(table: Measures) -> list[Row]:
    groups = {name: table["groups"][name] for name in POPULARITY if table["groups"].get(name) is not None}
    return [
        (
            f"{table['name']}, {name}",
            f"{count(group['values']['items'])} items",
            [_cell(key, group["values"][key], group["bands"][key]) for key in GROUP_COLUMNS],
        )
        for name, group in groups.items()
    ]


def _cell(key: str, value: float | None, band: Sequence[float] | None) -> Cell:
    if value is None or band is None:
        return Cell(_number(key, value), "", False)
    ends = list(dict.fromkeys(_number(key, end) for end in band))  # one number where both ends read the same
    joined = (" to " if "\u2212" in "".join(ends) else "\u2013").join(ends)
    return Cell(_number(key, value), joined, band[0] <= value <= band[1])


def _number(key: str, value: float | None) -> str:
    if value is None:
        return MISSING
    if key == "orphans":
        return f"{100 * max(value, 0):.1f}\u202f%"
    if key in ("participation_ratio", "effective_rank", "intrinsic_dimension"):
        return f"{value:.1f}".replace("-", "\u2212")
    return f"{value:.2f}".replace("-", "\u2212") if abs(value) >= 0.005 else "0.00"


def _stability(models: Sequence[Mapping[str, Any]]) -> Table | None:
    """Agreement between seeds of one model."""
    if not models:
        return None
    rows = [
        [
            model["name"],
            str(model["seeds"]),
            percent(model["overlap"]),
            percent(model["by_chance"]),
            *(percent(model["groups"].get(name)) for name in POPULARITY),
            _number("cka", model["cka"]),
            _number("cka", model["cka_by_chance"]),
        ]
        for model in models
    ]
    return ["table", "seeds", "same neighbours", "untrained", *POPULARITY, "CKA", "untrained"], rows
