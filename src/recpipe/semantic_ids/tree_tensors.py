"""The prefix tree on a device, for decoding. Letters as in prefix_tree.py; B users."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

NARROW = 16  # children: up to that many a window of them is faster than a table of all codes
TABLE_SIZE = 1 << 25  # entries of 4 bytes


@dataclass(frozen=True, eq=False)
class TreeTensors:
    """The arrays of a `PrefixTree` as int64 tensors, under the names and with the meaning they have there.

    ``restricted`` leaves items out, so there may be fewer leaves than ``rows``.
    """

    offsets: tuple[Tensor, ...]
    children: tuple[Tensor, ...]
    spans: tuple[Tensor, ...]  # the last one is leaf_offsets
    leaves: Tensor
    widest: tuple[int, ...]
    sizes: tuple[int, ...]
    rows: int  # of the catalogue

    @property
    def depth(self) -> int:
        """Levels L of a full id."""
        return len(self.sizes)

    @cached_property
    def parents(self) -> tuple[Tensor, ...]:
        """(L) of (P_{l+1},): the node of depth l that each node of depth l + 1 is a child of."""
        owners = [torch.arange(len(offsets) - 1, device=offsets.device) for offsets in self.offsets]
        return tuple(
            owner.repeat_interleave(offsets.diff())
            for owner, offsets in zip(owners, self.offsets, strict=True)
        )

    @cached_property
    def places(self) -> Tensor:
        """(N,) where in ``leaves`` each row of the catalogue is, -1 where it is left out."""
        places = torch.full((self.rows,), -1, device=self.leaves.device)
        places[self.leaves] = torch.arange(len(self.leaves), device=self.leaves.device)
        return places

    def codes(self, nodes: Tensor, depth: int | None = None) -> Tensor:
        """(..., d) the prefixes of ``nodes`` (...) of a depth d, by default L: whole ids."""
        codes = []
        for level in reversed(range(self.depth if depth is None else depth)):
            codes.append(self.children[level][nodes])
            nodes = self.parents[level][nodes]
        return torch.stack(codes[::-1], -1)

    def prefixes(self, depth: int) -> Tensor:
        """(P_d, d) those of all nodes of a depth of 1 or more."""
        if depth not in self._prefixes:
            nodes = torch.arange(len(self.children[depth - 1]), device=self.leaves.device)
            self._prefixes[depth] = self.codes(nodes, depth)
        return self._prefixes[depth]

    @cached_property
    def _prefixes(self) -> dict[int, Tensor]:
        return {}

    def restricted(self, allowed_N: Tensor) -> TreeTensors:
        """The tree of the items that a mask (N,) bool allows, with the rows they have in the whole catalogue.

        For a mask that many searches share (what is in stock, of a region): make it once and search that.
        """
        if allowed_N.dtype != torch.bool or allowed_N.shape != (self.rows,):
            raise ValueError(
                f"allowed is {allowed_N.dtype} {tuple(allowed_N.shape)}; a mask is bool ({self.rows},), "
                "a value for every row of the catalogue"
            )
        live = allowed_N.to(self.leaves.device)[self.leaves]  # items, then nodes of every depth upwards
        leaves, children, offsets = self.leaves[live], [], []
        kept, live = _kept(self.spans[-1], live)
        spans = [kept]
        for level in reversed(range(self.depth)):
            children.append(self.children[level][live])
            kept, live = _kept(self.offsets[level], live, root=level == 0)
            offsets.append(kept)
            spans.append(spans[-1][kept])
        widest = tuple(int(each.diff().max()) if len(each) > 1 else 0 for each in offsets[::-1])
        return TreeTensors(
            tuple(offsets[::-1]),
            tuple(children[::-1]),
            tuple(spans[::-1]),
            leaves,
            widest,
            self.sizes,
            self.rows,
        )

    @cached_property
    def used(self) -> tuple[Tensor, ...]:
        """(L) of (U_l,): the codes that occur at each level, ascending."""
        return tuple(children.unique() for children in self.children)

    def table(self, level: int) -> Tensor | None:
        """(P_l, V) float32 with 0 where a code may follow a node and -inf where it may not.

        For levels whose nodes have many children; None for the others, and where it would be too large.
        """
        return None if self.widest[level] <= NARROW else self.closed(level)

    def closed(self, level: int) -> Tensor | None:
        """The same for any level; None where it would be too large."""
        if level not in self._tables:
            self._tables[level] = self._table(level)
        return self._tables[level]

    def follow(self, level: int, nodes: Tensor, codes: Tensor) -> Tensor:
        """The nodes (...) of the next depth that ``codes`` lead to; any node where they lead nowhere."""
        size, edges = self.sizes[level], self._edges[level]
        return torch.searchsorted(edges, nodes * size + codes).clamp_(max=len(edges) - 1)

    @cached_property
    def _edges(self) -> tuple[Tensor, ...]:
        """(L) of (E_l,): parent * V + code, ascending."""
        each = zip(self.parents, self.sizes, self.children, strict=True)
        return tuple(parents * size + children for parents, size, children in each)

    @cached_property
    def _tables(self) -> dict[int, Tensor | None]:
        return {}

    def _table(self, level: int) -> Tensor | None:
        shape = (len(self.offsets[level]) - 1, self.sizes[level])
        if shape[0] * shape[1] > TABLE_SIZE:
            return None
        closed = torch.full(shape, -torch.inf, device=self.leaves.device)
        closed[self.parents[level], self.children[level]] = 0
        return closed


def below(offsets: Tensor, live: Tensor) -> Tensor:
    """(..., P) whether any of the edges (..., E) of a node is ``live``."""
    count = F.pad(live.cumsum(-1, dtype=torch.int32), (1, 0))
    return count[..., offsets[1:]] > count[..., offsets[:-1]]


def _kept(offsets: Tensor, live: Tensor, *, root: bool = False) -> tuple[Tensor, Tensor]:
    """Offsets of the nodes that have a live edge, over live edges only; and which nodes these are."""
    count = F.pad(live.cumsum(0), (1, 0))
    start = count[offsets]
    nodes = start[1:] > start[:-1] if not root else torch.ones(1, dtype=torch.bool, device=live.device)
    return torch.cat([start[:-1][nodes], count[-1:]]), nodes
