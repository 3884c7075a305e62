"""Figures of item geometry: spectra, norms, agreement of tables, a map. Of the best models and the encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from recpipe.evaluation.segments import POPULARITY
from recpipe.reporting.figures import COLOURS, figure, text
from recpipe.reporting.formatting import count

LINES, CELLS = 6, 12  # tables in a figure of lines, and beside each other
TITLE = 80  # characters
PALE, STRONG = "#edf4f9", "#2283c8"
FULL = {"overlap": 0.2, "cka": 0.5}  # from which value on a cell is in full colour, unless one is higher


def geometry_figures(found: Mapping[str, Any] | None) -> dict[str, go.Figure]:
    """By name, those there is data for; ``found`` as `recpipe.evaluation.geometry.study` makes it."""
    if not found or not found["tables"]:
        return {}
    tables = _shown(found["tables"], LINES)
    made = {
        "geometry_variance": _curves(tables, "cumulative"),
        "geometry_spectrum": _curves(tables, "eigenvalues"),
        "geometry_groups": _curves(_groups(tables[0]), "cumulative"),
        "geometry_norms": _norms(tables),
        "geometry_overlap": _matrix(found, "overlap", "of neighbours in common", ".0%"),
        "geometry_cka": _matrix(found, "cka", "CKA", ".2f"),
        "geometry_map": _map(found["map"]),
    }
    return {name: each for name, each in made.items() if each is not None}


def _shown(tables: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """The first, and the encoders, which are last, in any case."""
    models, encoders = ([each for each in tables if bool(each["run"]) == of] for of in (True, False))
    return [*models[: max(most - len(encoders), 1)], *encoders][:most]


def _groups(table: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Head, middle and tail of a table, as tables."""
    about = {"width": table["width"], "null": table["null"]}
    return [{**about, "name": name, "curves": each["curves"]} for name, each in table["groups"].items()]


def _curves(tables: Sequence[Mapping[str, Any]], kind: str) -> go.Figure:
    """Over the share of dimensions; the mean of the random tables dotted, in the colour of their own."""
    traces = []
    for own, each in zip(COLOURS, tables, strict=False):
        for source, line in (("own", {"width": 2}), ("chance", {"width": 1, "dash": "dot"})):
            values = each["curves"][source][kind]
            points = [
                (round(place / each["width"], 4), float(f"{value:.4g}"))
                for place, value in zip(each["curves"]["place"], values, strict=True)
                if value is not None and (kind == "cumulative" or value > 1e-6)
            ]
            called = text(each["name"]) if source == "own" else f"{text(each['name'])}, {each['null']}"
            traces.append(
                go.Scatter(
                    x=[x for x, _ in points],
                    y=[y for _, y in points],
                    name=called,
                    mode="lines",
                    line={"color": own, **line},
                    showlegend=source == "own",
                    hovertemplate=f"{called}: %{{y:{'.1%' if kind == 'cumulative' else '.3g'}}}<extra></extra>",
                )
            )
    if kind == "cumulative":
        drawn = figure(traces, y="share of the variance", y_axis={"tickformat": ".0%", "rangemode": "tozero"})
    else:
        drawn = figure(traces, y="variance, mean = 1", y_axis={"type": "log", "dtick": 1})
    x_axis = {"title": {"text": "share of the dimensions, largest first"}, "tickformat": ".0%"}
    return drawn.update_layout(xaxis=x_axis, height=340 + 17 * max(len(tables) - 3, 0))


def _norms(tables: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Lengths by popularity; tables whose vectors all have one length are left out."""
    there = [
        (own, each)
        for own, each in zip(COLOURS, tables, strict=False)
        if each["values"]["norm_popularity"] is not None and len(each["norms"]["events"]) > 1
    ]
    traces = [
        go.Scatter(
            x=[round(value, 2) for value in each["norms"]["events"]],
            y=[round(value, 4) for value in each["norms"]["norms"]],
            name=text(each["name"]),
            mode="lines+markers",
            line={"color": own, "width": 2},
            customdata=each["norms"]["items"],
            hovertemplate=f"{text(each['name'])}: %{{y:.2f}} of the mean<br>%{{customdata:,}} items with about "
            "%{x:.3~s} events<extra></extra>",
        )
        for own, each in there
    ]
    if not traces:
        return None
    ends = [value for trace in traces for value in trace.x]
    ticks = [step * 10**power for power in range(9) for step in (1, 2, 5)]
    shown = [tick for tick in ticks if min(ends) / 1.5 <= tick <= max(ends) * 1.5]
    x_axis = {"type": "log", "tickvals": shown, "ticktext": [count(tick) for tick in shown]}
    y_axis = {"rangemode": "tozero"}
    drawn = figure(traces, x="events in training", y="length, mean = 1", x_axis=x_axis, y_axis=y_axis)
    return drawn.add_hline(y=1, line={"color": COLOURS[-1], "width": 1, "dash": "dot"})


def _matrix(found: Mapping[str, Any], kind: str, what: str, form: str) -> go.Figure | None:
    """Pairs of tables; the diagonal, which is always 1, is empty."""
    shown = [each["name"] for each in _shown(found["tables"], CELLS)]
    places = [found["agreement"]["names"].index(name) for name in shown]
    if len(places) < 2:
        return None
    cells, chance = (
        [[None if a == b else found["agreement"][key][a][b] for b in places] for a in places]
        for key in (kind, f"{kind}_by_chance")
    )
    names = [text(name) for name in shown]
    drawn = figure(
        [
            go.Heatmap(
                x=names,
                y=names,
                z=_rounded(cells),
                customdata=_rounded(chance),
                colorscale=[[0, PALE], [1, STRONG]],
                zmin=0,
                zmax=max(FULL[kind], *(value for row in cells for value in row if value is not None)),
                showscale=False,
                xgap=2,
                ygap=2,
                texttemplate=f"%{{z:{form}}}",
                hoverongaps=False,
                hovertemplate=f"%{{y}}, %{{x}}<br>%{{z:{form}}} {what}, untrained %{{customdata:{form}}}"
                "<extra></extra>",
            )
        ],
        x_axis={"type": "category", "tickangle": -30, "showline": False},
        y_axis={"type": "category", "autorange": "reversed", "showgrid": False},
    )
    return drawn.update_layout(height=max(340, 140 + 34 * len(names)))


def _rounded(cells: list[list[float | None]]) -> list[list[float | None]]:
    return [[None if value is None else round(value, 4) for value in row] for row in cells]


def _map(drawn: Mapping[str, Any] | None) -> go.Figure | None:
    """A dot per item, the popular ones last, so that they are on top."""
    if not drawn:
        return None
    traces = []
    for code, group in reversed(list(enumerate(POPULARITY))):
        rows = [row for row, each in enumerate(drawn["groups"]) if each == group]
        if not rows:
            continue
        traces.append(
            go.Scatter(
                x=[drawn["x"][row] for row in rows],
                y=[drawn["y"][row] for row in rows],
                name=group,
                mode="markers",
                marker={"color": COLOURS[code], "size": (9, 6, 5)[code], "opacity": (0.9, 0.7, 0.5)[code]},
                customdata=[[_cut(drawn["titles"][row]), drawn["events"][row]] for row in rows],
                hovertemplate="%{customdata[0]}<br>%{customdata[1]:,} events, " + group + "<extra></extra>",
            )
        )
    bare = {"visible": False}
    made = figure(traces, x_axis=bare, y_axis={**bare, "scaleanchor": "x"})
    return made.update_layout(height=520, showlegend=True, legend_traceorder="reversed", hovermode="closest")


def _cut(title: str) -> str:
    return text(title if len(title) <= TITLE else title[: TITLE - 1] + "…")
