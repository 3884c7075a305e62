"""What makes arrays a prefix tree, and codes fit to build one from: each refused in words.

Shape letters as in prefix_tree.py.

The prefix tree of a catalogue as flat arrays: which codes may follow a prefix, and which item a full id is.

Shape letters: N items, M ids looked up, L levels, V codes per level, E edges (nodes of the next depth), P nodes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file

if TYPE_CHECKING:
    import torch

    from recpipe.semantic_ids.tree_tensors import TreeTensors

Ints = NDArray[np.int64]
COMMAND = "kedro run --pipelines=semantic_ids"


def check_codes(codes_NL: NDArray[np.integer], sizes: tuple[int, ...]) -> None:
    """Raises ValueError that names the rows whose codes are out of range, or what is wrong with all of them."""
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or not sizes:
        raise ValueError(
            f"codes are (items, levels), one column for each of the sizes {sizes}; got {codes_NL.shape}"
        )
    if not np.issubdtype(codes_NL.dtype, np.integer):
        raise ValueError(f"codes are whole numbers, got {codes_NL.dtype}")
    if not len(codes_NL):
        raise ValueError(f"the catalogue is empty: no item has codes; run `{COMMAND}` on items with content")
    wrong = (codes_NL < 0) | (codes_NL >= np.array(sizes))
    if wrong.any():
        rows = np.flatnonzero(wrong.any(1))
        level = int(np.argmax(wrong[rows[0]]))
        raise ValueError(
            f"codes of {len(rows)} rows are out of range ({_listed(rows)}): row {rows[0]} has "
            f"{codes_NL[rows[0], level]} at level {level + 1}, allowed 0 to {sizes[level] - 1}"
        )


def same_codes(codes_NL: NDArray[np.integer], order: Ints, fresh: NDArray[np.bool_]) -> str:
    """What to say where sorted rows repeat their codes: which rows of the catalogue ``order`` they are."""
    twin = ~fresh
    twin[:-1] |= ~fresh[1:]
    rows = order[twin]
    first = tuple(codes_NL[np.argmax(twin)].tolist())
    return (
        f"{len(rows)} rows share their codes with another ({_listed(rows)}; the first have {first}): set "
        "semantic_ids.collisions to extra_digit or reallocate, or build with shared=True"
    )


def _listed(rows: Ints) -> str:
    return ", ".join(map(str, rows[:8].tolist())) + (", …" if len(rows) > 8 else "")


def check_whole(tree: PrefixTree) -> None:
    """ValueError where the arrays are no tree: lengths that do not chain, codes out of range or order."""
    levels = len(tree.sizes)
    _demand(levels > 0 and len(tree.offsets) == len(tree.children) == levels, "levels are missing")
    nodes = 1
    for level, (offsets, children) in enumerate(zip(tree.offsets, tree.children, strict=True)):
        where = f"level {level + 1}"
        _demand(children.dtype == np.int32 and children.ndim == 1, f"the codes of {where} are not int32")
        _check_offsets(offsets, nodes, len(children), where)
        _demand(
            children.min() >= 0 and children.max() < tree.sizes[level], f"a code of {where} is out of range"
        )
        ascends = children[1:] > children[:-1]
        ascends[offsets[1:-1] - 1] = True
        _demand(bool(ascends.all()), f"the codes of {where} do not ascend")
        nodes = len(children)
    _check_offsets(tree.leaf_offsets, nodes, tree.n_items, "the leaves")
    _demand(tree.leaves.dtype == np.int64 and tree.leaves.ndim == 1, "the leaves are not int64")
    _demand(tree.leaves.min() >= 0 and tree.leaves.max() < tree.n_items, "a leaf is no row of the catalogue")
    _demand(bool((np.bincount(tree.leaves) == 1).all()), "a row of the catalogue has two leaves")


def _check_offsets(offsets: Ints, nodes: int, edges: int, where: str) -> None:
    fits = offsets.dtype == np.int64 and offsets.shape == (nodes + 1,) and edges > 0
    fits = fits and offsets[0] == 0 and offsets[-1] == edges and bool((np.diff(offsets) > 0).all())
    _demand(fits, f"the offsets of {where} do not fit its {nodes} nodes and {edges} edges")


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"this is no prefix tree: {what}")


METADATA = "recpipe.prefix_tree"


@dataclass(frozen=True, eq=False)
class PrefixTree:
    """CSR per depth. The root is node 0 of depth 0; edge e of level l leads to **node e of depth l + 1**.

    Nodes of a depth are in lexicographic order of their prefixes, so one gather yields all that may follow the
    nodes of a beam (B, K), -1 where it is dead, and where each child leads::

        start, end = offsets[l][nodes.clamp(0)], offsets[l][nodes.clamp(0) + 1]
        edges = start[..., None] + arange(widest[l])                       # (B, K, W): nodes of depth l + 1
        live = (edges < end[..., None]) & (nodes >= 0)[..., None]
        codes = children[l][edges.clamp(max=len(children[l]) - 1)]         # (B, K, W): read where live

    A node of depth L is a leaf: its items are ``leaves[leaf_offsets[n]:leaf_offsets[n + 1]]``, one if ids are unique.
    """

    offsets: tuple[Ints, ...]  # (L) of (P_l + 1,): the edges of each node of depth l
    children: tuple[NDArray[np.int32], ...]  # (L) of (E_l,): codes, ascending within a node
    leaves: Ints  # (N,) rows of the catalogue in the order of their codes
    leaf_offsets: Ints  # (E_{L-1} + 1,)
    sizes: tuple[int, ...]  # (L,) codes per level
    source: str = ""  # hash of the SemanticIds it was built from

    def __post_init__(self) -> None:
        check_whole(self)

    @classmethod
    def build(
        cls, codes_NL: NDArray[np.integer], sizes: Sequence[int], *, source: str = "", shared: bool = False
    ) -> PrefixTree:
        """Raises ValueError that names the rows with codes out of range or, unless ``shared``, with the same codes."""
        sizes = tuple(int(size) for size in sizes)
        check_codes(codes_NL, sizes)
        order = _sorted_rows(codes_NL, sizes)
        codes_NL = codes_NL[order]
        fresh = np.zeros(len(order), bool)  # whether a row's prefix differs from that of the row before
        fresh[0] = True
        begins, offsets, children = np.array([0, len(order)]), [], []
        for level in range(len(sizes)):
            fresh[1:] |= codes_NL[1:, level] != codes_NL[:-1, level]
            below = np.flatnonzero(fresh)
            offsets.append(np.searchsorted(below, begins).astype(np.int64))
            children.append(codes_NL[below, level].astype(np.int32))
            begins = np.append(below, len(order))
        if not shared and len(begins) <= len(order):
            raise ValueError(same_codes(codes_NL, order, fresh))
        return cls(tuple(offsets), tuple(children), order, begins.astype(np.int64), sizes, source)

    @property
    def depth(self) -> int:
        """Levels L of a full id."""
        return len(self.sizes)

    @property
    def n_items(self) -> int:
        """Items N, also where some share an id."""
        return len(self.leaves)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(array.nbytes for array in self._arrays().values())

    @cached_property
    def widest(self) -> tuple[int, ...]:
        """(L,) most children of any node of each depth: the width of the window in the class's docstring."""
        return tuple(int(np.diff(offsets).max()) for offsets in self.offsets)

    @property
    def hash(self) -> str:
        """Hex digest of all there is in it."""
        digest = hashlib.sha256(json.dumps([self.sizes, self.source]).encode())
        for name, array in sorted(self._arrays().items()):
            digest.update(f"{name}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def spans(self) -> tuple[Ints, ...]:
        """(L + 1) of (P_d + 1,): the items below node n of depth d are ``leaves[spans[d][n]:spans[d][n + 1]]``.

        So a user's seen items, as sorted places in ``leaves``, are counted below any node by two searches.
        """
        upwards = accumulate(
            reversed(self.offsets), lambda below, offsets: below[offsets], initial=self.leaf_offsets
        )
        return tuple(upwards)[::-1]

    def prefixes(self, depth: int) -> int:
        """How many distinct prefixes of ``depth`` codes there are."""
        if not 0 <= depth <= self.depth:
            raise ValueError(f"depth is {depth}; ids of this tree have 0 to {self.depth} codes")
        return len(self.children[depth - 1]) if depth else 1

    def nodes(self, codes_Md: NDArray[np.integer]) -> Ints:
        """(M,) node of depth d that each prefix of d codes leads to, -1 where none does."""
        if codes_Md.ndim != 2 or codes_Md.shape[1] > self.depth:
            raise ValueError(f"prefixes are (M, 0 to {self.depth}) codes, got {codes_Md.shape}")
        nodes = np.zeros(len(codes_Md), np.int64)
        for level in range(codes_Md.shape[1]):
            nodes = self._follow(level, nodes, codes_Md[:, level])
        return nodes

    def find(self, codes_ML: NDArray[np.integer]) -> Ints:
        """(M,) row of the item with these codes, the first one where items share them, -1 where none has them."""
        if codes_ML.ndim != 2 or codes_ML.shape[1] != self.depth:
            raise ValueError(f"ids of this tree have {self.depth} codes, got {codes_ML.shape}")
        nodes = self.nodes(codes_ML)
        return np.where(nodes >= 0, self.leaves[self.leaf_offsets[nodes.clip(0)]], -1)

    def live(self, allowed_N: NDArray[np.bool_]) -> tuple[Ints, ...]:
        """(L + 1) of (..., P_d): how many allowed items lie below each node; a node with 0 may be pruned.

        ``allowed_N`` is (..., N) over rows of the catalogue: what is in stock, of a region, not yet seen.
        """
        if allowed_N.dtype != np.bool_ or allowed_N.shape[-1:] != (self.n_items,):
            raise ValueError(
                f"allowed is {allowed_N.dtype} {allowed_N.shape}; a mask is bool (..., {self.n_items}), "
                "a value for every row of the catalogue"
            )
        counts = allowed_N[..., self.leaves].astype(np.int64)
        return tuple(np.add.reduceat(counts, spans[:-1], axis=-1) for spans in self.spans)

    def table(self, depth: int) -> Ints:
        """(P_d, V) node that each code leads to from each node of a depth, -1 where it may not follow.

        For shallow depths, whose few nodes have so many children that a window is as wide as all codes.
        """
        children, offsets = self.children[depth], self.offsets[depth]
        found = np.full((self.prefixes(depth), self.sizes[depth]), -1, np.int64)
        found[np.repeat(np.arange(len(found)), np.diff(offsets)), children] = np.arange(len(children))
        return found

    def tensors(self, device: str | torch.device = "cpu") -> TreeTensors:
        """The arrays as int64 tensors on a device, for decoding; the same ones whenever they are asked for."""
        import torch

        from recpipe.semantic_ids.tree_tensors import TreeTensors

        if (made := self._tensors.get(str(device))) is not None:
            return made

        def moved(array: NDArray[Any]) -> torch.Tensor:
            return torch.tensor(array, dtype=torch.int64, device=device)

        made = self._tensors[str(device)] = TreeTensors(
            tuple(map(moved, self.offsets)),
            tuple(map(moved, self.children)),
            tuple(map(moved, self.spans)),
            moved(self.leaves),
            self.widest,
            self.sizes,
            self.n_items,
        )
        return made

    @cached_property
    def _tensors(self) -> dict[str, TreeTensors]:
        return {}

    def check(self, source: str) -> None:
        """Raises ValueError if the tree was built from other ids than those with this hash."""
        if self.source != source:
            raise ValueError(
                f"the prefix tree was built from the ids {self.source[:12] or 'of unknown origin'}, "
                f"the ids at hand are {source[:12]}; run `{COMMAND}`"
            )

    def write(self, path: Path) -> None:
        """One safetensors file; sizes, source and a digest of it all as JSON in its metadata."""
        from safetensors.numpy import save_file

        described = {"format": 1, "sizes": self.sizes, "source": self.source, "hash": self.hash}
        with atomic_file(path) as temporary:
            save_file(self._arrays(), temporary, {METADATA: json.dumps(described)})

    @classmethod
    def read(cls, path: Path) -> PrefixTree:
        """What ``write`` wrote. Raises ValueError where the file is absent, not whole or not what was written."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as opened:
                described = json.loads((opened.metadata() or {})[METADATA])
                arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            tree = cls._of(arrays, described)
            if tree.hash != described["hash"]:
                raise ValueError("its digest is another than when it was written")
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no whole prefix tree ({error}); run `{COMMAND}`") from error
        return tree

    @classmethod
    def _of(cls, arrays: dict[str, NDArray[Any]], described: dict[str, Any]) -> PrefixTree:
        if described["format"] != 1:
            raise ValueError(f"its format is {described['format']!r}, this version reads 1")
        sizes = tuple(described["sizes"])
        offsets, children = (
            tuple(arrays[f"{name}.{level}"] for level in range(len(sizes)))
            for name in ("offsets", "children")
        )
        return cls(offsets, children, arrays["leaves"], arrays["leaf_offsets"], sizes, described["source"])

    def _arrays(self) -> dict[str, NDArray[Any]]:
        numbered: dict[str, tuple[NDArray[Any], ...]] = {"offsets": self.offsets, "children": self.children}
        per_level = {
            f"{name}.{level}": array
            for name, arrays in numbered.items()
            for level, array in enumerate(arrays)
        }
        return {**per_level, "leaves": self.leaves, "leaf_offsets": self.leaf_offsets}

    def _follow(self, level: int, nodes: Ints, codes: NDArray[np.integer]) -> Ints:
        """Binary search of every code among its node's children, all at once."""
        offsets, children = self.offsets[level], self.children[level]
        low, end = offsets[nodes.clip(0)], offsets[nodes.clip(0) + 1]
        high = end
        for _ in range(self.widest[level].bit_length()):
            middle = (low + high) // 2
            right = (low < high) & (children[middle.clip(max=len(children) - 1)] < codes)
            low, high = np.where(right, middle + 1, low), np.where(right, high, middle)
        found = (nodes >= 0) & (low < end) & (children[low.clip(max=len(children) - 1)] == codes)
        return np.where(found, low, -1)


def _sorted_rows(codes_NL: NDArray[np.integer], sizes: tuple[int, ...]) -> Ints:
    """Rows in lexicographic order of their codes; equal ones in the order of the catalogue."""
    spread = [*accumulate(reversed(sizes), lambda product, size: product * size, initial=1)]
    if spread[-1] > np.iinfo(np.int64).max:
        return np.lexsort(codes_NL.T[::-1]).astype(np.int64)
    weights = np.array(spread[-2::-1], np.int64)
    return np.argsort(codes_NL.astype(np.int64) @ weights, kind="stable").astype(np.int64)
