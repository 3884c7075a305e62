"""Figures of the report, in Plotly and without titles, which the page adds; shared style and texts of all figures."""

from __future__ import annotations

import html
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import plotly.graph_objects as go
import polars as pl

TEXTS = tomllib.loads((Path(__file__).parents[1] / "templates" / "texts.toml").read_text(encoding="utf-8"))
CAPTIONS: dict[str, dict[str, str]] = TEXTS["captions"]  # title and text by figure
Table = tuple[list[str], list[list[str]]]  # head and rows, as text
COLOURS = ("#2283c8", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8f6fc4", "#8c8c8c")  # Okabe and Ito
GREY = COLOURS[-1]
SYMBOLS = ("circle", "diamond-open", "square-open", "x-thin-open", "triangle-up-open")
Values = Sequence[Any]
Layout = Mapping[str, Any] | None  # settings of an axis


class Axis:
    """Settings of axes, which ``|`` combines."""

    CATEGORIES: ClassVar[dict[str, Any]] = {"type": "category"}
    REVERSED_CATEGORIES: ClassVar[dict[str, Any]] = {"autorange": "reversed", "type": "category"}
    FROM_ZERO: ClassVar[dict[str, Any]] = {"rangemode": "tozero"}
    LOG: ClassVar[dict[str, Any]] = {"type": "log", "dtick": 1}
    PERCENT: ClassVar[dict[str, Any]] = {"tickformat": ".0%"}
    DEFAULT: ClassVar[dict[str, Any]] = {"automargin": True, "zeroline": False}
    VERTICAL: ClassVar[dict[str, Any]] = DEFAULT | {"ticklabelstandoff": 4}


def figure(
    traces: Values, *, x: str = "", y: str = "", x_axis: Layout = None, y_axis: Layout = None, **layout: Any
) -> go.Figure:
    """Build a figure with titles of both axes, and a legend where there are several traces."""
    defaults = {
        "height": 340 + 17 * max(len(traces) - 3, 0),
        "showlegend": len(traces) > 1,
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        "bargap": 0.12,
        "xaxis": {**Axis.DEFAULT, "title": {"text": x}, "showgrid": False, **(x_axis or {})},
        "yaxis": {**Axis.VERTICAL, "title": {"text": y, "standoff": 12}, **(y_axis or {})},
    }
    return go.Figure(traces, base_layout(**defaults | layout))


def base_layout(**layout: Any) -> go.Layout:
    """Build a layout without colours, which the page adds for light and dark mode."""
    margin, clear = {"l": 8, "r": 8, "t": 8, "b": 8}, "rgba(0,0,0,0)"
    colours = {"paper_bgcolor": clear, "plot_bgcolor": clear}
    return go.Layout(template="none", margin=margin, separators=".\u202f", **colours, **layout)


def line(
    x: Values, y: Values, *, colour: str, hover: str, dash: str | None = None, width: float = 2, **options: Any
) -> go.Scatter:
    """Build a line, by default with markers; ``name`` must be escaped, ``hover`` may use ``customdata``."""
    style = {"color": colour, "width": width, "dash": dash}
    options = {"mode": "lines+markers"} | options
    return go.Scatter(x=x, y=y, line=style, hovertemplate=f"{hover}<extra></extra>", **options)


def model_line(x: Values, y: Values, model: str, board: pl.DataFrame, *, hover: str, **options: Any) -> go.Scatter:
    """Build a line in the colour of a model, with its name in front of ``hover``."""
    name, marker = escape(model), model_marker(model, board)
    return line(x, y, name=name, colour=marker["color"], hover=f"{name}: {hover}", marker=marker, **options)


def bars(x: Values, y: Values, *, colour: str, hover: str, **options: Any) -> go.Bar:
    """Build bars; ``name`` must be escaped, ``hover`` may use ``customdata``."""
    return go.Bar(x=x, y=y, marker_color=colour, hovertemplate=f"{hover}<extra></extra>", **options)


def drop_missing(figures: Mapping[str, go.Figure | None]) -> dict[str, go.Figure]:
    """Leave out figures without data."""
    return {name: drawing for name, drawing in figures.items() if drawing is not None}


def model_colour(model: str, board: pl.DataFrame) -> str:
    """Return the colour of a model in all figures, by its row of the leaderboard; grey without a row."""
    models = board["model"].to_list() if board.height else []
    return COLOURS[models.index(model) % len(COLOURS)] if model in models else GREY


def model_marker(model: str, board: pl.DataFrame, size: int = 7) -> dict[str, Any]:
    """Return a marker in the colour of a model; models that share a colour differ in the symbol."""
    models = board["model"].to_list() if board.height else []
    turn = models.index(model) // len(COLOURS) if model in models else 0
    return {"color": model_colour(model, board), "symbol": SYMBOLS[turn % len(SYMBOLS)], "size": size}


def escape(name: object) -> str:
    """Escape text from outside, as Plotly renders some HTML."""
    return html.escape(str(name), quote=False)
