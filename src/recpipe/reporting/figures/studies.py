"""Figures of sequence studies: what a setting does to accuracy and cost, and what of a history models use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures import COLOURS, colour, figure, text
from recpipe.reporting.formatting import metric_title, seconds

MOST = 3  # models with rows in the heat map
LOWER = {"train.window": ("seconds_per_epoch", "s / epoch"), "dim": ("used_dimensions", "dimensions used")}


def study_figures(studies: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> dict[str, go.Figure]:
    """`study_<name>` for each study, of whatever models have it: lines over a setting's values, or bars of drops."""
    made = {}
    for name in dict.fromkeys(each["study"] for each in studies):
        same = [each for each in studies if each["study"] == name and each["rows"]]
        setting = next((each["setting"] for each in same), None)
        drawn = (
            _drops(same, board)
            if setting is None
            else _lines([each for each in same if each["setting"] == setting], setting, board)
        )
        if drawn is not None:
            made[f"study_{name}"] = drawn
    return made


def _lines(same: Sequence[Mapping[str, Any]], setting: str, board: pl.DataFrame) -> go.Figure | None:
    """The metric above, below what it costs or makes use of."""
    if not same:
        return None
    below, unit = LOWER.get(setting, LOWER["train.window"])
    metric = same[0]["metric"]
    traces = []
    for each in same:
        line = {"color": shade(each, same, board), "width": 2}
        x = [str(row["value"]) for row in each["rows"]]
        hover = [
            f"{text(label(each))}, {text(setting)} {row['name']}: {row[metric]:.4f}<br>"
            f"{seconds(row['seconds_per_epoch'])} an epoch, {row['epochs']} epochs"
            for row in each["rows"]
        ]
        style = {
            "x": x,
            "line": line,
            "mode": "lines+markers",
            "customdata": hover,
            "hovertemplate": "%{customdata}<extra></extra>",
        }
        traces.append(go.Scatter(y=[row[metric] for row in each["rows"]], name=text(label(each)), **style))
        second = [row.get(below) for row in each["rows"]]
        traces.append(go.Scatter(y=second, yaxis="y2", showlegend=False, **style))
    order = sorted({row["value"] for each in same for row in each["rows"]})
    x_axis = {"type": "category", "categoryorder": "array", "categoryarray": [str(value) for value in order]}
    title = f"validation {metric_title(metric)}"
    drawn = figure(traces, x=text(setting), y=title, x_axis={**x_axis, "anchor": "y2"})
    drawn.update_layout(
        height=460,
        showlegend=len(same) > 1,
        yaxis={"domain": [0.4, 1]},
        yaxis2={
            "domain": [0, 0.3],
            "title": {"text": unit, "standoff": 12},
            "automargin": True,
            "zeroline": False,
            "rangemode": "tozero",
            "ticklabelstandoff": 4,
        },
    )
    return drawn


def _drops(same: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> go.Figure | None:
    """What is lost without a part, against the model as configured."""
    traces, count = [], 0
    for each in same:
        metric, whole = each["metric"], each["rows"][0]
        parts = each["rows"][1:]
        if not parts:
            continue
        count = max(count, len(parts))
        change = [row[metric] - whole[metric] for row in parts]
        hover = [f"{row['name']}: {row[metric]:.4f} instead of {whole[metric]:.4f}" for row in parts]
        traces.append(
            go.Bar(
                x=change,
                y=[text(row["name"]) for row in parts],
                name=text(label(each)),
                orientation="h",
                marker_color=shade(each, same, board),
                customdata=hover,
                hovertemplate="%{customdata}<extra></extra>",
            )
        )
    if not traces:
        return None
    title = f"change of validation {metric_title(same[0]['metric'])}"
    y_axis = {"autorange": "reversed", "type": "category"}
    drawn = figure(
        traces, x=title, x_axis={"tickformat": "+.3f", "nticks": 6, "zeroline": True}, y_axis=y_axis
    )
    return drawn.update_layout(height=max(260, 110 + (20 + 18 * len(traces)) * count))


def context_figures(contexts: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> dict[str, go.Figure]:
    """`effective_context`, `attribution` and `gap_by_length` of the models that were asked, the best first."""
    made = {
        "effective_context": _effective(contexts, board),
        "attribution": _attribution([each for each in contexts if each["attribution"]][:MOST]),
        "gap_by_length": _gap(contexts, board),
    }
    return {name: drawn for name, drawn in made.items() if drawn is not None}


def _effective(contexts: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> go.Figure | None:
    """Share of the metric that is left: solid where the rest is not read, dashed where it is shuffled."""
    traces = []
    for each in contexts:
        found = each["effective"]
        if not found["whole"] or not found["rows"]:
            continue
        x = [str(row["events"]) for row in found["rows"]]
        for kind, dash in (("truncated", "solid"), ("shuffled", "dash")):
            y = [row[kind] / found["whole"] for row in found["rows"]]
            what = "nothing before" if kind == "truncated" else "the rest shuffled"
            traces.append(
                go.Scatter(
                    x=x,
                    y=y,
                    name=text(f"{label(each)}, {what}"),
                    mode="lines+markers",
                    line={"color": shade(each, contexts, board), "width": 2, "dash": dash},
                    customdata=[row[kind] for row in found["rows"]],
                    hovertemplate=f"{text(label(each))}, last %{{x}} as they are, {what}: "
                    "%{y:.0%} (%{customdata:.4f})<extra></extra>",
                )
            )
    if not traces:
        return None
    x_axis = {"type": "category"}
    y_axis = {"tickformat": ".0%", "rangemode": "tozero"}
    return figure(traces, x="last events as they are", y="of the metric left", x_axis=x_axis, y_axis=y_axis)


def _attribution(contexts: Sequence[Mapping[str, Any]]) -> go.Figure | None:
    """Rows of models and history lengths, columns of places from the end; stronger for a larger share."""
    rows = [(each, group) for each in contexts for group in each["attribution"]]
    if not rows:
        return None
    width = max(_reach(group["shares"]) for _, group in rows)
    names = [f"{text(label(each))} · {group['history']}" for each, group in rows]
    heat = go.Heatmap(
        z=[group["shares"][:width] for _, group in rows],
        x=list(range(1, width + 1)),
        y=names,
        colorscale=[[0, "rgba(34,131,200,0.04)"], [1, COLOURS[0]]],
        zmin=0,
        colorbar={"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
        hovertemplate="%{y} events, place %{x} from the end: %{z:.1%}<extra></extra>",
    )
    y_axis = {"autorange": "reversed", "type": "category"}
    drawn = figure([heat], x="place from the end, 1 the last event", y_axis=y_axis)
    return drawn.update_layout(height=max(260, 110 + 26 * len(rows)))


def _reach(shares: Sequence[float]) -> int:
    """Places up to the last with any share."""
    return max((place for place, share in enumerate(shares, 1) if share > 0), default=1)


def _gap(contexts: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> go.Figure | None:
    """Dashed what training asked, solid what validation asks."""
    traces = []
    for each in contexts:
        groups = each["gap"]
        for kind, dash in (("valid", "solid"), ("train", "dash")) if groups else ():
            own = text(label(each))
            traces.append(
                go.Scatter(
                    x=[group["history"] for group in groups],
                    y=[group[kind] for group in groups],
                    name=f"{own}, {'validation' if kind == 'valid' else 'training'}",
                    mode="lines+markers",
                    line={"color": shade(each, contexts, board), "width": 2, "dash": dash},
                    customdata=[group[f"{kind}_users"] for group in groups],
                    hovertemplate=f"{own}, %{{x}} events, {kind}: %{{y:.4f}}<br>%{{customdata:,}} users<extra></extra>",
                )
            )
    if not traces:
        return None
    x_axis = {"type": "category", "title": {"text": "events before the target", "standoff": 16}}
    title = metric_title(contexts[0]["metric"])
    return figure(traces, y=title, x_axis=x_axis, y_axis={"rangemode": "tozero"})


def label(each: Mapping[str, Any]) -> str:
    """What a run is called: the model, and its seed where it is told apart by that."""
    name: str = each.get("label") or each["model"]
    return name


def shade(each: Mapping[str, Any], among: Sequence[Mapping[str, Any]], board: pl.DataFrame) -> str:
    """The colour that the model has in other figures; one that was never evaluated has its own among these."""
    if board.height and each["model"] in board["model"].to_list():
        return colour(each["model"], board)
    return COLOURS[
        -1 - list(dict.fromkeys(other["model"] for other in among)).index(each["model"]) % len(COLOURS)
    ]
