"""Figures of the audit: models on both halves of the test targets, popularity of targets, events over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures import COLOURS, GREY, Axis, drop_missing, escape, figure, line
from recpipe.reporting.formatting import metric_title

MAX_MODELS = 16  # the best ones
HALVES = {"memorised": COLOURS[0], "generalised": COLOURS[1]}


def half_metric(metric: str) -> str:
    """Return the metric that parts of the targets have in place of ``metric``: recall or NDCG, at its cut-off."""
    stem, _, cutoff = metric.partition("@")
    return f"{'recall' if stem in ('recall', 'hit_rate') else 'ndcg'}@{cutoff}"


def audit_figures(audit: Mapping[str, Any] | None, board: pl.DataFrame, *, metric: str) -> dict[str, go.Figure]:
    """Draw the figures by name, without those that lack data; ``board`` is one protocol of the leaderboard."""
    curves = (audit or {}).get("curves") or {}
    figures = {
        "audit_halves": _halves(board, half_metric(metric)),
        "audit_popularity": _popularity(curves.get("popularity")),
        "audit_time": _time(curves.get("time")),
    }
    return drop_missing(figures)


def _halves(board: pl.DataFrame, metric: str) -> go.Figure | None:
    """A dumbbell per model, best on top: the metric of memorised targets and that of the others."""
    names = [f"{half}_{metric}" for half in HALVES]
    if not {*names} <= {*board.columns}:
        return None
    rows = board.drop_nulls(names).head(MAX_MODELS).to_dicts()
    if not rows:
        return None
    models = [escape(row["model"]) for row in rows]
    ends = [value for row in rows for value in (row[names[0]], row[names[1]], None)]
    bars = go.Scatter(
        x=ends,
        y=[model for model in models for _ in range(3)],
        mode="lines",
        line={"color": GREY, "width": 2},
        hoverinfo="skip",
        showlegend=False,
    )
    points = [
        go.Scatter(
            x=[row[name] for row in rows],
            y=models,
            name=half,
            mode="markers",
            marker={"size": 11, "color": colour, "symbol": "circle" if half == "memorised" else "diamond"},
            hovertemplate=f"%{{y}}, {half}: %{{x:.4f}}<extra></extra>",
        )
        for (half, colour), name in zip(HALVES.items(), names, strict=True)
    ]
    y_axis, height = Axis.REVERSED_CATEGORIES | {"showgrid": False}, max(340, 110 + 34 * len(rows))
    x_axis = Axis.FROM_ZERO
    return figure([bars, *points], x=f"test {metric_title(metric)}", x_axis=x_axis, y_axis=y_axis, height=height)


def _popularity(curve: Mapping[str, Any] | None) -> go.Figure | None:
    """Cumulative share of the targets and of the training events over items, most popular first."""
    if not curve:
        return None
    traces = [
        line(
            curve["items"],
            curve[key],
            name=name,
            colour=colour,
            mode="lines",
            hover=f"%{{y:.1%}} of the {name} with %{{x:.2%}} of the items",
        )
        for key, name, colour in (
            ("targets", "test targets", COLOURS[1]),
            ("train_events", "training events", COLOURS[0]),
        )
    ]
    x_axis = Axis.LOG | {"tickformat": "~%"}
    y_axis = Axis.PERCENT | {"range": [0, 1.02]}
    return figure(traces, x="most popular items", y="cumulative share", x_axis=x_axis, y_axis=y_axis)


def _time(curve: Mapping[str, Any] | None) -> go.Figure | None:
    """Cumulative share of training events and of test targets over time."""
    if not curve or len(curve["time"]) < 2:
        return None
    times, x_axis = _time_axis(curve["time"])
    traces = [
        line(times, curve[key], name=name, colour=colour, mode="lines", hover=f"%{{x}}: %{{y:.1%}} of the {name}")
        for key, name, colour in (
            ("train_events", "training events", COLOURS[0]),
            ("targets", "test targets", COLOURS[1]),
        )
    ]
    y_axis = Axis.PERCENT | {"range": [0, 1.02]}
    return figure(traces, y="cumulative share", x_axis=x_axis, y_axis=y_axis)


def _time_axis(seconds: Sequence[int]) -> tuple[list[str] | list[int], dict[str, Any]]:
    """Return the times in UTC for an axis of dates; the seconds since 1970 where one is no date, as in milliseconds."""
    try:
        return [datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%d %H:%M") for second in seconds], {"type": "date"}
    except (ValueError, OverflowError, OSError):
        return [*seconds], {}
