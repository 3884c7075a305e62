"""What `make demo` ends with: the leaderboard, a few users' recommendations, and where to look next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from unicodedata import combining, east_asian_width

import polars as pl

from recpipe.reporting.examples import Example, Recommended, Shown
from recpipe.reporting.formatting import percent
from recpipe.reporting.leaderboard import to_text

WIDTH = 100
GAP = 3
LINES = 5  # per user


def summary(
    board: pl.DataFrame,
    examples: Sequence[Example],
    *,
    title: str,
    links: Mapping[str, str],
    ids: Sequence[str] = (),
    users: int = 3,
    metric: str = "ndcg@10",
) -> str:
    """Plain text for a terminal of 100 columns; `links` name what else there is, as in {"report": path};
    `ids` are lines on semantic ids.

    Of the examples the first `users` are shown, with the recommendations of their first model.
    """
    parts = [_heading(title), to_text(board, metric=metric, width=WIDTH).rstrip()]
    if examples:
        model = next(iter(examples[0].recommendations), "")
        parts.append(_heading(f"What {model} recommends"))
        parts += [_user(example, model) for example in examples[:users]]
    if ids:
        parts.append("\n".join([_heading("Semantic ids"), *ids]))
    size = max(map(len, links), default=0)
    parts.append("\n".join(f"{name:<{size}}  {place}" for name, place in links.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(text: str) -> str:
    return f"━━ {text} " + "━" * max(WIDTH - len(text) - 4, 0)


def _user(example: Example, model: str) -> str:
    """Last events on the left, recommendations on the right, a ✓ where the user did take the item next."""
    side = (WIDTH - GAP) // 2
    left = [_event(shown, side) for shown in example.history[:LINES]]
    right = [_recommended(each, side) for each in example.recommendations.get(model, ())[:LINES]]
    lines = [
        _fit(f"user {example.user}: newest of {example.length}", side) + " " * GAP + "recommended",
        "─" * side + " " * GAP + "─" * side,
    ]
    for mine, theirs in zip_longest(left, right or ["nothing"], fillvalue=""):
        lines.append(((mine or " " * side) + " " * GAP + theirs).rstrip())
    rank = {each.item_id: each.rank for each in example.recommendations.get(model, ())}
    for shown in example.targets[:LINES]:
        where = f"recommended at rank {rank[shown.item_id]}" if shown.item_id in rank else "not recommended"
        lines.append(f"came next: {_fit(shown.title, side - 11).rstrip()} ({where})")
    return "\n".join(lines)


def _event(shown: Shown, side: int) -> str:
    day = "" if shown.when is None else f"{shown.when:>11}  "
    return day + _fit(shown.title, side - len(day))


def _recommended(each: Recommended, side: int) -> str:
    chance = "" if each.probability is None else percent(each.probability)
    mark = "✓" if each.hit else " "
    return f"{mark}{each.rank:>2} {_fit(each.title, side - 12)} {chance:>7}".rstrip()


def _fit(text: str, size: int) -> str:
    """Cut or filled to `size` columns of a terminal, without line breaks or control codes from outside."""
    text = "".join(character if character.isprintable() else "�" for character in " ".join(text.split()))
    if _width(text) > size:
        while _width(text) > size - 1:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text + " " * (size - _width(text))


def _width(text: str) -> int:
    """Columns of a terminal: East Asian characters are two wide, combining ones none."""
    return sum(0 if combining(each) else 2 if east_asian_width(each) in "WF" else 1 for each in text)
