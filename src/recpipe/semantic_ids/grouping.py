"""Which rows of a table of codes share a prefix, and who comes first among them: sorting, no loop over items.

Shape letters: N items, M other items, L levels, P groups, V codes per level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]
Codes = NDArray[np.int32]
# (rows, their codes, level) -> (rows, V of the level): squared distances of each row's item to every code of
# the level, the codes of the earlier levels being as given
Distances = Callable[[Rows, Codes, int], NDArray[np.float32]]

LARGEST = 1 << 62
BUDGET = 1 << 23  # numbers in one block of distances


def groups(codes_NL: Codes) -> Rows:
    """(N,) group numbers 0..P-1 in lexicographic order of the rows; equal rows share one. Any number of levels."""
    keys, spread = np.zeros(len(codes_NL), np.int64), 1
    for level in range(codes_NL.shape[1] if len(codes_NL) else 0):
        base = int(codes_NL[:, level].max()) + 1
        if spread * base > LARGEST:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            spread = int(keys.max()) + 1
        keys = keys * base + codes_NL[:, level]
        spread *= base
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def colliding(codes_NL: Codes, taken_ML: Codes) -> NDArray[np.bool_]:
    """(N,) whether another row, or a row of ``taken_ML``, has the same codes."""
    ids = groups(np.concatenate([taken_ML, codes_NL]))
    return (np.bincount(ids)[ids] > 1)[len(taken_ML) :]


def ranks(group_N: Rows, *keys: NDArray) -> Rows:
    """(N,) place of every row within its group, sorted by ``keys`` (first key first), then by row number."""
    order = np.lexsort((*reversed(keys), group_N))
    return placed(order, np.arange(len(order)) - starts(group_N[order]))


def starts(sorted_N: Rows) -> Rows:
    """(N,) where the run of equal numbers that each row belongs to begins."""
    first = np.ones(len(sorted_N), bool)
    first[1:] = sorted_N[1:] != sorted_N[:-1]
    return np.flatnonzero(first)[np.cumsum(first) - 1]


def placed(order: Rows, values: Rows) -> Rows:
    """``values`` of the sorted rows back in the rows' own order."""
    back = np.empty(len(order), np.int64)
    back[order] = values
    return back


def children(prefixes_NL: Codes, held_ML: Codes, size: int) -> tuple[Rows, Rows]:
    """(N,) number p of each row's prefix, and (P, size) how many of ``held_ML`` lie below each child of p.

    ``held_ML`` has at least one level more than ``prefixes_NL``.
    """
    depth = prefixes_NL.shape[1]
    joint = groups(np.concatenate([prefixes_NL, held_ML[:, :depth]]))
    known, own = np.unique(joint[: len(prefixes_NL)], return_inverse=True)
    number = np.full(int(joint.max(initial=-1)) + 1, -1, np.int64)
    number[known] = np.arange(len(known))
    parent = number[joint[len(prefixes_NL) :]]
    below = parent >= 0
    flat = parent[below] * size + held_ML[below, depth]
    return own.astype(np.int64), np.bincount(flat, minlength=len(known) * size).reshape(len(known), size)


def blocks(group_N: Rows, width: int) -> Iterator[Rows]:
    """Positions of the rows in blocks that never split a group and hold about ``BUDGET`` numbers of ``width``."""
    order = np.argsort(group_N, kind="stable")
    block = starts(group_N[order]) // max(1, BUDGET // width)
    yield from np.split(order, np.flatnonzero(np.diff(block)) + 1) if len(order) else ()


def own_distances(distances: Distances, rows: Rows, codes_NL: Codes, level: int) -> NDArray[np.float32]:
    """(N,) distance of the items ``rows`` to the code they have at ``level``."""
    found = [np.zeros(0, np.float32)]
    for begin in range(0, len(rows), step := 8192):
        part = codes_NL[begin : begin + step]
        found.append(distances(rows[begin : begin + step], part, level)[np.arange(len(part)), part[:, level]])
    return np.concatenate(found)
