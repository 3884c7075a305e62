"""Text formats of numbers, dates and metric names, shared by the terminal, Markdown, figures and the HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

MISSING = "\u2013"  # an en dash
JOINERS = "\u200c\u200d"  # zero-width
INTERVAL = "95\u202f% interval"  # over users


def metric_title(name: str) -> str:
    """Format a metric name: ``ndcg@10`` as NDCG@10."""
    stem, at, cutoff = name.partition("@")
    titles = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "Hit rate"}
    return titles.get(stem, stem.replace("_", " ").capitalize()) + at + cutoff


def mean_and_std(row: Mapping[str, Any], name: str) -> str:
    """Format a metric of a leaderboard row: .1823, or .1823 ± .0020 over several seeds."""
    mean, std = row.get(name), row.get(f"{name}_std")
    return MISSING if mean is None else decimals(mean) if std is None else f"{decimals(mean)} ± {decimals(std)}"


def interval(low: float | None, high: float | None) -> str:
    """Format the bounds of an interval: .1701–.1944."""
    return MISSING if low is None or high is None else f"{decimals(low)}\u2013{decimals(high)}"


def decimals(value: float) -> str:
    """Format with four decimals and without a leading zero."""
    return f"{value:.4f}".removeprefix("0")


def count(value: float | None) -> str:
    """Format a whole number with thin spaces between thousands: 406 829."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def number(value: float | None) -> str:
    """Format with one decimal, whole numbers without."""
    return f"{value:.1f}" if isinstance(value, float) and value % 1 else count(value)


def percent(share: float | None) -> str:
    """Format a share as a percentage with about three significant digits."""
    if share is None:
        return MISSING
    value = 100 * share
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}\u202f%"


def p_value(p: float) -> str:
    """Format a p-value; small ones as < .001."""
    if p < 0.001:
        return "< .001"
    return (f"{p:.2f}" if p >= 0.095 else f"{p:.3f}").removeprefix("0")


def duration(seconds: float | None) -> str:
    """Format seconds as s, min or h."""
    if seconds is None:
        return MISSING
    if seconds < 0.1:
        return "< 0.1 s"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def latencies(p50: float | None, p95: float | None) -> str:
    """Format two latencies in milliseconds: 3.1 / 12."""
    values = [f"{value:.1f}" if value < 10 else count(value) for value in (p50, p95) if value is not None]
    return " / ".join(values) or MISSING


def printable(text: str) -> str:
    """Replace what a terminal would obey: escape and control codes, line breaks, changes of writing direction.

    Joiners stay, which emoji and several scripts need.
    """
    characters = " ".join(text.split())
    return "".join(char if char.isprintable() or char in JOINERS else "\ufffd" for char in characters)


def day(timestamp: int | None) -> str | None:
    """Format seconds since 1970 as a day in UTC: 9 Dec 2011; numbers out of range as they are."""
    if timestamp is None:
        return None
    try:
        date = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        return str(timestamp)
    return f"{date.day} {date:%b %Y}"


def date_range(first: int | None, last: int | None) -> str:
    """Format two timestamps as a range of days."""
    return MISSING if first is None or last is None else f"{day(first)} \u2013 {day(last)}"


def codes_per_level(sizes: Sequence[int]) -> str:
    """Format the sizes of the levels of semantic ids: 256 × 256 × 256, or 16 levels of 256."""
    if len(sizes) > 4 and len(set(sizes)) == 1:
        return f"{len(sizes)} levels of {sizes[0]}"
    return " \u00d7 ".join(map(str, sizes))
