"""Constraints of a search: items that must not be returned, as nodes of the prefix tree that no beam may enter.

B users, N items, L levels, P nodes of a depth, n pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from recpipe.semantic_ids.prefix_tree import TreeTensors, any_child

MAX_COUNTS = 1 << 24  # entries that are counted at once


class FullPrefixes(NamedTuple):
    """Nodes of one depth below which a user has no candidate left, as pairs."""

    users: Tensor  # (n,)
    nodes: Tensor  # (n,)


@dataclass(frozen=True)
class Constraints:
    """The tree of the items that any user may get, and per level the nodes that some users may not enter."""

    tree: TreeTensors
    full: list[FullPrefixes] | None = None  # (L), of depth 1 to L
    live: list[Tensor] | None = None  # (L) of (B, P_{l+1}) bool, instead of ``full``

    @classmethod
    def of(
        cls, tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor] | None, allowed: Tensor | None
    ) -> Constraints:
        """``seen`` and ``allowed`` as in ``beam_search``. Raises ValueError where they do not fit the tree."""
        if allowed is not None and allowed.ndim == 2:
            return cls(tree, live=live_nodes(tree, users, allowed, seen))
        if allowed is not None:
            tree = tree.restrict(allowed)
        return cls(tree, full=None if seen is None else full_prefixes(tree, users, seen))

    def is_free(self, level: int, users: Tensor, nodes: Tensor) -> Tensor:
        """(n,) bool: whether each user may enter a node of depth ``level`` + 1."""
        if self.live is not None:
            return self.live[level][users, nodes]
        if self.full is None:
            return torch.ones_like(users, dtype=torch.bool)
        full, size = self.full[level], len(self.tree.children[level])
        return ~torch.isin(users * size + nodes, full.users * size + full.nodes)


def full_prefixes(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> list[FullPrefixes]:
    """(L), of depth 1 to L. ``seen``: offsets (B + 1,) and rows of the catalogue (n,), -1 for items outside it."""
    owner, place = _seen_leaves(tree, users, seen)
    keys, size = torch.unique(owner * tree.n_items + place), tree.n_items
    owner, node, count = keys // size, keys % size, torch.ones_like(keys)
    by_depth = [FullPrefixes(owner, node)]
    for level in reversed(range(1, tree.depth)):
        node = tree.parents[level][node]
        keys, inverse = torch.unique_consecutive(owner * size + node, return_inverse=True)
        count = torch.zeros_like(keys).index_add_(0, inverse, count)
        owner, node = keys // size, keys % size
        spans = tree.spans[level]
        full = count == spans[node + 1] - spans[node]
        by_depth.append(FullPrefixes(owner[full], node[full]))
    return by_depth[::-1]


def live_nodes(tree: TreeTensors, users: int, allowed_BN: Tensor, seen: tuple[Tensor, Tensor] | None) -> list[Tensor]:
    """(L) of (B, P_{l+1}) bool, of depth 1 to L: the nodes below which users have a candidate."""
    if allowed_BN.dtype != torch.bool or allowed_BN.shape != (users, tree.n_items):
        raise ValueError(
            f"allowed is {allowed_BN.dtype} {tuple(allowed_BN.shape)}; a mask is bool ({tree.n_items},) or "
            f"({users}, {tree.n_items})"
        )
    live = allowed_BN.to(tree.leaves.device)[:, tree.leaves]
    if seen is not None:
        live[_seen_leaves(tree, users, seen)] = False
    by_depth = [live]
    for level in reversed(range(1, tree.depth)):
        offsets = tree.offsets[level]
        chunks = by_depth[-1].split(max(MAX_COUNTS // by_depth[-1].shape[1], 1))
        by_depth.append(torch.cat([any_child(offsets, chunk) for chunk in chunks]))
    return by_depth[::-1]


def _seen_leaves(tree: TreeTensors, users: int, seen: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """User and leaf of every seen item that is in the tree."""
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
    in_tree = (rows >= 0) & (place >= 0)
    return owner[in_tree], place[in_tree]
