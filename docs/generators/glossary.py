"""Anchors of the glossary: each term of docs/glossary.md can be linked, as glossary.md#semantic-id."""

from __future__ import annotations

import re

PAGE = "glossary.md"
ROW = re.compile(r"^\| (?!term \||---)([^|]+?) \|", re.MULTILINE)


def terms(markdown: str) -> list[str]:
    """Return the first cells of the table, such as ``beam, beam search``."""
    return ROW.findall(markdown)


def anchor(term: str) -> str:
    """Return the anchor of a term: its first name in lower case, with a hyphen for anything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", term.partition(",")[0].lower()).strip("-")


def with_anchors(markdown: str) -> str:
    """Add an anchor before each term of the glossary."""
    return ROW.sub(lambda match: f'| <span id="{anchor(match[1])}"></span>{match[1]} |', markdown)
