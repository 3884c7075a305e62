"""Top-k items and ranks with a deterministic order of tied scores.

Items of equal score are ordered by one fixed random permutation, the same for ranks and for lists, so that a model
that scores all items alike does no better than chance. B batch, I items, K results, N pairs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TIE_SEED = 20_26


@lru_cache(maxsize=4)
def tie_order(size: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the (size,) int64 permutation that breaks ties: the lower number comes first."""
    return torch.from_numpy(np.random.default_rng(TIE_SEED).permutation(size)).to(device)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the best k items and their scores, both (B, K); item 0 where the score is -inf. ``scores`` is (B, I).

    K is k, or I if there are fewer items.

    Examples:
        >>> top_k(torch.tensor([[-torch.inf, 0.5, 0.75]]), 2)
        (tensor([[2, 1]]), tensor([[0.7500, 0.5000]]))
    """
    k = min(k, scores.shape[1])
    values, items = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    same = (values[:, 1:] == values[:, :-1]) & (values[:, 1:] > -torch.inf)
    is_cut = same[:, k - 1 :].any(1)  # ties that only partly fit the list
    values, items = values[:, :k].contiguous(), items[:, :k].contiguous()
    if len(rows := torch.nonzero(same.any(1) & ~is_cut).flatten()):
        items[rows] = _in_order(scores, rows, items[rows], items[rows] >= 0, k)
    if len(rows := torch.nonzero(is_cut).flatten()):
        last, order = values[rows, -1:], tie_order(scores.shape[1], scores.device).int()
        part = scores if len(rows) == len(scores) else scores[rows]
        ties, tied_items = torch.topk(torch.where(part == last, order, len(order)), k, dim=1, largest=False)
        candidates = torch.cat([items[rows], tied_items], 1)
        is_candidate = torch.cat([values[rows] > last, ties < len(order)], 1)
        items[rows] = _in_order(scores, rows, candidates, is_candidate, k)
    values = scores.gather(1, items)
    return torch.where(values > -torch.inf, items, 0), values


def _in_order(scores: Tensor, rows: Tensor, items: Tensor, is_candidate: Tensor, k: int) -> Tensor:
    """Return the best k of ``items`` (n, C) of ``rows`` (n,) where ``is_candidate``: by score, then by tie order."""
    # one integer key: the bits of the score, made monotone, above the inverted tie order
    bits = (scores[rows[:, None], items] + 0.0).view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
    monotone = torch.where(bits >= 0, bits, -(bits & 0x7FFF_FFFF))
    key = monotone * (1 << 31) - tie_order(scores.shape[1], scores.device)[items]
    key = torch.where(is_candidate, key, torch.iinfo(key.dtype).min)
    return items.gather(1, torch.topk(key, k, dim=1).indices)


def rank_of(scores: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Return the ranks (N,) int64, from 1, of the pairs (rows, items) in ``scores`` (B, I); 0 for a score of -inf.

    Examples:
        >>> scores = torch.tensor([[-torch.inf, 0.5, 0.75]])
        >>> rank_of(scores, torch.tensor([0, 0]), torch.tensor([1, 2]))
        tensor([2, 1])
    """
    same_rows = len(rows) == len(scores) and bool((rows == torch.arange(len(scores), device=rows.device)).all())
    compared = scores if same_rows else scores[rows]
    target = compared.gather(1, items[:, None])
    is_greater, is_equal = compared > target, compared >= target
    is_equal ^= is_greater
    greater = count_true(is_greater)
    if len(tied := torch.nonzero(count_true(is_equal) > 1).flatten()):
        order = tie_order(scores.shape[1], scores.device).int()
        greater[tied] += count_true(is_equal[tied] & (order < order[items[tied]][:, None]))
    return torch.where(target[:, 0] == -torch.inf, 0, greater + 1)


def count_true(mask: Tensor) -> Tensor:
    """Count True in each row of ``mask`` (B, I) as int64; on a CPU by numpy, ten times as fast as torch."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.count_nonzero(mask.numpy(), axis=1))
    return mask.sum(1)
