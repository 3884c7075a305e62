"""Which rows of a table of codes share a prefix, and who comes first among them: sorting, no loop over items.

Shape letters: N items, M other items, L levels, P groups, V codes per level.

Reallocation of colliding items to the nearest free codes, after MQL4GRec (Zhai et al. 2025).

MQL4GRec sorts the items of a colliding group by distance to their last code: the nearest keeps it, the others take
the next nearest last-level codes until one is free (at most 256 tries), and if none is, change the level before.
What it leaves open or we do otherwise is written at ``reallocate``.

Balanced re-assignment of colliding items at the last level, after LC-Rec (Zheng et al. 2024).

Items that the quantizer gave the same codes: four policies to tell them apart, or to leave them and say so.

Every policy works beside ``taken`` codes that were given earlier and never change. Shape letters: N items,
M items that have their codes already, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.config import check_known

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


POLICIES = ("extra_digit", "reallocate", "sinkhorn", "keep")
UNIQUE = ("extra_digit", "reallocate")  # policies after which no two items share an id


@dataclass(frozen=True)
class Resolved:
    """``codes`` (N, L) or, after extra_digit, (N, L + 1); ``about`` counts what was done."""

    codes: Codes
    sizes: tuple[int, ...]
    about: dict[str, Any] = field(default_factory=dict)


def resolve(
    policy: str,
    codes_NL: Codes,
    sizes: tuple[int, ...],
    distances: Distances,
    *,
    extra_codes: int = 256,
    taken: Codes | None = None,
) -> Resolved:
    """Resolves the collisions of ``codes_NL`` among each other and with ``taken`` (M, levels of the result).

    Raises ValueError for an unknown policy and where the ids cannot hold the items.
    """
    check_policy(policy)
    final = (*sizes, extra_codes) if policy == "extra_digit" else tuple(sizes)
    taken = np.zeros((0, len(final)), np.int32) if taken is None else taken
    sharing = int(colliding(codes_NL, taken[:, : len(sizes)]).sum())
    steps: dict[str, Any] = {}
    if policy == "extra_digit":
        codes = extra_digit(codes_NL, distances, taken, extra_codes)
    elif policy == "reallocate":
        _check_room(len(codes_NL) + len(taken), final)
        codes = reallocate(codes_NL, final, distances, taken)
    elif policy == "sinkhorn":
        codes, steps["rounds"] = balance(codes_NL, final, distances, taken)
    else:
        codes = codes_NL.copy()
    left = int(colliding(codes, taken).sum())
    assert not left or policy not in UNIQUE, f"{left} items share an id after {policy}"
    moved = int((codes[:, : len(sizes)] != codes_NL).any(1).sum())
    return Resolved(codes, final, {"colliding": sharing, "moved": moved, "left": left, **steps})


def check_policy(policy: str) -> None:
    """ValueError with the nearest spelling for a policy that does not exist."""
    check_known(policy, POLICIES, what="policy for collisions")


def extra_digit(codes_NL: Codes, distances: Distances, taken_ML: Codes, extra_codes: int) -> Codes:
    """TIGER (Rajput et al. 2023, §3.1) appends a digit that tells apart the items with the same codes.

    Here digit 0 goes to the item nearest its code at the last level, then outwards, ties by row; TIGER leaves the
    order open. Where items of ``taken_ML`` (M, L + 1) have the same codes, counting goes on after their digits.
    """
    depth = codes_NL.shape[1]
    ids = groups(np.concatenate([codes_NL, taken_ML[:, :depth]]))
    own, earlier = ids[: len(codes_NL)], ids[len(codes_NL) :]
    first = np.zeros(int(ids.max(initial=-1)) + 1, np.int64)
    np.maximum.at(first, earlier, taken_ML[:, depth].astype(np.int64) + 1)
    contested = np.flatnonzero(np.bincount(own, minlength=len(first))[own] > 1)
    nearness = np.zeros(len(codes_NL), np.float32)
    nearness[contested] = own_distances(distances, contested, codes_NL[contested], depth - 1)
    digits = first[own] + ranks(own, nearness)
    _check_digits(digits, codes_NL, extra_codes)
    return np.column_stack([codes_NL, digits]).astype(np.int32)


def _check_digits(digits: np.ndarray, codes_NL: Codes, extra_codes: int) -> None:
    if len(digits) and (largest := int(digits.max())) >= extra_codes:
        codes = tuple(codes_NL[int(digits.argmax())].tolist())
        raise ValueError(
            f"{largest + 1} items share the codes {codes}, but the extra digit has {extra_codes} values; raise "
            "semantic_ids.extra_codes, use more levels or codes, or semantic_ids.collisions=reallocate (each needs "
            "semantic_ids.refit=true if ids were given already)"
        )


def _check_room(items: int, sizes: tuple[int, ...]) -> None:
    if items > (room := math.prod(sizes)):
        raise ValueError(
            f"{items} items do not fit into {room} ids ({'x'.join(map(str, sizes))}); use more levels or codes"
        )
