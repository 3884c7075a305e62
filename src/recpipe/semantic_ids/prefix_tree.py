"""Prefix tree of a catalogue's semantic ids: flat arrays on disk, and tensors for decoding and the softmax of children.

Shape letters: N items, M prefixes looked up, L levels, V codes per level, E edges (nodes of the next depth), P nodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.semantic_ids.collisions import check_codes

Ints = NDArray[np.int64]
METADATA = "recpipe.prefix_tree"
COMMAND = "kedro run --pipelines=semantic_ids"
NARROW = 16  # children per node up to which gathering them is faster than a mask over all codes
MASK_SIZE = 1 << 25  # entries of 4 bytes


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """Prefix tree of semantic ids: children of all nodes in CSR layout, per depth.

    The root is node 0 of depth 0; edge e of level l leads to **node e of depth l + 1**. Nodes of a depth are in
    lexicographic order of their prefixes, so one gather reads the children of the nodes of a beam (B, K), -1 where the
    beam is dead::

        start, end = offsets[l][nodes.clamp(0)], offsets[l][nodes.clamp(0) + 1]
        edges = start[..., None] + arange(max_children[l])                 # (B, K, W): nodes of depth l + 1
        live = (edges < end[..., None]) & (nodes >= 0)[..., None]
        codes = children[l][edges.clamp(max=len(children[l]) - 1)]         # (B, K, W): valid where live

    A node n of depth L is a leaf with the items ``leaves[leaf_offsets[n]:leaf_offsets[n + 1]]``, one if ids are unique.

    Examples:
        >>> tree = PrefixTree.build(np.array([[0, 1], [1, 0], [0, 0]]), sizes=(2, 2))
        >>> tree.depth, tree.n_items, tree.prefixes(1)
        (2, 3, 2)
        >>> tree.find(np.array([[0, 1], [1, 1]]))
        array([ 0, -1])
    """

    offsets: tuple[Ints, ...]  # (L) of (P_l + 1,): the edges of each node of depth l
    children: tuple[NDArray[np.int32], ...]  # (L) of (E_l,): codes, ascending within a node
    leaves: Ints  # (N,) rows of the catalogue in the order of their codes
    leaf_offsets: Ints  # (E_{L-1} + 1,)
    sizes: tuple[int, ...]  # (L,) codes per level
    source: str = ""  # hash of the SemanticIds it was built from
    _tensors: dict[str, TreeTensors] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def build(
        cls, codes_NL: NDArray[np.integer], sizes: Sequence[int], *, source: str = "", shared: bool = False
    ) -> PrefixTree:
        """Build a tree from ``codes_NL`` (N, L).

        Raises ValueError for codes out of range, without items and, unless ``shared``, for equal ids.
        """
        sizes = tuple(int(size) for size in sizes)
        check_codes(codes_NL, sizes)
        if not len(codes_NL) or not sizes:
            raise ValueError(f"no item has codes; run `{COMMAND}` on items with content")
        order = _sorted_rows(codes_NL, sizes)
        codes_NL = codes_NL[order]
        is_new = np.arange(len(order)) == 0  # whether a row's prefix differs from that of the row before
        starts, offsets, children = np.array([0, len(order)]), [], []
        for level in range(len(sizes)):
            is_new[1:] |= codes_NL[1:, level] != codes_NL[:-1, level]
            rows = np.flatnonzero(is_new)
            offsets.append(np.searchsorted(rows, starts).astype(np.int64))
            children.append(codes_NL[rows, level].astype(np.int32))
            starts = np.append(rows, len(order))
        if not shared and len(starts) <= len(order):
            equal = ~is_new
            equal[:-1] |= ~is_new[1:]
            rows, first = order[equal], tuple(codes_NL[np.argmax(equal)].tolist())
            names = ", ".join(map(str, rows[:8].tolist())) + (", …" if len(rows) > 8 else "")
            raise ValueError(
                f"{len(rows)} rows share their codes with another ({names}; the first have {first}): set "
                "semantic_ids.collisions to extra_digit or reallocate, or build with shared=True"
            )
        return cls(tuple(offsets), tuple(children), order, starts.astype(np.int64), sizes, source)

    @property
    def depth(self) -> int:
        """Number of levels of a full id (L)."""
        return len(self.sizes)

    @property
    def n_items(self) -> int:
        """Number of items (N), also where some share an id."""
        return len(self.leaves)

    @cached_property
    def max_children(self) -> tuple[int, ...]:
        """Largest number of children of a node of each depth (L,)."""
        return tuple(int(np.diff(offsets).max()) for offsets in self.offsets)

    @property
    def hash(self) -> str:
        """Hex digest of arrays, sizes and source."""
        digest = hashlib.sha256(json.dumps([self.sizes, self.source]).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def spans(self) -> tuple[Ints, ...]:
        """Bounds of the items below each node, L + 1 arrays (P_d + 1,).

        Below node n of depth d are the items ``leaves[spans[d][n]:spans[d][n + 1]]``.
        """
        spans = accumulate(reversed(self.offsets), lambda below, offsets: below[offsets], initial=self.leaf_offsets)
        return tuple(spans)[::-1]

    def prefixes(self, depth: int) -> int:
        """Count distinct prefixes of ``depth`` codes. Raises ValueError for a depth above L."""
        if not 0 <= depth <= self.depth:
            raise ValueError(f"depth is {depth}; ids of this tree have 0 to {self.depth} codes")
        return len(self.children[depth - 1]) if depth else 1

    def nodes(self, codes_Md: NDArray[np.integer]) -> Ints:
        """Return the node (M,) of depth d of each prefix of d codes, -1 for prefixes that do not exist.

        Raises ValueError for prefixes of another shape than (M, 0 to L).
        """
        if codes_Md.ndim != 2 or codes_Md.shape[1] > self.depth:
            raise ValueError(f"prefixes are (M, 0 to {self.depth}) codes, got {codes_Md.shape}")
        nodes = np.zeros(len(codes_Md), np.int64)
        for level in range(codes_Md.shape[1]):
            nodes = self._follow(level, nodes, codes_Md[:, level])
        return nodes

    def find(self, codes_ML: NDArray[np.integer]) -> Ints:
        """Return the row (M,) of the item with these codes, the first one where items share them, -1 for unknown ids.

        Raises ValueError for codes of another shape than (M, L).
        """
        if codes_ML.ndim != 2 or codes_ML.shape[1] != self.depth:
            raise ValueError(f"ids of this tree have {self.depth} codes, got {codes_ML.shape}")
        nodes = self.nodes(codes_ML)
        return np.where(nodes >= 0, self.leaves[self.leaf_offsets[nodes.clip(0)]], -1)

    def tensors(self, device: str | torch.device = "cpu") -> TreeTensors:
        """Return the arrays as int64 tensors on a device, cached per device."""
        if (key := str(device)) not in self._tensors:
            tensor = partial(torch.tensor, dtype=torch.int64, device=device)
            levels = (self.offsets, self.children, self.spans)
            offsets, children, spans = (tuple(map(tensor, arrays)) for arrays in levels)
            constants = (self.max_children, self.sizes, self.n_items)
            self._tensors[key] = TreeTensors(offsets, children, spans, tensor(self.leaves), *constants)
        return self._tensors[key]

    def check_source(self, source: str) -> None:
        """Raise ValueError if the tree was built from other ids than those with this hash."""
        if self.source != source:
            raise ValueError(
                f"the prefix tree was built from the ids {self.source[:12] or 'of unknown origin'}, "
                f"the ids at hand are {source[:12]}; run `{COMMAND}`"
            )

    def write(self, path: Path) -> None:
        """Write one safetensors file with sizes, source and hash as JSON in its metadata."""
        from safetensors.numpy import save_file

        header = {"format": 1, "sizes": self.sizes, "source": self.source, "hash": self.hash}
        with atomic_file(path) as temporary:
            save_file(self._arrays(), temporary, {METADATA: json.dumps(header)})

    @classmethod
    def read(cls, path: Path) -> PrefixTree:
        """Read a file of ``write``. Raises ValueError for a missing, damaged or foreign file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(verified(path), "numpy") as file:
                header = json.loads((file.metadata() or {})[METADATA])
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header["format"] != 1:
                raise ValueError(f"its format is {header['format']!r}, this version reads 1")
            sizes = tuple(header["sizes"])
            offsets, children = (
                tuple(arrays[f"{name}.{level}"] for level in range(len(sizes))) for name in ("offsets", "children")
            )
            tree = cls(offsets, children, arrays["leaves"], arrays["leaf_offsets"], sizes, header["source"])
            if tree.hash != header["hash"]:
                raise ValueError("its hash differs from that of the written tree")
            tree._check_structure()
            return tree
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a complete prefix tree ({error}); run `{COMMAND}`") from error

    def _check_structure(self) -> None:
        """Raise ValueError for arrays that are no tree, whatever hash the file has."""
        nodes, leaves = 1, self.leaves
        edges = [len(codes) for codes in self.children] + [len(leaves)]
        for level, offsets in enumerate((*self.offsets, self.leaf_offsets)):
            steps = np.diff(offsets) if offsets.dtype == np.int64 and offsets.shape == (nodes + 1,) else np.zeros(1)
            if not (steps > 0).all() or offsets[0] != 0 or offsets[-1] != edges[level]:
                raise ValueError(f"offsets of level {level + 1} do not fit {nodes} nodes and {edges[level]} edges")
            nodes = edges[level]
        for level, (offsets, codes) in enumerate(zip(self.offsets, self.children, strict=True)):
            ascending = codes[1:] > codes[:-1]
            ascending[offsets[1:-1] - 1] = True  # the first code of a node
            if codes.dtype != np.int32 or codes.min() < 0 or codes.max() >= self.sizes[level] or not ascending.all():
                raise ValueError(f"codes of level {level + 1} are out of range or order")
        if leaves.dtype != np.int64 or not np.array_equal(np.sort(leaves), np.arange(len(leaves))):
            raise ValueError("the leaves are not all items of the catalogue, each once")

    def _arrays(self) -> dict[str, NDArray[Any]]:
        offsets = {f"offsets.{level}": array for level, array in enumerate(self.offsets)}
        children = {f"children.{level}": array for level, array in enumerate(self.children)}
        return {**offsets, **children, "leaves": self.leaves, "leaf_offsets": self.leaf_offsets}

    def _follow(self, level: int, nodes: Ints, codes: NDArray[np.integer]) -> Ints:
        """Child of each node by code, -1 where there is none: one binary search for all."""
        offsets, children = self.offsets[level], self.children[level]
        low, high = offsets[nodes.clip(0)], offsets[nodes.clip(0) + 1]
        end = high
        for _ in range(self.max_children[level].bit_length()):
            middle = (low + high) // 2
            right = (low < high) & (children[middle.clip(max=len(children) - 1)] < codes)
            low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
        exists = (nodes >= 0) & (low < end) & (children[low.clip(max=len(children) - 1)] == codes)
        return np.where(exists, low, -1)


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
        """Number of levels of a full id (L)."""
        return len(self.sizes)

    @cached_property
    def parents(self) -> tuple[Tensor, ...]:
        """Parent of each node of depth l + 1, L tensors (P_{l+1},)."""
        return tuple(
            torch.arange(len(offsets) - 1, device=offsets.device).repeat_interleave(offsets.diff())
            for offsets in self.offsets
        )

    @cached_property
    def leaf_positions(self) -> Tensor:
        """Position (n_items,) of each item in ``leaves``, -1 for items outside the tree."""
        positions = torch.full((self.n_items,), -1, device=self.leaves.device)
        positions[self.leaves] = torch.arange(len(self.leaves), device=self.leaves.device)
        return positions

    @cached_property
    def used_codes(self) -> tuple[Tensor, ...]:
        """Codes that occur at each level, ascending, L tensors (U_l,)."""
        return tuple(children.unique() for children in self.children)

    def codes(self, nodes: Tensor, depth: int | None = None) -> Tensor:
        """Return prefixes (..., d) of ``nodes`` (...) of depth d; the default depth L gives full ids."""
        codes = []
        for level in reversed(range(self.depth if depth is None else depth)):
            codes.append(self.children[level][nodes])
            nodes = self.parents[level][nodes]
        return torch.stack(codes[::-1], -1)

    def prefixes(self, depth: int) -> Tensor:
        """Return prefixes (P_d, d) of all nodes of a depth of at least 1, cached."""
        if depth not in self._prefixes:
            nodes = torch.arange(len(self.children[depth - 1]), device=self.leaves.device)
            self._prefixes[depth] = self.codes(nodes, depth)
        return self._prefixes[depth]

    def child_mask(self, level: int, *, wide_only: bool = False) -> Tensor | None:
        """Return an additive mask (P_l, V) float32, 0 for codes that may follow a node and -inf elsewhere, cached.

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
        """Return the child (...) of each node (...) by code (...); an arbitrary node where the code is no child."""
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
    """Return whether any of a node's edges (..., E) is ``live``, bool (..., P)."""
    count = F.pad(live.cumsum(-1, dtype=torch.int32), (1, 0))
    return count[..., offsets[1:]] > count[..., offsets[:-1]]


def _sorted_rows(codes_NL: NDArray[np.integer], sizes: tuple[int, ...]) -> Ints:
    """Rows in lexicographic order of their codes; equal ones in the order of the catalogue."""
    products = [*accumulate(reversed(sizes), lambda product, size: product * size, initial=1)]
    if products[-1] > np.iinfo(np.int64).max:
        return np.lexsort(codes_NL.T[::-1]).astype(np.int64)
    weights = np.array(products[-2::-1], np.int64)
    return np.argsort(codes_NL.astype(np.int64) @ weights, kind="stable").astype(np.int64)


def _live_nodes(offsets: Tensor, live: Tensor, *, root: bool = False) -> tuple[Tensor, Tensor]:
    """Offsets over the live edges, of nodes that have any; and the mask of these nodes."""
    count = F.pad(live.cumsum(0), (1, 0))
    start = count[offsets]
    nodes = start[1:] > start[:-1] if not root else torch.ones(1, dtype=torch.bool, device=live.device)
    return torch.cat([start[:-1][nodes], count[-1:]]), nodes
