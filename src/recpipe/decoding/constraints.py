"""What may not be returned, as nodes of the prefix tree that no beam may enter.

B users, K beams, W children of a beam, N items, L levels, P nodes of a depth, n pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recpipe.semantic_ids.tree_tensors import TreeTensors, any_child

AT_ONCE = 1 << 24  # entries that are counted at once


@dataclass(frozen=True)
class Limits:
    """The tree of what may be returned to anybody, and per level what not everybody may get."""

    tree: TreeTensors
    full: list[Full] | None = None  # (L), of depth 1 to L
    live: list[Tensor] | None = None  # (L) of (B, P_{l+1}) bool, in place of ``full``

    @classmethod
    def of(
        cls, tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor] | None, allowed: Tensor | None
    ) -> Limits:
        """``seen`` and ``allowed`` as of ``beam_search``; ValueError where they do not fit."""
        if allowed is not None and allowed.ndim == 2:
            return cls(tree, live=live_nodes(tree, users, allowed, seen))
        if allowed is not None:
            tree = tree.restrict(allowed)
        return cls(tree, full=None if seen is None else full_nodes(tree, users, seen))


class Full(NamedTuple):
    """Nodes of one depth below which a user has seen everything, as pairs."""

    users: Tensor  # (n,)
    nodes: Tensor  # (n,)


def full_nodes(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> list[Full]:
    """(L), of depth 1 to L. ``seen``: offsets (B + 1,) and rows of the catalogue (n,), -1 for what is not in it."""
    owner, place = _pairs(tree, users, seen)
    keys, size = torch.unique(owner * tree.n_items + place), tree.n_items
    owner, node, count = keys // size, keys % size, torch.ones_like(keys)
    found = [Full(owner, node)]
    for level in reversed(range(1, tree.depth)):
        node = tree.parents[level][node]
        keys, same = torch.unique_consecutive(owner * size + node, return_inverse=True)
        count = torch.zeros_like(keys).index_add_(0, same, count)
        owner, node = keys // size, keys % size
        spans = tree.spans[level]
        full = count == spans[node + 1] - spans[node]
        found.append(Full(owner[full], node[full]))
    return found[::-1]


def live_nodes(
    tree: TreeTensors, users: int, allowed_BN: Tensor, seen: tuple[Tensor, Tensor] | None
) -> list[Tensor]:
    """(L) of (B, P_{l+1}) bool, of depth 1 to L: below which nodes users have something that they may get."""
    if allowed_BN.dtype != torch.bool or allowed_BN.shape != (users, tree.n_items):
        raise ValueError(
            f"allowed is {allowed_BN.dtype} {tuple(allowed_BN.shape)}; a mask is bool ({tree.n_items},) or "
            f"({users}, {tree.n_items})"
        )
    live = allowed_BN.to(tree.leaves.device)[:, tree.leaves]
    if seen is not None:
        live[_pairs(tree, users, seen)] = False
    found = [live]
    for level in reversed(range(1, tree.depth)):
        offsets = tree.offsets[level]
        chunks = found[-1].split(max(AT_ONCE // found[-1].shape[1], 1))
        found.append(torch.cat([any_child(offsets, chunk) for chunk in chunks]))
    return found[::-1]


def _pairs(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """User and leaf of everything seen that is in the tree."""
    offsets, rows = (each.to(tree.leaves.device) for each in seen)
    if len(offsets) != users + 1 or int(offsets[-1]) != len(rows):
        raise ValueError(
            f"seen has offsets {tuple(offsets.shape)} up to {int(offsets[-1])} and {len(rows)} rows; for {users} "
            f"users it is ({users + 1},) offsets, the last of which is the number of rows"
        )
    if len(rows) and int(rows.max()) >= tree.n_items:
        raise ValueError(f"seen has row {int(rows.max())}; the catalogue has {tree.n_items}")
    owner = torch.arange(users, device=rows.device).repeat_interleave(offsets.diff())
    place = tree.leaf_positions[rows.clamp(min=0)]
    known = (rows >= 0) & (place >= 0)
    return owner[known], place[known]
