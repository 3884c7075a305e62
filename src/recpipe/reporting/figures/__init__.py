"""Figures of the report, in Plotly and without titles, which the page adds; shared style and texts of all figures."""

from __future__ import annotations

import html
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

TEXTS = tomllib.loads((Path(__file__).parents[1] / "templates" / "texts.toml").read_text(encoding="utf-8"))
CAPTIONS: dict[str, dict[str, str]] = TEXTS["captions"]  # title and text by figure
Table = tuple[list[str], list[list[str]]]  # head and rows, as text
# Okabe and Ito
COLOURS = ("#2283c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6fc4", "#8c8c8c")
GREY = COLOURS[-1]
SYMBOLS = ("circle", "diamond-open", "square-open", "x-thin-open", "triangle-up-open")
CATEGORIES = {"type": "category"}  # settings of axes
REVERSED_CATEGORIES = {"autorange": "reversed", "type": "category"}
FROM_ZERO = {"rangemode": "tozero"}
LOG = {"type": "log", "dtick": 1}
PERCENT = {"tickformat": ".0%"}


def figure(
    traces: Sequence[Any],
    *,
    x: str = "",
    y: str = "",
    x_axis: Mapping[str, Any] | None = None,
    y_axis: Mapping[str, Any] | None = None,
    **layout: Any,
) -> go.Figure:
    """Build a figure with titles of both axes, and a legend where there are several traces."""
    axis = {"automargin": True, "zeroline": False}
    x_layout = {**axis, "title": {"text": x}, "showgrid": False, **(x_axis or {})}
    y_layout = {**axis, "title": {"text": y, "standoff": 12}, "ticklabelstandoff": 4, **(y_axis or {})}
    defaults = {
        "height": 340 + 17 * max(len(traces) - 3, 0),
        "showlegend": len(traces) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "bargap": 0.12,
    }
    return go.Figure(traces, base_layout(xaxis=x_layout, yaxis=y_layout, **{**defaults, **layout}))


def base_layout(**layout: Any) -> go.Layout:
    """Build a layout without colours, which the page adds for light and dark mode."""
    return go.Layout(
        template="none",
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        separators=".\u202f",
        **layout,
    )


def line(
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    colour: str,
    hover: str,
    name: str | None = None,
    mode: str = "lines+markers",
    dash: str | None = None,
    width: float = 2,
    data: Sequence[Any] | None = None,
    **options: Any,
) -> go.Scatter:
    """Build a line; ``name`` must be escaped, ``data`` is ``customdata`` of ``hover``."""
    return go.Scatter(
        x=x,
        y=y,
        name=name,
        mode=mode,
        line={"color": colour, "width": width, "dash": dash},
        customdata=data,
        hovertemplate=f"{hover}<extra></extra>",
        **options,
    )


def bars(
    x: Sequence[Any],
    y: Sequence[Any],
    *,
    colour: str,
    hover: str,
    name: str | None = None,
    data: Sequence[Any] | None = None,
    horizontal: bool = False,
) -> go.Bar:
    """Build bars; ``name`` must be escaped, ``data`` is ``customdata`` of ``hover``."""
    return go.Bar(
        x=x,
        y=y,
        name=name,
        orientation="h" if horizontal else None,
        marker_color=colour,
        customdata=data,
        hovertemplate=f"{hover}<extra></extra>",
    )


def drop_missing(figures: Mapping[str, go.Figure | None]) -> dict[str, go.Figure]:
    """Leave out figures without data."""
    return {name: drawing for name, drawing in figures.items() if drawing is not None}


def model_colour(model: str, board: pl.DataFrame) -> str:
    """Return the colour of a model in all figures, by its row of the leaderboard; grey without a row."""
    row = _row(model, board)
    return GREY if row is None else COLOURS[row % len(COLOURS)]


def model_marker(model: str, board: pl.DataFrame, size: int = 7) -> dict[str, Any]:
    """Return a marker in the colour of a model; models that share a colour differ in the symbol."""
    turn = (_row(model, board) or 0) // len(COLOURS)
    return {"color": model_colour(model, board), "symbol": SYMBOLS[turn % len(SYMBOLS)], "size": size}


def escape(name: object) -> str:
    """Escape text from outside, as Plotly renders some HTML."""
    return html.escape(str(name), quote=False)


def _row(model: str, board: pl.DataFrame) -> int | None:
    models = board["model"].to_list() if board.height else []
    return models.index(model) if model in models else None
