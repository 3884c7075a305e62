"""Cross-entropy of items whose scores are the sums of their codes' logits, against the whole catalogue.

An item is L codes, so that N scores are L lookups each, as in product quantisation (Jégou, Douze and Schmid, 2011,
section III: asymmetric distances), where a table of items would take a product of the width of all levels.

M targets, L levels, V codes of a level, N items.

Cross-entropy of ids among the codes that may follow: what a search that renormalises asks a model for.

N targets, L levels, V codes of a level, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recpipe.semantic_ids.tree_tensors import TreeTensors

AT_ONCE = 1 << 22  # scores that exist together


def item_cross_entropy(logits: Sequence[Tensor], codes_NL: Tensor, rows_M: Tensor) -> Tensor:
    """Mean over targets of the cross-entropy of items ``rows_M`` of the catalogue ``codes_NL``.

    ``logits`` (L) of (M, V_l). Scores and gradients are in float32 at least, a part of the targets at a time.
    """
    sizes = [each.shape[1] for each in logits]
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    loss: Tensor = _ItemCrossEntropy.apply(torch.cat(list(logits), 1).to(wide), codes_NL, rows_M, sizes)
    return loss


class _ItemCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, codes_NL: Tensor, rows_M: Tensor, sizes: list[int]) -> Tensor:
        M, N = len(rows_M), len(codes_NL)
        first = torch.tensor([0, *sizes[:-1]], device=codes_NL.device).cumsum(0)
        places_NL = codes_NL + first
        by_code = places_NL.flatten().argsort() // places_NL.shape[1]  # items, code after code
        counts = torch.bincount(places_NL.flatten(), minlength=sum(sizes))
        begins = counts.cumsum(0) - counts
        grad_MV = torch.empty_like(logits_MV) if ctx.needs_input_grad[0] else None
        total = logits_MV.new_zeros(())
        for start in range(0, M, size := max(AT_ONCE // N, 1)):
            part = slice(start, start + size)
            targets, users = rows_M[part], torch.arange(len(rows_M[part]), device=rows_M.device)
            scores_NB = F.embedding_bag(places_NL, logits_MV[part].T.contiguous(), mode="sum")
            wanted = scores_NB[targets, users]
            most = scores_NB.amax(0)
            sums = scores_NB.sub_(most).exp_().sum(0)
            total += (sums.log() + most - wanted).sum()
            if grad_MV is not None:
                scores_NB /= sums * M
                scores_NB[targets, users] -= 1 / M
                grad_MV[part] = F.embedding_bag(by_code, scores_NB, begins, mode="sum").T
        if grad_MV is not None:
            ctx.save_for_backward(grad_MV)
        return total / M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.saved_tensors[0] * grad, None, None, None


def tree_cross_entropy(
    hidden_NLD: Tensor, tables: Sequence[Tensor], rows: Tensor, tree: TreeTensors
) -> Tensor:
    """Mean over targets and levels of the cross-entropy of each code among the children of the prefix before it.

    ``tables`` (L) of (V_l, D): what the codes of a level are predicted with; ``rows`` (N,) of the catalogue are the
    targets. exp(-L times a target's mean) is its probability among all items of the tree.
    """
    nodes = tree.leaf_positions[rows]
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
    if (table := tree.child_mask(level)) is not None:
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
