"""Balanced re-assignment of colliding items at the last level, after LC-Rec (Zheng et al. 2024)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recpipe.semantic_ids.grouping import Codes, Distances, blocks, children, colliding, starts

ROUNDS = 20  # LC-Rec
EPSILONS = (
    0.02,
    0.01,
    0.005,
    0.0025,
    0.0015,
)  # of the largest cost in a group; LC-Rec ends at .0015 in this unit
SWEEPS = 10  # with each: 50 in all, as LC-Rec
TINY = 1e-300


def balance(
    codes_NL: Codes, sizes: tuple[int, ...], distances: Distances, taken_ML: Codes
) -> tuple[Codes, int]:
    """(N, L) codes and the number of rounds, at most 20. Items may still collide; never more than before.

    In a round all items that share their codes are assigned anew at the last level, those below one prefix together:
    entropic transport (Sinkhorn) with one unit per item, and every item takes its largest share. Two things differ
    from LC-Rec: codes held by items that do not collide are no choice (so a round cannot make new collisions), and a
    code holds *at most* one item, whereas LC-Rec fills all codes equally, which sends the few items of a group far
    away. Items with equal vectors stay together.
    """
    codes = codes_NL.copy()
    for done in range(ROUNDS):
        rows = np.flatnonzero(colliding(codes, taken_ML))
        before = codes[rows]
        stay = np.ones(len(codes), bool)
        stay[rows] = False
        prefix, counts = children(before[:, :-1], np.concatenate([taken_ML, codes[stay]]), sizes[-1])
        free = counts == 0
        open_ = np.flatnonzero(free.any(1)[prefix])
        for block in blocks(prefix[open_], sizes[-1]):
            mine = open_[block]
            costs = distances(rows[mine], before[mine], len(sizes) - 1)
            codes[rows[mine], -1] = transport(costs, free[prefix[mine]], prefix[mine]).argmax(1)
        if (codes[rows] == before).all():
            return codes, done
    return codes, ROUNDS


def transport(
    costs_MV: NDArray,
    free_MV: NDArray[np.bool_],
    group_M: NDArray[np.int64],
    *,
    sweeps: int = SWEEPS,
    epsilons: tuple[float, ...] = EPSILONS,
) -> NDArray[np.float64]:
    """(M, V) shares of the items of every group (sorted numbers) in the codes.

    Rows sum to 1 and, after enough sweeps, columns of a group to at most 1: Sinkhorn's scaling with the column
    condition as an inequality, a column's factor never exceeds 1. From one epsilon to the next, smaller one the
    columns keep their prices, so that few sweeps suffice.
    """
    first = np.unique(starts(group_M))
    own = np.searchsorted(first, np.arange(len(group_M)), "right") - 1
    costs = np.where(free_MV, costs_MV, np.inf).astype(np.float64)
    costs -= costs.min(1, keepdims=True)
    spread = np.where(np.isfinite(costs), costs, 0).max(1)
    spread = np.maximum(np.maximum.reduceat(spread, first), 1e-30)[own, None]
    columns = np.ones((len(first), costs.shape[1]))
    for before, epsilon in zip((epsilons[0], *epsilons), epsilons, strict=False):
        kernel = np.exp(-costs / (epsilon * spread))
        columns = np.maximum(columns ** (before / epsilon), TINY)
        for _ in range(sweeps):
            rows = 1 / np.maximum((kernel * columns[own]).sum(1), TINY)
            columns = 1 / np.maximum(np.add.reduceat(kernel * rows[:, None], first, 0), 1)
    shares = kernel * columns[own]
    return shares / np.maximum(shares.sum(1, keepdims=True), TINY)
