"""Dot plot of a section as SVG: published numbers as rings, ours as dots with their intervals.

It is 420 pixels wide, so that it is readable on a telephone, and has no background: its colours have contrast on white
and on dark pages alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from recpipe.reporting.formatting import decimals, metric_title

WIDTH, LEFT, RIGHT, ROW, TOP = 420, 150, 48, 20, 26  # pixels: whole, names, numbers, height of a row, title
LETTERS = 22  # of a name
GREY, BLUE, LINE = "#6e7781", "#1f6feb", "#6e778166"
MAX_ROWS = 40


class Point(NamedTuple):
    """One row of the plot; ``low`` and ``high`` are the bounds of an interval."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    is_ours: bool = False


def dot_plot(points: Sequence[Point], *, metric: str, title: str) -> str:
    """Draw ``points``, in their order from the top, over an axis that begins at 0."""
    points = points[:MAX_ROWS]
    largest = max(max(point.value, point.high or 0) for point in points) or 1.0
    scale = (WIDTH - LEFT - RIGHT) / largest
    height = TOP + ROW * len(points) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{GREY}">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="14">{escape(metric_title(metric))}</text>',
        f'<circle cx="{LEFT + 84}" cy="10" r="4" fill="none" stroke="{GREY}" stroke-width="1.5"/>'
        f'<text x="{LEFT + 92}" y="14">published</text>',
        f'<circle cx="{LEFT + 164}" cy="10" r="4" fill="{BLUE}"/><text x="{LEFT + 172}" y="14">ours, 95 %</text>',
    ]
    for number, point in enumerate(points):
        parts.append(_row(point, TOP + ROW * number + ROW / 2, scale))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(point: Point, y: float, scale: float) -> str:
    x = LEFT + point.value * scale
    name = point.name if len(point.name) <= LETTERS else f"{point.name[: LETTERS - 1]}…"
    colour = BLUE if point.is_ours else GREY
    style = f' fill="{BLUE}" font-weight="600"' if point.is_ours else ""
    parts = [
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{LINE}" stroke-dasharray="1 4"/>',
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end"{style}>{escape(name)}</text>',
        f'<text x="{WIDTH - 4}" y="{y + 4:.1f}" text-anchor="end"{style}>{decimals(point.value)}</text>',
    ]
    if point.low is not None and point.high is not None:
        ends = f'x1="{LEFT + point.low * scale:.1f}" x2="{LEFT + point.high * scale:.1f}"'
        parts.append(f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" stroke="{colour}" stroke-width="2.5"/>')
    fill = colour if point.is_ours else "none"
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>')
    return "".join(parts)
