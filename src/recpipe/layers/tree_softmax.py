"""Cross-entropy of ids among the codes that may follow: what a search that renormalises asks a model for.

N targets, L levels, V codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.semantic_ids.tree_tensors import TreeTensors


def tree_cross_entropy(
    hidden_NLD: Tensor, tables: Sequence[Tensor], rows: Tensor, tree: TreeTensors
) -> Tensor:
    """Mean over targets and levels of the cross-entropy of each code among the children of the prefix before it.

    ``tables`` (L) of (V_l, D): what the codes of a level are predicted with; ``rows`` (N,) of the catalogue are the
    targets. exp(-L times a target's mean) is its probability among all items of the tree.
    """
    nodes = tree.places[rows]
    total = hidden_NLD.new_zeros(())
    for level in reversed(range(tree.depth)):
        codes, nodes = tree.children[level][nodes], tree.parents[level][nodes]
        logits = hidden_NLD[:, level] @ tables[level].T
        total = total + F.cross_entropy(logits + shut(tree, level, nodes), codes)
    return total / tree.depth


def shut(tree: TreeTensors, level: int, nodes: Tensor) -> Tensor:
    """(N, V) float32: 0 for the codes of ``level`` that may follow each of ``nodes`` (N,), -inf for the others.

    From the tree's table, where it has one: a GPU need not be waited for then.
    """
    if (table := tree.closed(level)) is not None:
        return table[nodes]
    allowed = following(tree, level, nodes)
    return torch.zeros(allowed.shape, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def following(tree: TreeTensors, level: int, nodes: Tensor) -> Tensor:
    """(N, V) bool: the codes of ``level`` that may follow each of ``nodes`` (N,)."""
    first = tree.offsets[level][nodes]
    many = tree.offsets[level][nodes + 1] - first
    owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(many)
    edge = torch.arange(len(owner), device=nodes.device) + (first - (many.cumsum(0) - many))[owner]
    allowed = torch.zeros(len(nodes), tree.sizes[level], dtype=torch.bool, device=nodes.device)
    allowed[owner, tree.children[level][edge]] = True
    return allowed
