"""Softmax losses over semantic ids: over the items of the catalogue, and over the children of a prefix.

M targets, L levels, V codes of a level, N items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from recpipe.semantic_ids.prefix_tree import TreeTensors

MAX_SCORES = 1 << 22  # scores in memory at once


def item_cross_entropy(
    logits: Sequence[Tensor], codes_NL: Tensor, rows_M: Tensor, weights_M: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy (scalar) of the target items ``rows_M`` of the catalogue ``codes_NL``.

    ``logits`` are L tensors (M, V_l): an item's score is the sum of its codes' logits, as in product quantisation
    (Jegou, Douze and Schmid, 2011, section III). ``weights_M`` of the targets. In float32 at least, for a part of the
    targets at a time.
    """
    sizes = [each.shape[1] for each in logits]
    wide = torch.promote_types(logits[0].dtype, torch.float32)
    logits_MV = torch.cat(list(logits), 1).to(wide)
    loss: Tensor = _ItemCrossEntropy.apply(logits_MV, codes_NL, rows_M, weights_M, sizes)  # type: ignore[no-untyped-call]
    return loss


class _ItemCrossEntropy(torch.autograd.Function):
    """Gradients are computed in the forward pass, while the scores of a part exist."""

    @staticmethod
    def forward(
        ctx: Any, logits_MV: Tensor, codes_NL: Tensor, rows_M: Tensor, weights_M: Tensor | None, sizes: list[int]
    ) -> Tensor:
        M, N = len(rows_M), len(codes_NL)
        first = torch.tensor([0, *sizes[:-1]], device=codes_NL.device).cumsum(0)
        places_NL = codes_NL + first
        by_code = places_NL.flatten().argsort() // places_NL.shape[1]  # items, sorted by code
        counts = torch.bincount(places_NL.flatten(), minlength=sum(sizes))
        bag_starts = counts.cumsum(0) - counts
        grad_MV = torch.empty_like(logits_MV) if ctx.needs_input_grad[0] else None
        total = logits_MV.new_zeros(())
        for start in range(0, M, size := max(MAX_SCORES // N, 1)):
            part = slice(start, start + size)
            targets, users = rows_M[part], torch.arange(len(rows_M[part]), device=rows_M.device)
            scores_NB = F.embedding_bag(places_NL, logits_MV[part].T.contiguous(), mode="sum")
            target_scores = scores_NB[targets, users]
            highest = scores_NB.amax(0)
            sums = scores_NB.sub_(highest).exp_().sum(0)
            losses = sums.log() + highest - target_scores
            total += (losses if weights_M is None else losses * weights_M[part]).sum()
            if grad_MV is not None:
                scores_NB /= sums * M
                scores_NB[targets, users] -= 1 / M
                if weights_M is not None:
                    scores_NB *= weights_M[part]
                grad_MV[part] = F.embedding_bag(by_code, scores_NB, bag_starts, mode="sum").T
        if grad_MV is not None:
            ctx.save_for_backward(grad_MV)
        return total / M

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.saved_tensors[0] * grad, None, None, None, None


def tree_cross_entropy(
    hidden_MLD: Tensor, tables: Sequence[Tensor], rows_M: Tensor, tree: TreeTensors, weights_M: Tensor | None = None
) -> Tensor:
    """Return the mean cross-entropy (scalar) of each code among the children of the prefix before it.

    ``hidden_MLD`` are the states before each code, ``tables`` L tensors (V_l, D) of output embeddings, ``rows_M`` the
    targets as rows of the catalogue, ``weights_M`` their weights. exp(-L times a target's mean) is its probability
    among all items of the tree.
    """
    nodes = tree.leaf_positions[rows_M]
    total = hidden_MLD.new_zeros(())
    for level in reversed(range(tree.depth)):
        codes, nodes = tree.children[level][nodes], tree.parents[level][nodes]
        logits = hidden_MLD[:, level] @ tables[level].T
        logits = logits + child_mask(tree, level, nodes)
        if weights_M is None:
            total = total + F.cross_entropy(logits, codes)
        else:
            total = total + (weights_M * F.cross_entropy(logits, codes, reduction="none")).mean()
    return total / tree.depth


def child_mask(tree: TreeTensors, level: int, nodes: Tensor) -> Tensor:
    """Return the mask (M, V) float32: 0 for codes of ``level`` that may follow ``nodes`` (M,), -inf for others."""
    # a table needs no synchronisation with a GPU
    if (table := tree.child_mask(level)) is not None:
        return table[nodes]
    first = tree.offsets[level][nodes]
    counts = tree.offsets[level][nodes + 1] - first
    owner = torch.arange(len(nodes), device=nodes.device).repeat_interleave(counts)
    edge = torch.arange(len(owner), device=nodes.device) + (first - (counts.cumsum(0) - counts))[owner]
    mask = torch.full((len(nodes), tree.sizes[level]), -torch.inf, device=nodes.device)
    mask[owner, tree.children[level][edge]] = 0
    return mask
