"""Collisions of codes: detection, and the policies extra digit, reallocation, Sinkhorn balancing and keeping them.

Codes of earlier items (``taken``) are fixed. Shape letters: N items, M items with fixed codes, L levels, P groups,
V codes per level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recpipe.config import check_known

Rows = NDArray[np.int64]
Codes = NDArray[np.int32]
Vectors = NDArray[np.float32]
# (rows R, codes (R, L), level) -> (R, V) squared distances to the codes of the level, after the earlier levels' codes
Distances = Callable[[Rows, Codes, int], Vectors]

POLICIES = ("extra_digit", "reallocate", "sinkhorn", "keep")
REFUSE = "refuse"  # an error where any two items collide
UNIQUE = ("extra_digit", "reallocate", REFUSE)  # policies after which no two items share an id
BLOCK_SIZE = 1 << 23  # numbers in one block of distances
MAX_KEY = 1 << 62
ROUNDS = 20  # of sinkhorn, as LC-Rec
EPSILONS = (0.02, 0.01, 0.005, 0.0025, 0.0015)  # shares of a group's largest cost; LC-Rec ends at .0015 in this unit
SWEEPS = 10  # per epsilon: 50 in all, as LC-Rec
TINY = 1e-300


@dataclass(frozen=True)
class Resolution:
    """Codes after a policy, with the numbers of colliding, moved and still colliding items."""

    codes: Codes  # (N, L), or (N, L + 1) after extra_digit
    sizes: tuple[int, ...]
    counts: dict[str, int]


def resolve(
    policy: str,
    codes_NL: Codes,
    sizes: tuple[int, ...],
    distances: Distances,
    *,
    extra_codes: int = 256,
    taken: Codes | None = None,
) -> Resolution:
    """Resolve collisions of ``codes_NL`` among each other and with ``taken`` (M, levels of the result).

    Raises ValueError for an unknown policy, for more items than ids, and for any collision where the policy is refuse.
    """
    check_known(policy, (*POLICIES, REFUSE), what="policy for collisions")
    new_sizes = (*sizes, extra_codes) if policy == "extra_digit" else tuple(sizes)
    taken = np.zeros((0, len(new_sizes)), np.int32) if taken is None else taken
    counts = {"colliding": int(colliding(codes_NL, taken[:, : len(sizes)]).sum())}
    if policy == REFUSE and counts["colliding"]:
        raise ValueError(
            f"{counts['colliding']:,} of {len(codes_NL):,} items share their codes with another, which "
            f"semantic_ids.collisions={REFUSE} does not allow; set it to {' or '.join(UNIQUE[:-1])}"
        )
    rounds: dict[str, int] = {}
    if policy == "extra_digit":
        codes = _extra_digit(codes_NL, distances, taken, extra_codes)
    elif policy == "reallocate":
        if (items := len(codes_NL) + len(taken)) > (room := math.prod(sizes)):
            shape = "x".join(map(str, sizes))
            raise ValueError(f"{items} items do not fit into {room} ids ({shape}); use more levels or codes")
        codes = reallocate(codes_NL, new_sizes, distances, taken)
    elif policy == "sinkhorn":
        codes, rounds["rounds"] = _balance(codes_NL, new_sizes, distances, taken)
    else:
        codes = codes_NL.copy()
    counts["moved"] = int((codes[:, : len(sizes)] != codes_NL).any(1).sum())
    counts["left"] = int(colliding(codes, taken).sum())
    assert not counts["left"] or policy not in UNIQUE, f"{counts['left']} items share an id after {policy}"
    return Resolution(codes, new_sizes, counts | rounds)


def check_codes(
    codes_NL: NDArray[np.integer],
    sizes: tuple[int, ...],
    *,
    what: str = "codes",
    item_ids: NDArray[np.object_] | None = None,
) -> None:
    """Raise ValueError for codes that are not whole numbers (N, L) from 0 to below the size of their level."""
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or codes_NL.dtype.kind not in "iu":
        raise ValueError(
            f"{what} must be whole numbers of shape (N, {len(sizes)}), got {codes_NL.dtype} {codes_NL.shape}"
        )
    wrong = (codes_NL < 0) | (codes_NL >= np.array(sizes, np.int64))
    if wrong.any():
        row, level = np.argwhere(wrong)[0]
        name = f"row {row}" if item_ids is None else f"item {item_ids[row]!r}"
        raise ValueError(
            f"{what} of {int(wrong.any(1).sum())} items are out of range: {name} has {codes_NL[row, level]} at level "
            f"{level + 1}, allowed 0 to {sizes[level] - 1}"
        )


def colliding(codes_NL: Codes, taken_ML: Codes) -> NDArray[np.bool_]:
    """Return whether another row, or a row of ``taken_ML``, has the same codes, bool (N,)."""
    group = row_groups(np.concatenate([taken_ML, codes_NL]))
    return (np.bincount(group)[group] > 1)[len(taken_ML) :]


def row_groups(codes_NL: Codes) -> Rows:
    """Return group numbers (N,) 0..P-1 of equal rows, in lexicographic order, for any number of levels.

    Examples:
        >>> row_groups(np.array([[1, 2], [0, 5], [1, 2]]))
        array([1, 0, 1])
    """
    keys, n_keys = np.zeros(len(codes_NL), np.int64), 1
    for level in range(codes_NL.shape[1] if len(codes_NL) else 0):
        base = int(codes_NL[:, level].max()) + 1
        if n_keys * base > MAX_KEY:
            keys = np.unique(keys, return_inverse=True)[1].astype(np.int64)
            n_keys = int(keys.max()) + 1
        keys = keys * base + codes_NL[:, level]
        n_keys *= base
    return np.unique(keys, return_inverse=True)[1].astype(np.int64)


def _extra_digit(codes_NL: Codes, distances: Distances, taken_ML: Codes, extra_codes: int) -> Codes:
    """Append a digit that differs among items with equal codes, after TIGER (Rajput et al. 2023, §3.1).

    Digit 0 is the item nearest its code at the last level, then outwards, ties by row; TIGER leaves the order open.
    Digits continue after those of ``taken_ML`` (M, L + 1) with the same codes.
    """
    depth = codes_NL.shape[1]
    joint = row_groups(np.concatenate([codes_NL, taken_ML[:, :depth]]))
    group, taken_group = joint[: len(codes_NL)], joint[len(codes_NL) :]
    first = np.zeros(int(joint.max(initial=-1)) + 1, np.int64)
    np.maximum.at(first, taken_group, taken_ML[:, depth].astype(np.int64) + 1)
    shared = np.flatnonzero(np.bincount(group, minlength=len(first))[group] > 1)
    nearness = np.zeros(len(codes_NL), np.float32)
    nearness[shared] = _code_distances(distances, shared, codes_NL[shared], depth - 1)
    digits = first[group] + _ranks_in_group(group, nearness)
    if len(digits) and (largest := int(digits.max())) >= extra_codes:
        codes = tuple(codes_NL[int(digits.argmax())].tolist())
        raise ValueError(
            f"{largest + 1} items share the codes {codes}, but the extra digit has {extra_codes} values; raise "
            "semantic_ids.extra_codes, use more levels or codes, or semantic_ids.collisions=reallocate (each needs "
            "semantic_ids.refit=true if ids exist already)"
        )
    return np.column_stack([codes_NL, digits]).astype(np.int32)


def reallocate(codes_NL: Codes, sizes: tuple[int, ...], distances: Distances, taken_ML: Codes) -> Codes:
    """Move colliding items to the nearest free codes, after MQL4GRec (Zhai et al. 2025).

    Returns (N, L) codes, no two rows equal and none in ``taken_ML``; ``sizes`` must have room for all.

    1. Of the items with equal codes the one nearest its last-level code keeps them (ties: the first row), unless they
       are taken. All others move, ordered by that distance, then by row.
    2. In this order every mover takes the nearest free last-level code below its own prefix. (In MQL4GRec the i-th
       item starts at the i-th nearest code; starting at the nearest is never farther.)
    3. Below a full prefix, the mover takes the nearest code of the level before that has room below it, or of the
       level before that, with distances computed anew (MQL4GRec reuses the old ones); then 2 again.
    4. This repeats until all have moved: MQL4GRec stops after two rounds and may leave collisions.
    """
    joint = row_groups(np.concatenate([codes_NL, taken_ML]))
    group, taken_group = joint[: len(codes_NL)], joint[len(codes_NL) :]
    rows = np.flatnonzero(np.bincount(joint)[group] > 1)
    nearness = _code_distances(distances, rows, codes_NL[rows], codes_NL.shape[1] - 1)
    moves = (_ranks_in_group(group[rows], nearness) > 0) | np.isin(group[rows], taken_group)
    codes, movers = codes_NL.copy(), rows[moves][np.argsort(nearness[moves], kind="stable")]
    used = np.concatenate([taken_ML, np.delete(codes, movers, axis=0)])
    while len(movers):
        assigned = _assign_free_codes(movers, codes, used, sizes[-1], distances)
        used, movers = np.concatenate([used, codes[movers[assigned]]]), movers[~assigned]
        _assign_open_prefixes(movers, codes, used, sizes, distances)
    return codes


def _assign_free_codes(rows: Rows, codes: Codes, used: Codes, size: int, distances: Distances) -> NDArray[np.bool_]:
    """Set ``codes`` of ``rows``, in order, to the nearest free last-level code; return the mask of rows that got one.

    Prefixes are independent: the n-th row of every prefix chooses in round n.
    """
    last = codes.shape[1] - 1
    assigned = np.zeros(len(rows), bool)
    for block in _group_blocks(row_groups(codes[rows, :last]), size):
        prefix, counts = _count_children(codes[rows[block], :last], used, size)
        free, rank = counts == 0, _ranks_in_group(prefix)
        fits = rank < free.sum(1)[prefix]
        assigned[block[fits]] = True
        movers, prefix, rank = rows[block[fits]], prefix[fits], rank[fits]
        costs = distances(movers, codes[movers], last)
        order = np.argsort(rank, kind="stable")
        for turn in np.split(order, np.flatnonzero(np.diff(rank[order])) + 1):
            choice = np.where(free[prefix[turn]], costs[turn], np.inf).argmin(1)
            codes[movers[turn], last] = choice
            free[prefix[turn], choice] = False
    return assigned


def _assign_open_prefixes(rows: Rows, codes: Codes, used: Codes, sizes: tuple[int, ...], distances: Distances) -> None:
    """Move ``rows``, whose prefixes are full, to the nearest prefix that is not, changing as few levels as possible."""
    last = len(sizes) - 1
    for first in range(last - 1, -1, -1):
        if not len(rows):
            return
        prefix, counts = _count_children(codes[rows, :first], used, sizes[first])
        fits = counts.min(1)[prefix] < math.prod(sizes[first + 1 :])
        movers, rows = rows[fits], rows[~fits]
        for level in range(first, last):
            prefix, counts = _count_children(codes[movers, :level], used, sizes[level])
            full = counts >= math.prod(sizes[level + 1 :])
            for block in _group_blocks(prefix, sizes[level]):
                costs = distances(movers[block], codes[movers[block]], level)
                codes[movers[block], level] = np.where(full[prefix[block]], np.inf, costs).argmin(1)
    assert not len(rows), f"no room for {len(rows)} items"


def _balance(codes_NL: Codes, sizes: tuple[int, ...], distances: Distances, taken_ML: Codes) -> tuple[Codes, int]:
    """Reassign colliding items at the last level by entropic transport, after LC-Rec (Zheng et al. 2024).

    Returns (N, L) codes and the number of rounds. Each round reassigns all colliding items below one prefix together,
    and every item takes its largest share. Items may still collide, but never more than before. Deviations from
    LC-Rec: codes of items that do not collide are not available (so a round makes no new collisions), and a code holds
    *at most* one item, where LC-Rec fills all codes equally and sends the items of a small group far away. Items with
    equal vectors stay together.
    """
    codes = codes_NL.copy()
    for completed in range(ROUNDS):
        rows = np.flatnonzero(colliding(codes, taken_ML))
        before, used = codes[rows], np.concatenate([taken_ML, np.delete(codes, rows, axis=0)])
        for block in _group_blocks(row_groups(before[:, :-1]), sizes[-1]):
            prefix, counts = _count_children(before[block, :-1], used, sizes[-1])
            free = counts == 0
            movable = free.any(1)[prefix]
            part, prefix = block[movable], prefix[movable]
            if len(part):
                costs = distances(rows[part], before[part], len(sizes) - 1)
                codes[rows[part], -1] = transport(costs, free[prefix], prefix).argmax(1)
        if (codes[rows] == before).all():
            return codes, completed
    return codes, ROUNDS


def transport(
    costs_MV: Vectors, free_MV: NDArray[np.bool_], group_M: Rows, *, sweeps: int = SWEEPS
) -> NDArray[np.float64]:
    """Return shares (M, V) of the codes for the items of each group (sorted group numbers).

    Rows sum to 1 and, after enough sweeps, columns of a group to at most 1: Sinkhorn with the column condition as an
    inequality. Columns keep their dual prices from one epsilon to the next, so that few sweeps suffice.
    """
    first = np.unique(_run_starts(group_M))
    group = np.searchsorted(first, np.arange(len(group_M)), "right") - 1
    costs = np.where(free_MV, costs_MV, np.inf).astype(np.float64)
    costs -= costs.min(1, keepdims=True)
    spread = np.where(np.isfinite(costs), costs, 0).max(1)
    spread = np.maximum(np.maximum.reduceat(spread, first), 1e-30)[group, None]
    columns = np.ones((len(first), costs.shape[1]))
    for previous, epsilon in zip((EPSILONS[0], *EPSILONS), EPSILONS, strict=False):
        kernel = np.exp(-costs / (epsilon * spread))
        columns = np.maximum(columns ** (previous / epsilon), TINY)
        for _ in range(sweeps):
            rows = 1 / np.maximum((kernel * columns[group]).sum(1), TINY)
            columns = 1 / np.maximum(np.add.reduceat(kernel * rows[:, None], first, 0), 1)
    shares = kernel * columns[group]
    return shares / np.maximum(shares.sum(1, keepdims=True), TINY)


def _ranks_in_group(group_N: Rows, *keys: NDArray[np.generic]) -> Rows:
    """(N,) rank of every row within its group, by ``keys`` (first key first), then by row number."""
    order = np.lexsort((*reversed(keys), group_N))
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order)) - _run_starts(group_N[order])
    return ranks


def _run_starts(sorted_N: Rows) -> Rows:
    """(N,) position at which each row's run of equal numbers starts."""
    is_first = np.ones(len(sorted_N), bool)
    is_first[1:] = sorted_N[1:] != sorted_N[:-1]
    return np.flatnonzero(is_first)[np.cumsum(is_first) - 1]


def _count_children(prefixes_NL: Codes, used_MK: Codes, size: int) -> tuple[Rows, Rows]:
    """(N,) number p of each row's prefix, and (P, size) rows of ``used_MK`` below each child of p. K is above L."""
    depth = prefixes_NL.shape[1]
    joint = row_groups(np.concatenate([prefixes_NL, used_MK[:, :depth]]))
    groups, prefix = np.unique(joint[: len(prefixes_NL)], return_inverse=True)
    number = np.full(int(joint.max(initial=-1)) + 1, -1, np.int64)
    number[groups] = np.arange(len(groups))
    parent = number[joint[len(prefixes_NL) :]]
    below = parent >= 0
    child = parent[below] * size + used_MK[below, depth]
    counts = np.bincount(child, minlength=len(groups) * size).reshape(len(groups), size)
    return prefix.astype(np.int64), counts


def _group_blocks(group_N: Rows, width: int) -> Iterator[Rows]:
    """Split row positions into blocks of about ``BLOCK_SIZE / width`` rows that never split a group."""
    order = np.argsort(group_N, kind="stable")
    block = _run_starts(group_N[order]) // max(1, BLOCK_SIZE // width)
    yield from np.split(order, np.flatnonzero(np.diff(block)) + 1) if len(order) else ()


def _code_distances(distances: Distances, rows: Rows, codes_NL: Codes, level: int) -> Vectors:
    """(N,) distance of the items ``rows`` to their code at ``level``."""
    parts = [np.zeros(0, np.float32)]
    for start in range(0, len(rows), step := 8192):
        part = codes_NL[start : start + step]
        parts.append(distances(rows[start : start + step], part, level)[np.arange(len(part)), part[:, level]])
    return np.concatenate(parts)
