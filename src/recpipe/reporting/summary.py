"""Terminal summary: leaderboard, recommendations of a few users, semantic ids, links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from unicodedata import combining, east_asian_width

import polars as pl

from recpipe.reporting.examples import Example, ExampleItem, RecommendedItem
from recpipe.reporting.formatting import percent
from recpipe.reporting.leaderboard import to_text

WIDTH, GAP = 100, "   "
COLUMN = (WIDTH - len(GAP)) // 2
LINES = 5  # per user


def format_summary(
    board: pl.DataFrame,
    examples: Sequence[Example],
    *,
    title: str,
    links: Mapping[str, str],
    ids: Sequence[str] = (),
    users: int = 3,
    metric: str = "ndcg@10",
) -> str:
    """Format plain text of 100 columns, with the first ``users`` examples and the lists of their first model.

    ``ids`` are lines about semantic ids, ``links`` places by name, as in {"report": path}.
    """
    parts = [_heading(title), to_text(board, metric=metric, width=WIDTH).rstrip()]
    if examples:
        model = next(iter(examples[0].recommendations), "")
        parts.append(_heading(f"Recommendations of {model}"))
        parts += [_user(example, model) for example in examples[:users]]
    if ids:
        parts.append("\n".join([_heading("Semantic ids"), *ids]))
    size = max(map(len, links), default=0)
    parts.append("\n".join(f"{name:<{size}}  {place}" for name, place in links.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(text: str) -> str:
    return f"━━ {text} " + "━" * max(WIDTH - len(text) - 4, 0)


def _user(example: Example, model: str) -> str:
    """Last events on the left, recommendations on the right, hits marked with ✓."""
    recommended = example.recommendations.get(model, ())
    left = [_event(item) for item in example.history[:LINES]]
    right = [_recommendation(item) for item in recommended[:LINES]] or ["nothing"]
    title = _fit(f"user {example.user}: newest of {example.length} events", COLUMN)
    lines = [f"{title}{GAP}recommended", "─" * COLUMN + GAP + "─" * COLUMN]
    for event, recommendation in zip_longest(left, right, fillvalue=""):
        lines.append(f"{event or ' ' * COLUMN}{GAP}{recommendation}".rstrip())
    ranks = {item.item_id: item.rank for item in recommended}
    for item in example.targets[:LINES]:
        rank = ranks.get(item.item_id)
        verdict = "not recommended" if rank is None else f"recommended at rank {rank}"
        lines.append(f"target: {_fit(item.title, COLUMN - 8).rstrip()} ({verdict})")
    return "\n".join(lines)


def _event(item: ExampleItem) -> str:
    day = "" if item.when is None else f"{item.when:>11}  "
    return day + _fit(item.title, COLUMN - len(day))


def _recommendation(item: RecommendedItem) -> str:
    probability = "" if item.probability is None else percent(item.probability)
    mark = "✓" if item.hit else " "
    return f"{mark}{item.rank:>2} {_fit(item.title, COLUMN - 12)} {probability:>7}".rstrip()


def _fit(text: str, size: int) -> str:
    """Cut or pad to ``size`` terminal columns; line breaks and control codes are removed."""
    text = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    if _width(text) > size:
        while _width(text) > size - 1:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text + " " * (size - _width(text))


def _width(text: str) -> int:
    """Number of terminal columns: East Asian characters have two, combining ones none."""
    return sum(0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text)
