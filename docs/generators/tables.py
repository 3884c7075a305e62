"""Tables: cells with long texts get a class, so that a narrow screen scrolls a table and does not squeeze them."""

from __future__ import annotations

import re

CELL = re.compile(r"<td>(.*?)</td>", re.DOTALL)
TAG = re.compile(r"<[^>]+>")
LONG = 36  # characters


def with_long_cells(html: str) -> str:
    """Add ``class="long"`` to cells whose text has ``LONG`` characters or more."""

    def cell(match: re.Match[str]) -> str:
        is_long = len(TAG.sub("", match[1])) >= LONG
        return f'<td class="long">{match[1]}</td>' if is_long else match[0]

    return CELL.sub(cell, html)
