"""Two tables beside each other: the same neighbours, the same arrangement? Of items that both have a vector of.

I items, K neighbours, T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.evaluation.geometry.measures import linear_cka, nearest, overlap
from recpipe.evaluation.geometry.tables import Table
from recpipe.evaluation.segments import POPULARITY

Places = NDArray[np.int64]


@dataclass(frozen=True)
class Neighbours:
    """A table with the neighbours (I, K) of its items, which are places in it."""

    table: Table
    near: Places


@dataclass(frozen=True)
class Compared:
    """A table and a random one of its kind, for the same items."""

    name: str
    own: Neighbours
    chance: Neighbours


@dataclass(frozen=True)
class Agreement:
    """``overlap`` (I,) of ``rows``, the common items; ``by_chance`` is the mean of the random tables: K / (I - 1), or
    more where both are made of the same codes or vectors.
    """

    rows: Places
    overlap: NDArray[np.float64]
    by_chance: float
    cka: float
    cka_by_chance: float


def agreement(one: Compared, other: Compared, k: int) -> Agreement | None:
    """None where fewer than k + 2 items have a vector in both."""
    rows = np.intersect1d(one.own.table.rows, other.own.table.rows)
    if len(rows) < k + 2:
        return None
    own, chance = (one.own, other.own), (one.chance, other.chance)
    return Agreement(
        rows,
        overlap(*(_near(each, rows, k) for each in own)),
        float(overlap(*(_near(each, rows, k) for each in chance)).mean()),
        linear_cka(*(_vectors(each.table, rows) for each in own)),
        linear_cka(*(_vectors(each.table, rows) for each in chance)),
    )


def matrices(compared: Sequence[Compared], k: int) -> dict[str, Any]:
    """(T, T) of all pairs: ``overlap`` and ``cka``, and both by chance; nan where two have no items in common."""
    names = [each.name for each in compared]
    shape = (len(names), len(names))
    found = {key: np.full(shape, np.nan) for key in ("overlap", "overlap_by_chance", "cka", "cka_by_chance")}
    for key in ("overlap", "cka"):
        np.fill_diagonal(found[key], 1.0)
    for a, b in combinations(range(len(names)), 2):
        if (both := agreement(compared[a], compared[b], k)) is not None:
            values = (both.overlap.mean(), both.by_chance, both.cka, both.cka_by_chance)
            for key, value in zip(found, values, strict=True):
                found[key][a, b] = found[key][b, a] = value
    return {"names": names, **found}


def stability(compared: Sequence[Compared], groups_I: Places, k: int) -> dict[str, Any] | None:
    """Means over pairs of one model's seeds, the neighbours' also by popularity; None for fewer than two."""
    pairs = [agreement(one, other, k) for one, other in combinations(compared, 2)]
    if not (known := [each for each in pairs if each is not None]):
        return None
    shares = np.concatenate([each.overlap for each in known])
    groups = groups_I[np.concatenate([each.rows for each in known])]
    return {
        "pairs": len(known),
        "overlap": shares.mean(),
        "by_chance": np.mean([each.by_chance for each in known]),
        "cka": np.mean([each.cka for each in known]),
        "cka_by_chance": np.mean([each.cka_by_chance for each in known]),
        "groups": {
            name: shares[groups == code].mean()
            for code, name in enumerate(POPULARITY)
            if (groups == code).any()
        },
    }


def _near(each: Neighbours, rows: Places, k: int) -> Places:
    """Neighbours (n, K) among ``rows``; searched anew only where these are not all that the table has."""
    if len(rows) == len(each.table.rows):
        return each.near
    return nearest(_vectors(each.table, rows), k)


def _vectors(table: Table, rows: Places) -> NDArray[np.float64]:
    return table.vectors[np.searchsorted(table.rows, rows)]
