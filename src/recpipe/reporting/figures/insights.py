"""Tables and figures of insights: intervals, segments, properties of lists, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from recpipe.evaluation.segments import POPULARITY, WARMTH, length_names
from recpipe.reporting.figures import COLOURS, GREY, TEXTS, Axis, Table, bars, drop_missing, escape, figure, model_line
from recpipe.reporting.formatting import INTERVAL, MISSING, count, decimals, interval, metric_title, p_value, percent
from recpipe.reporting.leaderboard import COLD_SHARE

MAX_MODELS = 8  # the best ones, so that figures stay readable
MIN_USERS = 20  # of a segment
TRAINING = "training data"
TIES = "range over tie orders"
LIST_COLUMNS: dict[str, list[str]] = TEXTS["list_columns"]  # head and meaning by key


def certainty_table(insights: Mapping[str, Any], board: pl.DataFrame) -> Table | None:
    """Compare models of one protocol with the baseline, with the range over orders of ties; None without intervals."""
    protocol = board["protocol"][0] if board.height else None
    certainty = (insights.get("certainty") or {}).get(protocol)
    if not certainty:
        return None
    ties = insights["ties"] if insights.get("protocol") == protocol else {}
    rows = []
    for name in board["model"].to_list():
        if name not in certainty["estimates"]:
            continue
        cells = [MISSING, MISSING, "baseline"]
        if difference := certainty["differences"].get(name):
            low, high = difference["low"], difference["high"]
            bounds = MISSING if low is None else f"{_signed(low)} to {_signed(high)}"
            cells = [_signed(difference["mean"]), bounds, p_value(difference["p_holm"])]
        if ties:
            cells.append(interval(ties[name]["low"], ties[name]["high"]) if name in ties else MISSING)
        rows.append([name, *cells])
    return ["model", "difference", INTERVAL, "p", *([TIES] if ties else [])], rows


def lists_table(insights: Mapping[str, Any], board: pl.DataFrame) -> tuple[Table, list[list[str]]] | None:
    """Describe the lists of each model, best first, with the meaning of the columns; without empty columns."""
    if not board.height or not insights.get("lists"):
        return None
    cells = {}
    for name in board["model"].to_list():
        if name in insights["lists"]:
            values = {**insights["lists"][name], **(insights["calibration"].get(name) or {})}
            cells[name] = {key: _list_cell(key, values) for key in LIST_COLUMNS}
    keys = [key for key in LIST_COLUMNS if any(row[key] != MISSING for row in cells.values())]
    training = [count(insights["training"]["arp"]) if key == "arp" else MISSING for key in keys]
    rows = [[TRAINING, *training], *([name, *(row[key] for key in keys)] for name, row in cells.items())]
    return (["model", *(LIST_COLUMNS[key][0] for key in keys)], rows), [LIST_COLUMNS[key] for key in keys]


def insight_figures(
    insights: Mapping[str, Any], board: pl.DataFrame, *, metric: str = "ndcg@10"
) -> dict[str, go.Figure]:
    """Draw insights by name, without those that lack data; ``board`` is one protocol of the leaderboard."""
    if not insights or not board.height:
        return {}
    best = board["model"].to_list()[:MAX_MODELS]
    rows, lists, calibrations = (
        {name: insights[part][name] for name in best if name in insights[part]}
        for part in ("segments", "lists", "calibration")
    )
    figures = {
        "certainty": _certainty(insights["certainty"].get(board["protocol"][0]), board, metric),
        "segments_popularity": _segments(rows, "popularity", POPULARITY, board, metric),
        "segments_history": _segments(rows, "history", length_names(), board, metric),
        "segments_warmth": _segments(rows, "warmth", WARMTH, board, metric),
        "popularity_of_lists": _popularity(lists, insights["training"]),
        "calibration": _calibration(calibrations, board),
    }
    return drop_missing(figures)


def _certainty(certainty: Mapping[str, Any] | None, board: pl.DataFrame, metric: str) -> go.Figure | None:
    """Means with intervals, best on top; filled: the baseline and models that do not differ significantly."""
    names = [name for name in board["model"].to_list() if certainty and name in certainty["estimates"]]
    if not certainty or not names or certainty["estimates"][names[0]]["low"] is None:
        return None
    estimates = [certainty["estimates"][name] for name in names]
    differences = [certainty["differences"].get(name) for name in names]
    filled = [difference is None or difference["p_holm"] > 1 - certainty["level"] for difference in differences]
    errors = {
        "array": [estimate["high"] - estimate["mean"] for estimate in estimates],
        "arrayminus": [estimate["mean"] - estimate["low"] for estimate in estimates],
    }
    colours = [COLOURS[0] if is_filled else GREY for is_filled in filled]
    symbols = ["circle" if is_filled else "circle-open" for is_filled in filled]
    points = go.Scatter(
        x=[estimate["mean"] for estimate in estimates],
        y=[escape(name) for name in names],
        mode="markers",
        error_x={**errors, "thickness": 2, "width": 5, "color": GREY},
        marker={"size": 11, "color": colours, "symbol": symbols},
        customdata=[
            _comparison(*row, certainty["baseline"]) for row in zip(names, estimates, differences, strict=True)
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )
    y_axis, height = Axis.REVERSED_CATEGORIES | {"showgrid": False}, max(340, 90 + 34 * len(names))
    return figure([points], x=f"test {metric_title(metric)}", x_axis=Axis.FROM_ZERO, y_axis=y_axis, height=height)


def _comparison(name: str, estimate: Mapping[str, Any], difference: Mapping[str, Any] | None, baseline: str) -> str:
    text = f"{escape(name)}: {estimate['mean']:.4f}, {estimate['low']:.4f} to {estimate['high']:.4f}"
    if difference is None:
        return text
    low, high, p = difference["low"], difference["high"], p_value(difference["p_holm"])
    change = f"{difference['mean']:+.4f} against {escape(baseline)}, {low:+.4f} to {high:+.4f}"
    return f"{text}<br>{change}<br>p {p} (Holm)"


def _segments(
    rows: Mapping[str, list[Mapping[str, Any]]], by: str, order: Sequence[str], board: pl.DataFrame, metric: str
) -> go.Figure | None:
    """A line per model over the segments with enough users; None with fewer than two segments."""
    stem = "recall" if metric.startswith("recall") else "ndcg"
    models = {}
    for model, values in rows.items():
        segments = [row for row in values if row["by"] == by and row["users"] >= MIN_USERS and row["segment"] in order]
        models[model] = sorted(segments, key=lambda row: order.index(row["segment"]))
    shares = {row["segment"]: row["weight"] for segments in reversed(models.values()) for row in segments}
    if len(shares) < 2 or (by == "warmth" and shares[WARMTH[1]] < COLD_SHARE):
        return None
    labels = {
        name: f"{name}<br>" + (f"{100 * share:.0f}\u202f%" if share >= 0.01 else "< 1\u202f%")
        for name, share in shares.items()
    }
    traces = [
        model_line(
            [labels[row["segment"]] for row in segments],
            [row[stem] for row in segments],
            model,
            board,
            hover="%{y:.4f}<br>%{customdata[0]:,} users, %{customdata[1]:,} targets",
            customdata=[[row["users"], row["targets"]] for row in segments],
        )
        for model, segments in models.items()
    ]
    titles = {
        "popularity": "popularity of the target, share of targets",
        "history": "events before the target, share of users",
        "warmth": "target, share of targets",
    }
    x_axis = {"tickangle": 0, "tickfont": {"size": 11}, "title": {"text": titles[by], "standoff": 16}}
    title = f"test {metric_title(stem)}@{metric.partition('@')[2]}"
    return figure(traces, y=title, x_axis=Axis.CATEGORIES | x_axis, y_axis=Axis.FROM_ZERO)


def _popularity(lists: Mapping[str, Mapping[str, Any]], training: Mapping[str, Any]) -> go.Figure | None:
    """Shares of head, middle and tail in the lists and in the training data."""
    rows = {TRAINING: training, **{name: row for name, row in lists.items() if row["head"] is not None}}
    if len(rows) < 2:
        return None
    names = [escape(name) for name in rows]
    traces = []
    for group, colour in zip(POPULARITY, COLOURS, strict=False):
        shares, hover = [row[group] for row in rows.values()], f"%{{y}}: %{{x:.1%}} {group}"
        traces.append(bars(shares, names, name=group, colour=colour, hover=hover, orientation="h"))
    x_axis, height = Axis.PERCENT | {"range": [0, 1]}, max(340, 110 + 34 * len(rows))
    options: dict[str, Any] = {"legend_traceorder": "normal", "barmode": "stack", "height": height}
    return figure(traces, x="share", x_axis=x_axis, y_axis=Axis.REVERSED_CATEGORIES, **options)


def _calibration(calibrations: Mapping[str, Mapping[str, Any]], board: pl.DataFrame) -> go.Figure | None:
    """Observed frequency against predicted probability, without bins that a logarithmic axis cannot show."""
    points = {
        name: tuple(zip(*pairs, strict=True))
        for name, row in calibrations.items()
        if (pairs := [pair for pair in zip(row["probability"], row["frequency"], strict=True) if min(pair) > 0])
    }
    if not points:
        return None
    values = [value for columns in points.values() for column in columns for value in column]
    ends, style = [min(values), max(values)], {"color": GREY, "width": 1, "dash": "dot"}
    diagonal = go.Scatter(x=ends, y=ends, name="calibrated", mode="lines", line=style, hoverinfo="skip")
    traces = [
        model_line(predicted, observed, name, board, hover="predicted %{x:.2%}, observed %{y:.2%}")
        for name, (predicted, observed) in points.items()
    ]
    axis = Axis.LOG | {"tickformat": "~%"}
    return figure([diagonal, *traces], x="predicted probability", y="observed frequency", x_axis=axis, y_axis=axis)


def _list_cell(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key)
    if value is None:
        return MISSING
    if key == "said":
        return f"{percent(value)} / {percent(values['so'])}"
    if key in ("coverage", "error"):
        return percent(value)
    if key == "arp" and value >= 100:
        return count(value)
    digits = {"arp": 1, "serendipity": 2, "novelty": 2}.get(key, 3)
    return f"{1000 * value if key == 'serendipity' else value:.{digits}f}"


def _signed(value: float) -> str:
    return f"+{decimals(value)}" if value >= 0 else f"\u2212{decimals(-value)}"
