"""Figures of metrics and costs, of training curves, and of the data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import plotly.graph_objects as go
import polars as pl
import pyarrow as pa

from recpipe.reporting.figures import (
    COLOURS,
    Axis,
    bars,
    drop_missing,
    escape,
    figure,
    line,
    model_colour,
    model_line,
    model_marker,
)
from recpipe.reporting.formatting import metric_title, percent
from recpipe.reporting.leaderboard import leaderboard, same_column, split_by_protocol

Frame: TypeAlias = "pa.Table | pl.DataFrame"
DASHES = ("solid", "dash", "dot", "dashdot")
BY_EPOCH = {"loss": "training loss", "gradient_norm": "gradient norm"}
CUTOFF_METRICS = ("ndcg", "hit_rate", "recall", "coverage")


def run_figures(
    metrics: Iterable[Mapping[str, Any]] = (),
    *,
    curves: Mapping[str, Frame] | None = None,
    metric: str = "ndcg@10",
    protocol: str | None = None,
) -> dict[str, go.Figure]:
    """Draw metrics by cutoff, quality against time and training curves, by name; without those that lack data.

    Of ``metrics`` (metrics.json) those under ``drawn_protocol`` are drawn. Keys of ``curves``: ``model`` or
    ``model · seed 42``.
    """
    board = leaderboard(metrics, metric=metric)
    board = board.filter(board["protocol"] == drawn_protocol(board, protocol)) if board.height else board
    tables = {name: pl.DataFrame(table) for name, table in (curves or {}).items()}
    figures = {
        **{f"{name}_at_cutoffs": _at_cutoffs(board, name) for name in CUTOFF_METRICS},
        "quality_seconds": _quality_by_seconds(board, metric),
        "training_loss": _training(tables, "loss", board),
        "training_metric": _training(tables, f"valid_{metric}", board),
        "gradient_norm": _training(tables, "gradient_norm", board),
    }
    return drop_missing(figures)


def drawn_protocol(board: pl.DataFrame, protocol: str | None) -> str | None:
    """Return ``protocol`` if ``board`` has rows of it, else the one with the most rows; None for an empty board."""
    ids = [id_ for _, id_, _ in split_by_protocol(board)]
    return protocol if protocol in ids else next(iter(ids), None)


def data_figures(profile: Mapping[str, Any] | None = None, steps: Frame | None = None) -> dict[str, go.Figure]:
    """Draw the profile of the data set and the table of ingest steps, by name; without those that lack data."""
    profile = profile or {}
    drawings = {"events_over_time": _events_over_time, "events_per_user": _events_per_user, "popularity": _popularity}
    figures = {name: draw(profile[name]) for name, draw in drawings.items() if profile.get(name)}
    if steps is not None and len(steps) > 1:
        figures["steps"] = _steps(pl.DataFrame(steps).sort("step"))
    return figures


def _at_cutoffs(board: pl.DataFrame, name: str) -> go.Figure | None:
    parts = (column.partition("@") for column in board.columns)
    cutoffs = sorted(int(cutoff) for stem, _, cutoff in parts if stem == name and cutoff.isdigit())
    columns = [f"{name}@{k}" for k in cutoffs]
    if not cutoffs or not board.height:
        return None
    if name == "recall" and all(same_column(board, f"recall@{k}", f"hit_rate@{k}") for k in cutoffs):
        return None  # with one target per user both are equal
    traces = [
        model_line(
            [str(k) for k in cutoffs],
            [row[column] for column in columns],
            row["model"],
            board,
            hover="%{y:.4f} at %{x}",
            error_y=_seed_errors(row, columns),
        )
        for row in board.iter_rows(named=True)
    ]
    title = metric_title(name) if name == "ndcg" else metric_title(name).lower()
    return figure(traces, x="list length", y=f"test {title}", x_axis=Axis.CATEGORIES, y_axis=Axis.FROM_ZERO)


def _quality_by_seconds(board: pl.DataFrame, metric: str) -> go.Figure | None:
    rows = board.drop_nulls([metric, "train_seconds"]) if board.height else board
    if not rows.height:
        return None
    traces = [
        go.Scatter(
            x=[max(row["train_seconds"], 0.01)],
            y=[row[metric]],
            name=escape(row["model"]),
            mode="markers",
            marker=model_marker(row["model"], board, 11),
            customdata=[row["train_seconds"]],
            hovertemplate=f"{escape(row['model'])}: %{{y:.4f}} after %{{customdata:.2f}} s<extra></extra>",
            error_y=_seed_errors(row, [metric]),
        )
        for row in rows.iter_rows(named=True)
    ]
    title, x_axis = f"test {metric_title(metric)}", Axis.LOG | {"tickformat": "~g"}
    return figure(traces, x="training time (s)", y=title, x_axis=x_axis, y_axis=Axis.FROM_ZERO)


def _seed_errors(row: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    deviations = [row.get(f"{name}_std") or 0.0 for name in names]
    return {"array": deviations, "visible": row["seeds"] > 1, "thickness": 1, "width": 3}


def _training(curves: Mapping[str, pl.DataFrame], column: str, board: pl.DataFrame) -> go.Figure | None:
    """Loss or gradient norm by epoch, or a validation metric by seconds; a line per model and seed."""
    by_epoch = column in BY_EPOCH
    x, other = ("epoch", "seconds") if by_epoch else ("seconds", "epoch")
    epoch, seconds = ("x", "customdata") if by_epoch else ("customdata", "x")
    models = [name.partition(" · ")[0] for name in curves]
    traces = []
    for number, (name, table) in enumerate(curves.items()):
        points = table.drop_nulls(column).sort("step") if column in table.columns else table.clear()
        if points.height:
            traces.append(
                line(
                    points[x].to_list(),
                    points[column].to_list(),
                    name=escape(name),
                    mode="lines" if points.height > 1 else "markers",
                    colour=model_colour(models[number], board),
                    dash=DASHES[models[:number].count(models[number]) % len(DASHES)],
                    hover=f"{escape(name)}: %{{y:.4f}}<br>epoch %{{{epoch}}}, %{{{seconds}:.0f}} s",
                    customdata=points[other].to_list(),
                )
            )
    if not traces:
        return None
    title = BY_EPOCH.get(column) or f"validation {metric_title(column.removeprefix('valid_'))}"
    y_axis = {"rangemode": "tozero" if column == "gradient_norm" else "normal"}
    return figure(traces, x="epoch" if by_epoch else "training time (s)", y=title, y_axis=y_axis)


def _events_over_time(data: Mapping[str, Any]) -> go.Figure:
    trace = bars(data["start"], data["events"], colour=COLOURS[0], hover="%{x}: %{y:,}")
    return figure([trace], y=f"interactions per {data['period']}", x_axis={"type": "date"})


def _events_per_user(data: Mapping[str, Any]) -> go.Figure:
    first = next(bin_ for bin_, users in enumerate(data["counts"]) if users)  # a k-core has no shorter history
    bins, counts = [*pairwise(data["edges"])][first:], data["counts"][first:]
    labels = [str(low) if high - low == 1 else f"{low}\u2013{high - 1}" for low, high in bins]
    powers_of_two = [bin_ for bin_, (low, _) in enumerate(bins) if low & (low - 1) == 0]
    ticks = powers_of_two[:: 1 + len(powers_of_two) // 9]
    x_axis = {**Axis.CATEGORIES, "tickvals": ticks, "ticktext": [str(bins[bin_][0]) for bin_ in ticks], "tickangle": 0}
    trace = bars(labels, counts, colour=COLOURS[0], hover="%{x} interactions: %{y:,} users")
    return figure([trace], x="interactions per user (lower bound)", y="users", x_axis=x_axis)


def _popularity(data: Mapping[str, Any]) -> go.Figure:
    trace = line(
        data["rank"],
        data["events"],
        mode="lines",
        colour=COLOURS[0],
        width=2.5,
        hover="item %{x:,}: %{y:,} interactions<br>the first %{x:,} items have %{customdata} of all",
        customdata=[percent(share) for share in data["share"]],
    )
    return figure([trace], x="items by popularity", y="interactions", x_axis=Axis.LOG, y_axis=Axis.LOG)


def _steps(steps: pl.DataFrame) -> go.Figure:
    names = [f"{row['step']} {escape(row['name'])}" for row in steps.iter_rows(named=True)]
    traces = []
    for column, colour in zip(("rows", "users", "items"), COLOURS, strict=False):
        counts, hover = steps[column].to_list(), f"%{{y}}: %{{customdata:,}} {column}, %{{x:.1%}} of the raw log"
        x = [value / max(counts[0], 1) for value in counts]
        traces.append(bars(x, names, name=column, colour=colour, hover=hover, customdata=counts, orientation="h"))
    height = max(260, 90 + 58 * steps.height)
    return figure(traces, x="share of the raw log", x_axis=Axis.PERCENT, y_axis=Axis.REVERSED_CATEGORIES, height=height)
