"""Terminal summaries: the log after ingest; leaderboard, recommendations of a few users, semantic ids, links."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any
from unicodedata import combining, east_asian_width

import polars as pl

from recpipe.reporting.examples import Example, ExampleItem, RecommendedItem
from recpipe.reporting.formatting import JOINERS, date_range, number, percent, printable
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
    warnings: Sequence[str] = (),
    audit: Sequence[str] = (),
    model: str = "",
    users: int = 3,
    metric: str = "ndcg@10",
) -> str:
    """Format plain text of 100 columns, with the first ``users`` examples and the lists of ``model`` or the first one.

    ``ids`` are lines about semantic ids, ``warnings`` and ``audit`` sentences about the data, ``links`` places by name,
    as in {"report": path}.
    """
    parts = [_heading(title), to_text(board, metric=metric, width=WIDTH).rstrip()]
    parts += [_paragraph(f"Warning: {warning}") for warning in warnings]
    if audit:
        parts.append("\n".join([_heading("Audit of the data set"), *map(_paragraph, audit)]))
    if examples:
        model = model or next(iter(examples[0].recommendations), "")
        parts.append(_heading(f"Recommendations of {model}"))
        parts += [_user(example, model) for example in examples[:users]]
    if ids:
        parts.append("\n".join([_heading("Semantic ids"), *ids]))
    size = max(map(len, links), default=0)
    parts.append("\n".join(f"{name:<{size}}  {place}" for name, place in links.items()))
    return "\n\n".join(part for part in parts if part) + "\n"


def format_log(profile: Mapping[str, Any], steps: pl.DataFrame, *, title: str) -> str:
    """Format the result of ingest: events, users, items, time span, events per user, unusable rows by reason, joins."""
    rows = {row["name"]: row for row in steps.sort("step").to_dicts()}
    raw, per_user = rows["raw"]["rows"], profile["events_per_user"]
    bad = json.loads(rows["bad_rows"]["detail"]) if "bad_rows" in rows else {}
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in (bad.get("reasons") or {}).items())
    unusable = raw - rows.get("bad_rows", rows["raw"])["rows"]
    values = {
        "events": f"{profile['rows']:,} of {raw:,} rows",
        "unusable": f"{unusable:,} rows ({bad.get('policy')}): {reasons}" if unusable else "none",
        "users": f"{profile['users']:,}",
        "items": f"{profile['items']:,}",
        "per user": f"{per_user['min']} to {per_user['max']:,} events, median {number(per_user['median'])}",
        "time": "no time column: the order of the rows decides, or that of the column `order`; name a time column as "
        "`timestamp` in `options.columns` of the data set",
    }
    if profile["span_days"] is not None:
        span = date_range(profile["first_timestamp"], profile["last_timestamp"])
        values["time"] = f"{span} ({number(round(profile['span_days'], 1))} days)"
    for join in profile.get("joins") or ():
        text = f", {join['without_text']:,} of these without text" if join.get("without_text") else ""
        values[f"{join['table']} file"] = (
            f"{join['matched']:,} of {join['ids']:,} {join['table']} are in {join['file']}{text}"
        )
    size = max(map(len, values))
    lines = [_paragraph(value, first=f"{name:<{size}}  ", indent=size + 2) for name, value in values.items()]
    return "\n".join([_heading(f"{title}: log after ingest"), *lines, ""])


def _heading(text: str) -> str:
    text = printable(text)
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
    """Cut or pad cleaned text to ``size`` terminal columns."""
    text = printable(text)
    if _width(text) > size:
        while _width(text) > size - 1:
            text = text[:-1]
        text = text.rstrip() + "…"
    return text + " " * (size - _width(text))


def _paragraph(text: str, *, first: str = "", indent: int = 2) -> str:
    """Wrap cleaned text to the width, after ``first`` and with the other lines indented."""
    return textwrap.fill(
        printable(text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _width(text: str) -> int:
    """Number of terminal columns: East Asian characters have two, combining ones none."""
    return sum(0 if combining(char) or char in JOINERS else 2 if east_asian_width(char) in "WF" else 1 for char in text)
