"""Figures of insights: intervals, segments, popularity of lists, calibration. The best models only, to be readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.evaluation.segments import POPULARITY, WARMTH, length_names
from recpipe.reporting.figures import COLOURS, colour, figure, mark, text
from recpipe.reporting.formatting import metric_title, probability
from recpipe.reporting.leaderboard import COLD_SHARE

MOST = 8  # models
LEAST = 20  # users of a segment: the mean of fewer is mostly luck
TRAINING = "training data"
GREY = COLOURS[-1]


def insight_figures(
    found: Mapping[str, Any], board: pl.DataFrame, *, metric: str = "ndcg@10"
) -> dict[str, go.Figure]:
    """By name, those there is data for; ``found`` as `insights` makes it, ``board`` one protocol of the leaderboard."""
    if not found or not board.height:
        return {}
    best = board["model"].to_list()[:MOST]
    known = {
        part: {name: found[part][name] for name in best if name in found[part]}
        for part in ("segments", "lists", "calibration")
    }
    made = {
        "certainty": _certainty(found["certainty"].get(board["protocol"][0]), board, metric),
        "segments_popularity": _segments(known["segments"], "popularity", POPULARITY, board, metric),
        "segments_history": _segments(known["segments"], "history", length_names(), board, metric),
        "segments_warmth": _segments(known["segments"], "warmth", WARMTH, board, metric),
        "popularity_of_lists": _popularity(known["lists"], found["training"]),
        "calibration": _calibration(known["calibration"], board),
    }
    return {name: each for name, each in made.items() if each is not None}


def _certainty(sure: Mapping[str, Any] | None, board: pl.DataFrame, metric: str) -> go.Figure | None:
    """Means with intervals, best on top; filled: the baseline and whoever it cannot be told from."""
    names = [name for name in board["model"].to_list() if sure and name in sure["estimates"]]
    if not sure or not names or sure["estimates"][names[0]]["low"] is None:
        return None
    rows = [(name, sure["estimates"][name], sure["differences"].get(name)) for name in names]
    alike = [difference is None or difference["p_holm"] > 1 - sure["level"] for _, _, difference in rows]
    points = go.Scatter(
        x=[each["mean"] for _, each, _ in rows],
        y=[text(name) for name, _, _ in rows],
        mode="markers",
        error_x={
            "array": [each["high"] - each["mean"] for _, each, _ in rows],
            "arrayminus": [each["mean"] - each["low"] for _, each, _ in rows],
            "thickness": 2,
            "width": 5,
            "color": GREY,
        },
        marker={
            "size": 11,
            "color": [COLOURS[0] if same else GREY for same in alike],
            "symbol": ["circle" if same else "circle-open" for same in alike],
        },
        customdata=[_against(name, each, difference, sure["baseline"]) for name, each, difference in rows],
        hovertemplate="%{customdata}<extra></extra>",
    )
    drawn = figure(
        [points],
        x=f"test {metric_title(metric)}",
        x_axis={"rangemode": "tozero"},
        y_axis={"autorange": "reversed", "type": "category", "showgrid": False},
    )
    return drawn.update_layout(height=max(340, 90 + 34 * len(rows)))


def _against(name: str, each: Mapping[str, Any], difference: Mapping[str, Any] | None, baseline: str) -> str:
    own = f"{text(name)}: {each['mean']:.4f}, {each['low']:.4f} to {each['high']:.4f}"
    if difference is None:
        return own
    low, high = difference["low"], difference["high"]
    return (
        f"{own}<br>{difference['mean']:+.4f} against {text(baseline)}, {low:+.4f} to {high:+.4f}"
        f"<br>p {probability(difference['p_holm'])} after Holm"
    )


def _segments(
    found: Mapping[str, list[Mapping[str, Any]]], by: str, order: Any, board: pl.DataFrame, metric: str
) -> go.Figure | None:
    """A line per model over the segments with enough users; nothing where there is one segment only."""
    stem = "recall" if metric.startswith("recall") else "ndcg"
    rows = {
        name: {row["segment"]: row for row in each if row["by"] == by and row["users"] >= LEAST}
        for name, each in found.items()
    }
    segments = [name for name in order if any(name in each for each in rows.values())]
    shares = {name: next(each[name]["weight"] for each in rows.values() if name in each) for name in segments}
    if len(segments) < 2 or (by == "warmth" and shares[WARMTH[1]] < COLD_SHARE):
        return None
    x = [f"{name}<br>{_rounded(shares[name])}" for name in segments]
    counts = "<br>%{customdata[0]:,} users, %{customdata[1]:,} targets<extra></extra>"
    traces = [
        go.Scatter(
            x=[label for name, label in zip(segments, x, strict=True) if name in each],
            y=[each[name][stem] for name in segments if name in each],
            name=text(model),
            mode="lines+markers",
            line={"color": colour(model, board), "width": 2},
            marker=mark(model, board),
            customdata=[[each[name]["users"], each[name]["targets"]] for name in segments if name in each],
            hovertemplate=f"{text(model)}: %{{y:.4f}}{counts}",
        )
        for model, each in rows.items()
    ]
    title = f"test {metric_title(stem)}@{metric.partition('@')[2]}"
    titles = {
        "popularity": "popularity of the target, share of targets",
        "history": "events before the target, share of users",
        "warmth": "the target, share of targets",
    }
    x_axis = {
        "type": "category",
        "tickangle": 0,
        "tickfont": {"size": 11},
        "title": {"text": titles[by], "standoff": 16},
    }
    return figure(traces, y=title, x_axis=x_axis, y_axis={"rangemode": "tozero"})


def _rounded(share: float) -> str:
    return f"{100 * share:.0f}\u202f%" if share >= 0.01 else "< 1\u202f%"


def _popularity(lists: Mapping[str, Mapping[str, Any]], training: Mapping[str, Any]) -> go.Figure | None:
    """Shares of head, mid and tail in what is recommended, under those of the training data."""
    rows = {TRAINING: training, **{name: each for name, each in lists.items() if each["head"] is not None}}
    if len(rows) < 2:
        return None
    names = [text(name) for name in rows]
    traces = [
        go.Bar(
            x=[each[group] for each in rows.values()],
            y=names,
            name=group,
            orientation="h",
            marker_color=own,
            hovertemplate=f"%{{y}}: %{{x:.1%}} {group}<extra></extra>",
        )
        for group, own in zip(POPULARITY, COLOURS, strict=False)
    ]
    x_axis = {"tickformat": ".0%", "range": [0, 1]}
    y_axis = {"autorange": "reversed", "type": "category"}
    drawn = figure(traces, x="share", x_axis=x_axis, y_axis=y_axis)
    drawn.update_layout(legend_traceorder="normal")
    return drawn.update_layout(barmode="stack", height=max(340, 110 + 34 * len(rows)))


def _calibration(found: Mapping[str, Mapping[str, Any]], board: pl.DataFrame) -> go.Figure | None:
    """Frequency against probability in bins; one without a hit has no place on an axis of powers of ten."""
    lines = {
        name: [pair for pair in zip(each["probability"], each["frequency"], strict=True) if min(pair) > 0]
        for name, each in found.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    ends = [value for points in lines.values() for pair in points for value in pair]
    honest = go.Scatter(
        x=[min(ends), max(ends)],
        y=[min(ends), max(ends)],
        name="as said",
        mode="lines",
        line={"color": GREY, "width": 1, "dash": "dot"},
        hoverinfo="skip",
    )
    traces = [
        go.Scatter(
            x=[said for said, _ in points],
            y=[so for _, so in points],
            name=text(name),
            mode="lines+markers",
            line={"color": colour(name, board), "width": 2},
            marker=mark(name, board),
            hovertemplate=f"{text(name)}: said %{{x:.2%}}, came true %{{y:.2%}}<extra></extra>",
        )
        for name, points in lines.items()
    ]
    log = {"type": "log", "dtick": 1, "tickformat": "~%"}
    return figure([honest, *traces], x="probability", y="came true", x_axis=log, y_axis=log)
