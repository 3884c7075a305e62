"""The figures of the report, in Plotly and without titles: the page names and explains them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.reporting.figures import COLOURS, colour, figure, mark, text
from recpipe.reporting.formatting import metric_title, percent
from recpipe.reporting.leaderboard import groups, leaderboard, same_column

DASHES = ("solid", "dash", "dot", "dashdot")
BY_EPOCH = {"loss": "training loss", "gradient_norm": "norm of the gradient"}
CUTOFF_METRICS = ("ndcg", "hit_rate", "recall", "coverage")


def figures(
    runs: Iterable[Mapping[str, Any]] = (),
    *,
    profile: Mapping[str, Any] | None = None,
    steps: Any = None,
    curves: Mapping[str, Any] | None = None,
    metric: str = "ndcg@10",
) -> dict[str, go.Figure]:
    """Every figure there is data for, by name: see the keys below.

    `runs` are metrics.json dicts; of these the largest protocol is drawn, as others do not compare with it.
    `steps` and the values of `curves` (called `model` or `model · seed 42`) are Arrow or polars tables.
    """
    board = leaderboard(runs, metric=metric)
    board = groups(board)[0][2] if board.height else board
    tables = {name: _frame(table) for name, table in (curves or {}).items()}
    made = {
        **{f"{stem}_at_cutoffs": _at_cutoffs(board, stem) for stem in CUTOFF_METRICS},
        "quality_seconds": _quality_seconds(board, metric),
        "training_loss": _training(tables, "loss", board),
        "training_metric": _training(tables, f"valid_{metric}", board),
        "gradient_norm": _training(tables, "gradient_norm", board),
        "events_over_time": _events_over_time(profile or {}),
        "events_per_user": _events_per_user(profile or {}),
        "popularity": _popularity(profile or {}),
        "steps": _steps(_frame(steps)) if steps is not None else None,
    }
    return {name: each for name, each in made.items() if each is not None}


def _events_over_time(profile: Mapping[str, Any]) -> go.Figure | None:
    data = profile.get("events_over_time")
    if not data:
        return None
    bars = go.Bar(
        x=data["start"],
        y=data["events"],
        marker_color=COLOURS[0],
        hovertemplate="%{x}: %{y:,}<extra></extra>",
    )
    return figure([bars], y=f"interactions per {data['period']}", x_axis={"type": "date"})


def _events_per_user(profile: Mapping[str, Any]) -> go.Figure | None:
    data = profile.get("events_per_user")
    if not data:
        return None
    first = next(at for at, users in enumerate(data["counts"]) if users)  # a k-core has no shorter history
    bins, counts = [*pairwise(data["edges"])][first:], data["counts"][first:]
    labels = [str(low) if high - low == 1 else f"{low}\u2013{high - 1}" for low, high in bins]
    hover = "%{x} interactions: %{y:,} users<extra></extra>"
    bars = go.Bar(x=labels, y=counts, marker_color=COLOURS[0], hovertemplate=hover)
    powers = [at for at, (low, _) in enumerate(bins) if low & (low - 1) == 0]  # of two
    ticks = powers[:: 1 + len(powers) // 9]
    x_axis = {
        "type": "category",
        "tickvals": ticks,
        "ticktext": [str(bins[at][0]) for at in ticks],
        "tickangle": 0,
    }
    return figure([bars], x="interactions of a user, from", y="users", x_axis=x_axis)


def _popularity(profile: Mapping[str, Any]) -> go.Figure | None:
    data = profile.get("popularity")
    if not data:
        return None
    shares = [percent(share) for share in data["share"]]
    hover = "item %{x:,}: %{y:,} interactions<br>the first %{x:,} hold %{customdata}<extra></extra>"
    style = {"line": {"color": COLOURS[0], "width": 2.5}, "hovertemplate": hover, "customdata": shares}
    line = go.Scatter(x=data["rank"], y=data["events"], mode="lines", **style)
    log = {"type": "log", "dtick": 1}
    return figure([line], x="items, most popular first", y="interactions", x_axis=log, y_axis=log)


def _steps(steps: pl.DataFrame) -> go.Figure | None:
    """Share of the raw log's rows, users and items that is left after each step."""
    if steps.height < 2:
        return None
    steps = steps.sort("step")
    names = [f"{row['step']} {text(row['name'])}" for row in steps.iter_rows(named=True)]
    traces = []
    for column, own in zip(("rows", "users", "items"), COLOURS, strict=False):
        left = [value / max(steps[column][0], 1) for value in steps[column]]
        hover = f"%{{y}}: %{{customdata:,}} {column}, %{{x:.1%}} of the raw log<extra></extra>"
        style = {"marker_color": own, "customdata": steps[column].to_list(), "hovertemplate": hover}
        traces.append(go.Bar(x=left, y=names, name=column, orientation="h", **style))
    y_axis = {"autorange": "reversed", "type": "category"}
    drawn = figure(traces, x="left of the raw log", x_axis={"tickformat": ".0%"}, y_axis=y_axis)
    return drawn.update_layout(height=max(260, 90 + 58 * steps.height))


def _training(curves: Mapping[str, pl.DataFrame], column: str, board: pl.DataFrame) -> go.Figure | None:
    """What is measured by epoch, or the validation metric by seconds of training, one line per model and seed."""
    by_time = column not in BY_EPOCH
    traces = []
    for name, table in curves.items():
        points = table.drop_nulls(column).sort("step") if column in table.columns else table.clear()
        if not points.height:
            continue
        x, other = ("seconds", "epoch") if by_time else ("epoch", "seconds")
        value = "%{y:.4f}"
        hover = f"{text(name)}: {value}<br>epoch %{{{'customdata' if by_time else 'x'}}}, "
        hover += f"%{{{'x' if by_time else 'customdata'}:.0f}} s<extra></extra>"
        style = {
            "customdata": points[other].to_list(),
            "hovertemplate": hover,
            "line": _line(name, curves, board),
        }
        mode = "lines" if points.height > 1 else "markers"
        traces.append(
            go.Scatter(x=points[x].to_list(), y=points[column].to_list(), name=text(name), mode=mode, **style)
        )
    if not traces:
        return None
    title = BY_EPOCH.get(column) or f"validation {metric_title(column.removeprefix('valid_'))}"
    return figure(
        traces,
        x="seconds of training" if by_time else "epoch",
        y=title,
        y_axis={"rangemode": "tozero" if column == "gradient_norm" else "normal"},
    )


def _at_cutoffs(board: pl.DataFrame, stem: str) -> go.Figure | None:
    cutoffs = sorted(int(name.split("@")[1]) for name in board.columns if _is_cutoff(name, stem))
    if not cutoffs or not board.height:
        return None
    if stem == "recall" and all(same_column(board, f"recall@{k}", f"hit_rate@{k}") for k in cutoffs):
        return None  # one target per user: the two are the same
    traces = []
    for row in board.iter_rows(named=True):
        values = [row[f"{stem}@{k}"] for k in cutoffs]
        spread = [row.get(f"{stem}@{k}_std") or 0.0 for k in cutoffs]
        error = {"array": spread, "visible": row["seeds"] > 1, "thickness": 1, "width": 3}
        hover = f"{text(row['model'])}: %{{y:.4f}} at %{{x}}<extra></extra>"
        style = {
            "line": {"color": colour(row["model"], board), "width": 2},
            "marker": mark(row["model"], board),
            "hovertemplate": hover,
            "error_y": error,
        }
        x = [str(k) for k in cutoffs]
        traces.append(go.Scatter(x=x, y=values, name=text(row["model"]), mode="lines+markers", **style))
    y_axis = {"rangemode": "tozero"}
    title = metric_title(stem)
    title = title if title.isupper() else title.lower()
    return figure(
        traces, x="length of the list", y=f"test {title}", x_axis={"type": "category"}, y_axis=y_axis
    )


def _quality_seconds(board: pl.DataFrame, metric: str) -> go.Figure | None:
    rows = [
        row
        for row in board.iter_rows(named=True)
        if row[metric] is not None and row["train_seconds"] is not None
    ]
    if not rows:
        return None
    traces = []
    for row in rows:
        error = {
            "array": [row[f"{metric}_std"] or 0.0],
            "visible": row["seeds"] > 1,
            "thickness": 1,
            "width": 3,
        }
        name = text(row["model"])
        style = {
            "marker": mark(row["model"], board, 11),
            "hovertemplate": f"{name}: %{{y:.4f}} after %{{customdata:.2f}} s<extra></extra>",
            "customdata": [row["train_seconds"]],
            "error_y": error,
        }
        x = [max(row["train_seconds"], 0.01)]
        traces.append(go.Scatter(x=x, y=[row[metric]], name=name, mode="markers", **style))
    x_axis = {"type": "log", "dtick": 1, "tickformat": "~g"}
    title = f"test {metric_title(metric)}"
    return figure(traces, x="seconds of training", y=title, x_axis=x_axis, y_axis={"rangemode": "tozero"})


def _line(name: str, curves: Mapping[str, pl.DataFrame], board: pl.DataFrame) -> dict[str, Any]:
    """Colour by model, dash by seed; a key is `model` or `model · seed 42`."""
    model = name.split(" · ", maxsplit=1)[0]
    same = [each for each in curves if each.split(" · ")[0] == model]
    return {"color": colour(model, board), "width": 2, "dash": DASHES[same.index(name) % len(DASHES)]}


def _is_cutoff(name: str, stem: str) -> bool:
    head, _, tail = name.partition("@")
    return head == stem and tail.isdigit()


def _frame(table: Any) -> pl.DataFrame:
    return table if isinstance(table, pl.DataFrame) else pl.DataFrame(table)
