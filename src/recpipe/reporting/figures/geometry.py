"""Section of item geometry: tables with null bands, and figures of spectra, norms and agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import plotly.graph_objects as go

from recpipe.evaluation.segments import POPULARITY
from recpipe.reporting.figures import COLOURS, GREY, TEXTS, Axis, Table, drop_missing, escape, figure, line
from recpipe.reporting.formatting import MISSING, count, percent

Measures = Mapping[str, Any]  # of one table, as JSON
MAX_LINES, MAX_CELLS = 6, 12  # tables in a figure of lines, rows and columns of a matrix
TITLE_LENGTH = 80
FULL_COLOUR = {"overlap": 0.2, "cka": 0.5}  # smallest maximum of the colour scale
INTRO = {"measured": "items", "all": "with_events", "k": "k", "nulls": "nulls"}  # counts by name in the page
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
        message = f"Measured on another split than that on disk ({geometry['protocol']}): run `{COMMAND}` again"
        problems.insert(0, message)
    return GeometrySection(
        head=["table", *(head for head, _ in COLUMNS.values())],
        rows=[_row(table, geometry["items"]) for table in tables],
        meanings=list(COLUMNS.values()),
        group_head=["items", *GROUP_COLUMNS.values()],
        group_rows=[row for table in tables for row in _group_rows(table)],
        stability=_stability(geometry["stability"]),
        examples=geometry["nearest"],
        intro={key: count(geometry[source]) for key, source in INTRO.items()},
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
    figures = {
        "geometry_variance": _curves(tables, "cumulative"),
        "geometry_spectrum": _curves(tables, "eigenvalues"),
        "geometry_groups": _curves(groups, "cumulative"),
        "geometry_norms": _norms(tables),
        "geometry_overlap": _matrix(geometry, "overlap", "neighbours in common", ".0%"),
        "geometry_cka": _matrix(geometry, "cka", "CKA", ".2f"),
        "geometry_map": _map(geometry["map"]),
    }
    return drop_missing(figures)


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
        name, curves = escape(table["name"]), table["curves"]
        for source, label in (("own", name), ("chance", f"{name}, {table['null']}")):
            points = [
                (round(place / table["width"], 4), float(f"{value:.4g}"))
                for place, value in zip(curves["place"], curves[source][kind], strict=True)
                if value is not None and (cumulative or value > 1e-6)
            ]
            x, y = [x for x, _ in points], [y for _, y in points]
            is_own = source == "own"
            hover = f"{label}: %{{y:{'.1%' if cumulative else '.3g'}}}"
            style: dict[str, Any] = {"showlegend": is_own} | ({} if is_own else {"width": 1, "dash": "dot"})
            traces.append(line(x, y, name=label, mode="lines", colour=colour, hover=hover, **style))
    title, y_axis = "variance, mean = 1", Axis.LOG
    if cumulative:
        title, y_axis = "share of the variance", Axis.PERCENT | Axis.FROM_ZERO
    x_title, height = "share of the dimensions, largest first", 340 + 17 * max(len(tables) - 3, 0)
    return figure(traces, x=x_title, y=title, x_axis=Axis.PERCENT, y_axis=y_axis, height=height)


def _norms(tables: Sequence[Measures]) -> go.Figure | None:
    """Norms by popularity, without tables whose norms are all equal."""
    traces = []
    for colour, table in zip(COLOURS, tables, strict=False):
        name, norms = escape(table["name"]), table["norms"]
        if table["values"]["norm_popularity"] is not None and len(norms["events"]) > 1:
            x, y = [round(value, 2) for value in norms["events"]], [round(value, 4) for value in norms["norms"]]
            hover = f"{name}: %{{y:.2f}} of the mean<br>%{{customdata:,}} items with about %{{x:.3~s}} events"
            traces.append(line(x, y, name=name, colour=colour, hover=hover, customdata=norms["items"]))
    if not traces:
        return None
    events = [value for trace in traces for value in trace.x]
    steps = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    ticks = [tick for tick in steps if min(events) / 1.5 <= tick <= max(events) * 1.5]
    x_axis = {"type": "log", "tickvals": ticks, "ticktext": [*map(count, ticks)]}
    drawing = figure(traces, x="training events", y="norm, mean = 1", x_axis=x_axis, y_axis=Axis.FROM_ZERO)
    return drawing.add_hline(y=1, line={"color": GREY, "width": 1, "dash": "dot"})


def _matrix(geometry: Mapping[str, Any], kind: str, label: str, form: str) -> go.Figure | None:
    """Agreement of pairs of tables, with an empty diagonal."""
    names = [table["name"] for table in _select(geometry["tables"], MAX_CELLS)]
    agreement = geometry["agreement"]
    rows = [agreement["names"].index(name) for name in names]
    if len(rows) < 2:
        return None

    def cells(key: str) -> list[list[float | None]]:
        table = agreement[key]
        return [[None if a == b or table[a][b] is None else round(table[a][b], 4) for b in rows] for a in rows]

    values = [agreement[kind][a][b] for a in rows for b in rows if a != b]
    labels = [escape(name) for name in names]
    heatmap = go.Heatmap(
        x=labels,
        y=labels,
        z=cells(kind),
        customdata=cells(f"{kind}_by_chance"),
        colorscale=[[0, "#edf4f9"], [1, COLOURS[0]]],
        zmin=0,
        zmax=max(FULL_COLOUR[kind], *(value for value in values if value is not None)),
        showscale=False,
        xgap=2,
        ygap=2,
        texttemplate=f"%{{z:{form}}}",
        hoverongaps=False,
        hovertemplate=f"%{{y}}, %{{x}}<br>%{{z:{form}}} {label}, untrained %{{customdata:{form}}}<extra></extra>",
    )
    x_axis = Axis.CATEGORIES | {"tickangle": -30, "showline": False}
    y_axis = Axis.REVERSED_CATEGORIES | {"showgrid": False}
    return figure([heatmap], x_axis=x_axis, y_axis=y_axis, height=max(340, 140 + 34 * len(names)))


def _map(item_map: Mapping[str, Any] | None) -> go.Figure | None:
    """A dot per item, popular items on top."""
    if not item_map:
        return None
    titles = [t if len(t) <= TITLE_LENGTH else t[: TITLE_LENGTH - 1] + "…" for t in item_map["titles"]]
    traces = []
    for code, group in reversed(list(enumerate(POPULARITY))):
        if rows := [row for row, name in enumerate(item_map["groups"]) if name == group]:
            traces.append(
                go.Scatter(
                    x=[item_map["x"][row] for row in rows],
                    y=[item_map["y"][row] for row in rows],
                    name=group,
                    mode="markers",
                    marker={"color": COLOURS[code], "size": (9, 6, 5)[code], "opacity": (0.9, 0.7, 0.5)[code]},
                    customdata=[[escape(titles[row]), item_map["events"][row]] for row in rows],
                    hovertemplate="%{customdata[0]}<br>%{customdata[1]:,} events, " + group + "<extra></extra>",
                )
            )
    x_axis, y_axis = {"visible": False}, {"visible": False, "scaleanchor": "x"}
    options: dict[str, Any] = {"showlegend": True, "legend_traceorder": "reversed", "hovermode": "closest"}
    return figure(traces, x_axis=x_axis, y_axis=y_axis, height=520, **options)


def _row(table: Measures, items: int) -> Row:
    """Cells of a table, and the number of its items where some have no vector."""
    suffix = "" if table["items"] == items else f", {count(table['items'])} items"
    cells = [_cell(key, table["values"][key], table["bands"][key]) for key in COLUMNS]
    if table["values"]["participation_ratio"] is not None:
        cells[0] = cells[0]._replace(value=f"{cells[0].value} of {table['width']}")
    return table["name"], f"{table['null']}{suffix}", cells


def _group_rows(table: Measures) -> list[Row]:
    groups = {name: table["groups"][name] for name in POPULARITY if table["groups"].get(name) is not None}
    rows = []
    for name, group in groups.items():
        cells = [_cell(key, group["values"][key], group["bands"][key]) for key in GROUP_COLUMNS]
        rows.append((f"{table['name']}, {name}", f"{count(group['values']['items'])} items", cells))
    return rows


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
    digits = 1 if key in ("participation_ratio", "effective_rank", "intrinsic_dimension") else 2
    return f"{value:.{digits}f}".replace("-", "\u2212") if digits == 1 or abs(value) >= 0.005 else "0.00"


def _stability(models: Sequence[Mapping[str, Any]]) -> Table | None:
    """Agreement between seeds of one model."""
    if not models:
        return None
    rows = []
    for model in models:
        overlaps = [model["overlap"], model["by_chance"], *(model["groups"].get(name) for name in POPULARITY)]
        cka = [_number("cka", model[key]) for key in ("cka", "cka_by_chance")]
        rows.append([model["name"], str(model["seeds"]), *map(percent, overlaps), *cka])
    return ["table", "seeds", "same neighbours", "untrained", *POPULARITY, "CKA", "untrained"], rows
