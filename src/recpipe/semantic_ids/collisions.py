"""Items that the quantizer gave the same codes: four policies to tell them apart, or to leave them and say so.

Every policy works beside ``taken`` codes that were given earlier and never change. Shape letters: N items,
M items that have their codes already, L levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recpipe.config import check_known
from recpipe.semantic_ids.balancing import balance
from recpipe.semantic_ids.grouping import Codes, Distances, colliding, groups, own_distances, ranks
from recpipe.semantic_ids.reallocation import reallocate

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
