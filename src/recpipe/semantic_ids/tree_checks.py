"""What makes arrays a prefix tree, and codes fit to build one from: each refused in words.

Shape letters as in prefix_tree.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from recpipe.semantic_ids.prefix_tree import PrefixTree

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
