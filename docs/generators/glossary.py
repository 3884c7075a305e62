"""Glossary: each term of docs/glossary.md has a heading, for the search and for links, as glossary.md#semantic-id."""

from __future__ import annotations

import re

PAGE = "glossary.md"
HEAD = "| term | meaning |\n|---|---|\n"
ROW = re.compile(r"^\| (?!term \|)([^|]+?) \| (.+?) \|$", re.MULTILINE)


def terms(markdown: str) -> list[str]:
    """Return the first cells of the table, such as ``beam, beam search``."""
    return [term for term, _ in ROW.findall(markdown)]


def anchor(term: str) -> str:
    """Return the anchor of a term: its first name in lower case, with a hyphen for anything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", term.partition(",")[0].lower()).strip("-")


def with_headings(markdown: str) -> str:
    """Replace the table by a heading and a paragraph per term, so that the search finds terms."""
    markdown = ROW.sub(lambda match: f'<h4 id="{anchor(match[1])}">{match[1]}</h4>\n\n{match[2]}\n', markdown)
    return markdown.replace(HEAD, '<div class="glossary" markdown>\n\n') + "\n</div>\n"
