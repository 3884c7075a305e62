"""Tables of insights as text: models against the baseline, and what lists are like besides accurate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from recpipe.reporting.wording import INTERVAL, MISSING, count, interval, percent, probability, short

Table = tuple[list[str], list[list[str]]]
LISTS = {  # columns of the table of lists: key, head, meaning
    "coverage": ("coverage", "share of the catalogue in at least one list"),
    "gini": ("Gini", "of how often items are recommended: 0 all equally, near 1 everybody the same few"),
    "arp": ("popularity", "training events of a recommended item, on average (ARP)"),
    "novelty": ("novelty", "bits of surprise that someone has the item; one more bit is half as many people"),
    "diversity": (
        "diversity",
        "how unlike each other by content the items of a list are: 0 alike, 1 unrelated",
    ),
    "serendipity": (
        "serendipity",
        "hits, weighted by how much earlier they stand than by popularity, in thousandths",
    ),
    "divergence": (
        "divergence",
        "bits between recommendations and training data: 0 the same items as often, 1 none in common",
    ),
    "error": (
        "calibration",
        "how far probabilities and what came true are apart, on average, in all lists kept",
    ),
    "said": (
        "said / so",
        "how often the target should be in the list kept, longer than the one above, by its probabilities; and is",
    ),
}


def certainty_table(found: Mapping[str, Any], board: pl.DataFrame) -> Table | None:
    """One protocol's models, best first, each against the baseline; with the range over ties where it was measured."""
    sure = (found.get("certainty") or {}).get(board["protocol"][0]) if board.height else None
    if not sure:
        return None
    ties = found["ties"] if found.get("protocol") == board["protocol"][0] else {}
    head = [
        "model",
        "difference",
        INTERVAL,
        "p",
        *(["other orders of ties"] if ties else []),
    ]
    rows = []
    for name in board["model"].to_list():
        if name not in sure["estimates"]:
            continue
        difference = sure["differences"].get(name)
        cells = (
            [MISSING, MISSING, "baseline"]
            if difference is None
            else [
                _signed(difference["mean"]),
                _signed_interval(difference),
                probability(difference["p_holm"]),
            ]
        )
        tied = [interval(ties[name]["low"], ties[name]["high"]) if name in ties else MISSING] if ties else []
        rows.append([name, *cells, *tied])
    return head, rows


def lists_table(found: Mapping[str, Any], board: pl.DataFrame) -> tuple[Table, list[tuple[str, str]]] | None:
    """The lists of every model, best first, and what the columns mean; columns that nobody has are left out."""
    if not board.height or not found.get("lists"):
        return None
    rows = {}
    for name in board["model"].to_list():
        if (each := found["lists"].get(name)) is not None:
            judged = found["calibration"].get(name) or {}
            rows[name] = {key: _cell(key, {**each, **judged}) for key in LISTS}
    kept = [key for key in LISTS if any(row[key] != MISSING for row in rows.values())]
    head = ["model", *(LISTS[key][0] for key in kept)]
    training = dict.fromkeys(kept, MISSING) | {"arp": count(found["training"]["arp"])}
    table = [["training data", *(training[key] for key in kept)]]
    table += [[name, *(row[key] for key in kept)] for name, row in rows.items()]
    return (head, table), [LISTS[key] for key in kept]


def _cell(key: str, values: Mapping[str, Any]) -> str:
    value = values.get(key)
    if value is None:
        return MISSING
    if key == "arp":
        return count(value) if value >= 100 else f"{value:.1f}"
    if key == "said":
        return f"{percent(value)} / {percent(values['so'])}"
    if key in ("coverage", "error"):
        return percent(value)
    return (
        f"{1000 * value:.2f}"
        if key == "serendipity"
        else f"{value:.2f}"
        if key == "novelty"
        else f"{value:.3f}"
    )


def _signed(value: float) -> str:
    return f"+{short(value)}" if value >= 0 else f"\u2212{short(-value)}"


def _signed_interval(difference: Mapping[str, Any]) -> str:
    low, high = difference["low"], difference["high"]
    return MISSING if low is None else f"{_signed(low)} to {_signed(high)}"
