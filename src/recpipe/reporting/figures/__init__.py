"""What all figures share: colours, the layout, and names from outside made harmless."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go
import polars as pl

COLOURS = (
    "#2283c8",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8f6fc4",
    "#8c8c8c",
)  # Okabe & Ito
SYMBOLS = ("circle", "diamond-open", "square-open", "x-thin-open", "triangle-up-open")


def figure(
    traces: list[Any],
    *,
    x: str = "",
    y: str = "",
    x_axis: Mapping[str, Any] | None = None,
    y_axis: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Traces under titles of the two axes; a legend where there are several, which makes room for itself."""
    layout = go.Layout(
        template="none",
        height=340 + 17 * max(len(traces) - 3, 0),
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        xaxis={
            "title": {"text": x},
            "automargin": True,
            "zeroline": False,
            "showgrid": False,
            **(x_axis or {}),
        },
        yaxis={
            "title": {"text": y, "standoff": 12},
            "automargin": True,
            "zeroline": False,
            "ticklabelstandoff": 4,
            **(y_axis or {}),
        },
        showlegend=len(traces) > 1,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "xanchor": "left"},
        bargap=0.12,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        separators=".\u202f",
    )
    return go.Figure(traces, layout)


def colour(model: str, board: pl.DataFrame) -> str:
    """That of a model in every figure: by its place on the leaderboard."""
    models = board["model"].to_list() if board.height else []
    return COLOURS[models.index(model) % len(COLOURS)] if model in models else COLOURS[-1]


def mark(model: str, board: pl.DataFrame, size: int = 7) -> dict[str, Any]:
    """Its colour, and a shape of its own where there are more models than colours."""
    models = board["model"].to_list() if board.height else []
    turn = models.index(model) // len(COLOURS) if model in models else 0
    return {"color": colour(model, board), "symbol": SYMBOLS[turn % len(SYMBOLS)], "size": size}


def text(name: Any) -> str:
    """Plotly reads a little HTML in texts, so names that come from outside are escaped."""
    return html.escape(str(name), quote=False)
