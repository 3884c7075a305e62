"""Reallocation of colliding items to the nearest free codes, after MQL4GRec (Zhai et al. 2025).

MQL4GRec sorts the items of a colliding group by distance to their last code: the nearest keeps it, the others take
the next nearest last-level codes until one is free (at most 256 tries), and if none is, change the level before.
What it leaves open or we do otherwise is written at ``reallocate``.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from recpipe.semantic_ids.grouping import (
    Codes,
    Distances,
    Rows,
    blocks,
    children,
    groups,
    own_distances,
    ranks,
)


def reallocate(codes_NL: Codes, sizes: tuple[int, ...], distances: Distances, taken_ML: Codes) -> Codes:
    """(N, L) codes, no two rows equal and none in ``taken_ML``; sizes must have room for all.

    1. Of the items with equal codes the one nearest its last-level code keeps them (ties: the first row), unless
       they are taken. All others move, ordered by that distance, then by row. Codes that somebody keeps are not free.
    2. In this order every mover takes the nearest free last-level code below its own prefix. (MQL4GRec has its i-th
       item begin at the i-th nearest code; beginning at the nearest is never farther.)
    3. Whoever finds its prefix full takes the nearest code of the level before below which something is free, or of
       the level before that, and distances are computed anew below it (MQL4GRec keeps the old ones); then 2 again.
    4. Until nobody is left: MQL4GRec stops after two rounds and may leave collisions.
    """
    codes, movers = codes_NL.copy(), _movers(codes_NL, distances, taken_ML)
    stay = np.ones(len(codes), bool)
    stay[movers] = False
    held = np.concatenate([taken_ML, codes[stay]])
    while len(movers):
        found = _take_free(movers, codes, held, sizes[-1], distances)
        held, movers = np.concatenate([held, codes[movers[found]]]), movers[~found]
        _rehome(movers, codes, held, sizes, distances)
    return codes


def _movers(codes_NL: Codes, distances: Distances, taken_ML: Codes) -> Rows:
    """Rows that must change their codes, the nearest to its own code first."""
    ids = groups(np.concatenate([codes_NL, taken_ML]))
    own, earlier = ids[: len(codes_NL)], ids[len(codes_NL) :]
    rows = np.flatnonzero(np.bincount(ids)[own] > 1)
    nearness = own_distances(distances, rows, codes_NL[rows], codes_NL.shape[1] - 1)
    moves = (ranks(own[rows], nearness) > 0) | np.isin(own[rows], earlier)
    return rows[moves][np.argsort(nearness[moves], kind="stable")]


def _take_free(rows: Rows, codes: Codes, held: Codes, size: int, distances: Distances) -> NDArray[np.bool_]:
    """Gives ``rows``, in their order, the nearest free last-level code below their prefix; which of them got one.

    Prefixes do not disturb each other: the n-th of every prefix chooses in the n-th round, at most ``size`` rounds.
    """
    last = codes.shape[1] - 1
    found = np.zeros(len(rows), bool)
    for block in blocks(groups(codes[rows, :last]), size):
        prefix, counts = children(codes[rows[block], :last], held, size)
        free, turn = counts == 0, ranks(prefix)
        may = turn < free.sum(1)[prefix]
        found[block[may]] = True
        _choose(rows[block[may]], prefix[may], turn[may], free, codes, distances)
    return found


def _choose(
    rows: Rows, prefix: Rows, turn: Rows, free: NDArray[np.bool_], codes: Codes, distances: Distances
) -> None:
    last = codes.shape[1] - 1
    costs = distances(rows, codes[rows], last)
    for now in _rounds(turn):
        choice = np.where(free[prefix[now]], costs[now], np.inf).argmin(1)
        codes[rows[now], last] = choice
        free[prefix[now], choice] = False


def _rounds(turn: Rows) -> list[Rows]:
    order = np.argsort(turn, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(turn[order])) + 1)


def _rehome(rows: Rows, codes: Codes, held: Codes, sizes: tuple[int, ...], distances: Distances) -> None:
    """Moves ``rows``, whose prefixes are full, below the nearest prefix that is not, at the deepest level possible."""
    last = len(sizes) - 1
    for top in range(last - 1, -1, -1):
        if not len(rows):
            return
        prefix, counts = children(codes[rows, :top], held, sizes[top])
        fits = counts.min(1)[prefix] < math.prod(sizes[top + 1 :])
        for level in range(top, last):
            _nearest_open(rows[fits], codes, held, sizes, level, distances)
        rows = rows[~fits]
    assert not len(rows), f"no room for {len(rows)} items"


def _nearest_open(
    rows: Rows, codes: Codes, held: Codes, sizes: tuple[int, ...], level: int, distances: Distances
) -> None:
    prefix, counts = children(codes[rows, :level], held, sizes[level])
    full = counts >= math.prod(sizes[level + 1 :])
    for block in blocks(prefix, sizes[level]):
        costs = distances(rows[block], codes[rows[block]], level)
        codes[rows[block], level] = np.where(full[prefix[block]], np.inf, costs).argmin(1)
