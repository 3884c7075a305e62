"""Dot plot of a section as SVG: published numbers as rings, ours as dots with their intervals.

It is 420 pixels wide, so that it is readable on a telephone. It brings its own background and two sets of colours, for
light and dark systems: a page with a switch of its own may show either, and both are readable there.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from recpipe.reporting.formatting import decimals, metric_title

WIDTH, LEFT, RIGHT, ROW, TOP = 420, 158, 52, 20, 30  # pixels: whole, names, numbers, height of a row, title
LETTERS = 20  # of a name, in bold letters of a wide font
STYLE = (  # contrast of texts with the paper is at least 4.5
    "<style>"
    ":root { --paper: #ffffff; --grey: #59636e; --blue: #0969da; --line: #d1d9e0 }"
    "@media (prefers-color-scheme: dark) {"
    " :root { --paper: #0d1117; --grey: #9198a1; --blue: #4493f8; --line: #3d444d } }"
    "text { fill: var(--grey) } .ours { fill: var(--blue); font-weight: 600 }"
    "line { stroke: var(--grey) } line.ours { stroke: var(--blue) } line.guide { stroke: var(--line) }"
    "circle { fill: none; stroke: var(--grey); stroke-width: 1.5 }"
    " circle.ours { fill: var(--blue); stroke: var(--blue) }"
    "</style>"
)
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
        'font-family="system-ui, sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        STYLE,
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="var(--paper)"/>',
        f'<text x="{LEFT}" y="17">{escape(metric_title(metric))}</text>',
        f'<circle cx="{LEFT + 84}" cy="13" r="4"/><text x="{LEFT + 92}" y="17">published</text>',
        f'<circle class="ours" cx="{LEFT + 164}" cy="13" r="4"/><text x="{LEFT + 172}" y="17">ours, 95 %</text>',
    ]
    for number, point in enumerate(points):
        parts.append(_row(point, TOP + ROW * number + ROW / 2, scale))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _row(point: Point, y: float, scale: float) -> str:
    x = LEFT + point.value * scale
    name = point.name if len(point.name) <= LETTERS else f"{point.name[: LETTERS - 1]}…"
    mark = ' class="ours"' if point.is_ours else ""
    parts = [
        f'<line class="guide" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke-dasharray="1 4"/>',
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end"{mark}>{escape(name)}</text>',
        f'<text x="{WIDTH - 8}" y="{y + 4:.1f}" text-anchor="end"{mark}>{decimals(point.value)}</text>',
    ]
    if point.low is not None and point.high is not None:
        ends = f'x1="{LEFT + point.low * scale:.1f}" x2="{LEFT + point.high * scale:.1f}"'
        parts.append(f'<line {ends} y1="{y:.1f}" y2="{y:.1f}" stroke-width="2.5"{mark}/>')
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"{mark}/>')
    return "".join(parts)
