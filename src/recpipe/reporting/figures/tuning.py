"""Figures of a study of tuning: history, importance of settings, parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from recpipe.reporting.figures import COLOURS, GREY, Axis, bars, base_layout, drop_missing, escape, figure, line
from recpipe.reporting.formatting import metric_title, percent

Result = Mapping[str, Any]  # a study as JSON, see recpipe.training.tuning.results
LABELS = 6  # ticks of an axis with numbers
MIN_TRIALS = 2  # completed ones, of parallel coordinates


def tuning_figures(result: Result) -> dict[str, go.Figure]:
    """Draw the figures by name, ``history``, ``importance`` and ``coordinates``; those without data are left out."""
    return drop_missing(
        {"history": _history(result), "importance": _importance(result), "coordinates": _coordinates(result)}
    )


def _history(result: Result) -> go.Figure | None:
    """Values by trial: completed and pruned ones as marks, the best so far as a line."""
    trials = [row for row in result["trials"] if row["value"] is not None]
    if not trials:
        return None
    best, x, y = -math.inf, list[int](), list[float]()
    for row in trials:
        if row["state"] == "complete":
            best = max(best, row["value"])
            x.append(row["number"])
            y.append(best)
    traces = [line(x, y, name="best so far", colour=GREY, hover="trial %{x}: best so far %{y:.4f}", mode="lines")]
    traces[0].line.shape = "hv"
    states = (("complete", "completed", COLOURS[0], "circle"), ("pruned", "pruned", COLOURS[1], "x-thin-open"))
    for state, name, colour, symbol in states:
        rows = [row for row in trials if row["state"] == state]
        if rows:
            traces.append(
                line(
                    [row["number"] for row in rows],
                    [row["value"] for row in rows],
                    name=name,
                    colour=colour,
                    mode="markers",
                    marker={"color": colour, "symbol": symbol, "size": 8},
                    customdata=[escape(settings_text(row["settings"])) for row in rows],
                    hover="trial %{x}: %{y:.4f}<br>%{customdata}",
                )
            )
    return figure(traces, x="trial", y=f"validation {metric_title(result['metric'])}")


def _importance(result: Result) -> go.Figure | None:
    shares = result["importance"]
    if not shares:
        return None
    names, values = [escape(name) for name in shares], list(shares.values())
    texts = [f"{name}: {percent(share)}" for name, share in zip(names, values, strict=True)]
    trace = bars(values, names, colour=COLOURS[0], hover="%{customdata}", customdata=texts, orientation="h")
    axes: dict[str, Any] = {"x_axis": Axis.PERCENT | Axis.FROM_ZERO, "y_axis": Axis.REVERSED_CATEGORIES}
    return figure([trace], x="share of the variance", height=max(220, 110 + 26 * len(names)), **axes)


def _coordinates(result: Result) -> go.Figure | None:
    """A line per completed trial over all settings, coloured by its value."""
    rows = [row for row in result["trials"] if row["state"] == "complete" and row["settings"]]
    if len(rows) < MIN_TRIALS:
        return None
    values = [row["value"] for row in rows]
    space = result["search_space"]
    axes = [_axis(name, space.get(name, {}), [row["settings"].get(name) for row in rows]) for name in space]
    axes.append({"label": metric_title(result["metric"]), "values": values})
    shown = {
        "color": values,
        "colorscale": [[0, "rgba(140,140,140,0.5)"], [1, COLOURS[0]]],
        "showscale": True,
        "colorbar": {"thickness": 10, "outlinewidth": 0},
    }
    layout = base_layout(height=380)
    layout.margin = {"l": 60, "r": 40, "t": 50, "b": 24}
    return go.Figure([go.Parcoords(line=shown, dimensions=axes)], layout)


def _axis(name: str, values: Mapping[str, Any], settings: Sequence[Any]) -> dict[str, Any]:
    """An axis of a setting: categories by their places, a logarithmic range by exponents."""
    label = escape(name)
    if "choices" in values:
        texts = [str(choice) for choice in values["choices"]]
        places, names = [texts.index(str(setting)) for setting in settings], [escape(text) for text in texts]
        ends = 0, max(len(texts) - 1, 1)
        return {"label": label, "values": places, "range": ends, "tickvals": list(range(len(texts))), "ticktext": names}
    low, high = values["low"], values["high"]
    if not values.get("log"):
        return {"label": label, "values": list(settings), "range": [low, high]}
    first, last = math.log10(low), math.log10(high)
    ticks = [first + (last - first) * place / (LABELS - 1) for place in range(LABELS)]
    exponents, labels = [math.log10(setting) for setting in settings], [f"{10.0**tick:.2g}" for tick in ticks]
    return {"label": label, "values": exponents, "range": [first, last], "tickvals": ticks, "ticktext": labels}


def settings_text(settings: Mapping[str, Any]) -> str:
    """``dim 64, dropout 0.213``."""
    return ", ".join(f"{name} {setting_text(value)}" for name, value in settings.items())


def setting_text(value: Any) -> str:
    """Format the value of a setting with three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
