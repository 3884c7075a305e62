"""Prefix tree as tensors on a device, for decoding and the softmax over children.

Shape letters: N items of the tree, L levels, V codes per level, E edges, P nodes of a depth.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

NARROW = 16  # children per node up to which gathering them is faster than a mask over all codes
MASK_SIZE = 1 << 25  # entries of 4 bytes


@dataclass(frozen=True, eq=False)
class TreeTensors:
    """Arrays of a ``PrefixTree`` as int64 tensors, with the same names and meanings.

    After ``restrict`` there are fewer leaves than ``n_items``.
    """

    offsets: tuple[Tensor, ...]
    children: tuple[Tensor, ...]
    spans: tuple[Tensor, ...]  # the last one is leaf_offsets
    leaves: Tensor
    max_children: tuple[int, ...]
    sizes: tuple[int, ...]
    n_items: int  # of the whole catalogue
    _prefixes: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)
    _child_masks: dict[int, Tensor | None] = field(default_factory=dict, init=False, repr=False)

    @property
    def depth(self) -> int:
        """Number of levels L of a full id."""
        return len(self.sizes)

    @cached_property
    def parents(self) -> tuple[Tensor, ...]:
        """(L) of (P_{l+1},): parent of each node of depth l + 1."""
        return tuple(
            torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
            for offsets in self.offsets
        )

    @cached_property
    def leaf_positions(self) -> Tensor:
        """(n_items,) position of each item in ``leaves``, -1 for items outside the tree."""
        positions = torch.full((self.n_items,), -1, device=self.leaves.device)
        positions[self.leaves] = torch.arange(len(self.leaves), device=self.leaves.device)
        return positions

    @cached_property
    def used_codes(self) -> tuple[Tensor, ...]:
        """(L) of (U_l,): codes that occur at each level, ascending."""
        return tuple(children.unique() for children in self.children)

    def codes(self, nodes: Tensor, depth: int | None = None) -> Tensor:
        """(..., d) prefixes of ``nodes`` (...) of depth d; the default depth L gives full ids."""
        codes = []
        for level in reversed(range(self.depth if depth is None else depth)):
            codes.append(self.children[level][nodes])
            nodes = self.parents[level][nodes]
        return torch.stack(codes[::-1], -1)

    def prefixes(self, depth: int) -> Tensor:
        """(P_d, d) prefixes of all nodes of a depth of at least 1, cached."""
        if depth not in self._prefixes:
            nodes = torch.arange(len(self.children[depth - 1]), device=self.leaves.device)
            self._prefixes[depth] = self.codes(nodes, depth)
        return self._prefixes[depth]

    def child_mask(self, level: int, *, wide_only: bool = False) -> Tensor | None:
        """(P_l, V) float32 additive mask, 0 for codes that may follow a node and -inf elsewhere, cached.

        None where it would be too large, and with ``wide_only`` for levels whose nodes have few children.
        """
        if wide_only and self.max_children[level] <= NARROW:
            return None
        if level not in self._child_masks:
            shape, mask = (len(self.offsets[level]) - 1, self.sizes[level]), None
            if shape[0] * shape[1] <= MASK_SIZE:
                mask = torch.full(shape, -torch.inf, device=self.leaves.device)
                mask[self.parents[level], self.children[level]] = 0
            self._child_masks[level] = mask
        return self._child_masks[level]

    def follow(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """Child of each node (...) by code; an arbitrary node where the code is no child."""
        size, edges = self.sizes[level], self._edges[level]
        return torch.searchsorted(edges, nodes * size + codes).clamp_(max=len(edges) - 1)

    def restrict(self, allowed_I: Tensor) -> TreeTensors:
        """Build the tree of the items allowed by a bool mask (n_items,), such as those in stock; items keep their rows.

        Meant for a mask that many searches share. Raises ValueError for another shape or type.
        """
        if allowed_I.dtype != torch.bool or allowed_I.shape != (self.n_items,):
            raise ValueError(
                f"allowed is {allowed_I.dtype} {tuple(allowed_I.shape)}; a mask is bool ({self.n_items},), "
                "a value for every row of the catalogue"
            )
        live = allowed_I.to(self.leaves.device)[self.leaves]  # items, then nodes of every depth upwards
        leaves = self.leaves[live]
        leaf_offsets, live = _live_nodes(self.spans[-1], live)
        children, offsets, spans = [], [], [leaf_offsets]
        for level in reversed(range(self.depth)):
            children.append(self.children[level][live])
            level_offsets, live = _live_nodes(self.offsets[level], live, root=level == 0)
            offsets.append(level_offsets)
            spans.append(spans[-1][level_offsets])
        max_children = tuple(int(each.diff().max()) if len(each) > 1 else 0 for each in offsets[::-1])
        arrays = (tuple(offsets[::-1]), tuple(children[::-1]), tuple(spans[::-1]), leaves)
        return TreeTensors(*arrays, max_children, self.sizes, self.n_items)

    @cached_property
    def _edges(self) -> tuple[Tensor, ...]:
        """(L) of (E_l,): parent * V + code, ascending."""
        levels = zip(self.parents, self.sizes, self.children, strict=True)
        return tuple(parents * size + children for parents, size, children in levels)


def any_child(offsets: Tensor, live: Tensor) -> Tensor:
    """(..., P) whether any of a node's edges (..., E) is ``live``."""
    count = F.pad(live.cumsum(-1, dtype=torch.int32), (1, 0))
    return count[..., offsets[1:]] > count[..., offsets[:-1]]


def _live_nodes(offsets: Tensor, live: Tensor, *, root: bool = False) -> tuple[Tensor, Tensor]:
    """Offsets over the live edges, of nodes that have any; and the mask of these nodes."""
    count = F.pad(live.cumsum(0), (1, 0))
    start = count[offsets]
    nodes = start[1:] > start[:-1] if not root else torch.ones(1, dtype=torch.bool, device=live.device)
    return torch.cat([start[:-1][nodes], count[-1:]]), nodes
