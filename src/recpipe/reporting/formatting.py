"""How numbers and names are written, the same on the terminal, in Markdown, in figures and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

MISSING = "\u2013"  # an en dash
INTERVAL = "95\u202f% interval"  # over users


def cell(row: Mapping[str, Any], name: str) -> str:
    """A metric as people read it: .1823, or .1823 ± .0020 over several seeds, a dash where it is missing."""
    mean, std = row.get(name), row.get(f"{name}_std")
    return MISSING if mean is None else short(mean) if std is None else f"{short(mean)} ± {short(std)}"


def interval(low: float | None, high: float | None) -> str:
    """Its bounds, a dash where they are not known."""
    return MISSING if low is None or high is None else f"{short(low)}\u2013{short(high)}"


def short(value: float) -> str:
    """Four decimals without the zero in front of the point, which every share below 1 has."""
    return f"{value:.4f}".removeprefix("0")


def seconds(value: float | None) -> str:
    """A duration with the unit it is thought of in."""
    if value is None:
        return MISSING
    if value < 0.1:
        return "< 0.1 s"
    if value < 60:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 3600 else f"{value / 3600:.1f} h"


def codes_per_level(sizes: Sequence[int]) -> str:
    """Codes per level of semantic ids: 256 × 256 × 256, or 16 levels of 256."""
    if len(sizes) > 4 and len(set(sizes)) == 1:
        return f"{len(sizes)} levels of {sizes[0]}"
    return " \u00d7 ".join(map(str, sizes))


def metric_title(name: str) -> str:
    """`ndcg@10` as it is printed."""
    stem, at, cutoff = name.partition("@")
    titles = {"ndcg": "NDCG", "mrr": "MRR", "map": "MAP", "hit_rate": "Hit rate"}
    return titles.get(stem, stem.replace("_", " ").capitalize()) + at + cutoff


def count(value: float | None) -> str:
    """A whole number with thousands set apart by a thin space, as in 406 829."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def pair(usual: float | None, slow: float | None) -> str:
    """Two waiting times as 3.1 / 12; a dash where they were not measured."""
    known = [f"{value:.1f}" if value < 10 else count(value) for value in (usual, slow) if value is not None]
    return " / ".join(known) or MISSING


def number(value: float | None) -> str:
    """With one decimal where it has any."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if isinstance(value, float) and value % 1 else count(value)


def percent(share: float | None) -> str:
    """A share as a percentage with about three digits that mean something."""
    if share is None:
        return MISSING
    value = 100 * share
    digits = 0 if value >= 99.95 or value == 0 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}\u202f%"


def probability(p: float) -> str:
    """A p-value: none is 0."""
    if p < 0.001:
        return "< .001"
    return (f"{p:.2f}" if p >= 0.095 else f"{p:.3f}").removeprefix("0")


def day(timestamp: int | None) -> str | None:
    """Seconds since 1970 as a day in UTC: 9 Dec 2011; as they are where a raw log holds what is no date."""
    if timestamp is None:
        return None
    try:
        at = datetime.fromtimestamp(timestamp, UTC)
    except (ValueError, OverflowError, OSError):
        return str(timestamp)
    return f"{at.day} {at:%b %Y}"


def span(first: int | None, last: int | None) -> str:
    """From day to day, of seconds since 1970."""
    return MISSING if first is None or last is None else f"{day(first)} \u2013 {day(last)}"
