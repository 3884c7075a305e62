"""A strict order of the catalogue by score, the same for ranks and for recommendations. B batch, I items, K results.

Items of equal score stand in the order of one fixed random permutation, so that neither the catalogue's own order
nor the model's luck decides: a model that gives all items the same score does no better than chance.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

TIE_SEED = 20_26


@lru_cache(maxsize=4)
def _priority(size: int, device: str) -> Tensor:
    return torch.from_numpy(np.random.default_rng(TIE_SEED).permutation(size)).to(device)


def priority(size: int, device: torch.device | str = "cpu") -> Tensor:
    """(size,) int64: among equal scores the lower number comes first."""
    return _priority(size, str(device))


def rank_of(scores: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Ranks (N,) int64 of the pairs (rows, items), by counting what comes before; 0 where the item scores -inf.

    ``scores`` is (B, I). Counting needs no sort: 1 + greater + those equal that have the lower priority number.
    """
    same_rows = len(rows) == len(scores) and bool(
        (rows == torch.arange(len(scores), device=rows.device)).all()
    )
    compared = scores if same_rows else scores[rows]
    target = compared.gather(1, items[:, None])
    greater = (compared > target).sum(1)
    equal = (compared >= target).sum(1) - greater
    tied = torch.nonzero(equal > 1).flatten()
    if len(tied):
        order = priority(scores.shape[1], scores.device)
        before = (compared[tied] == target[tied]) & (order < order[items[tied]][:, None])
        greater[tied] += before.sum(1)
    return torch.where(target[:, 0] == -torch.inf, 0, greater + 1)


def top_k(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first k items of the strict order and their scores, both (B, K); item 0 where the score is -inf."""
    values, items = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    finite = values > -torch.inf
    tied = ((values[:, 1:] == values[:, :-1]) & finite[:, 1:]).any(1)
    values, items = values[:, :k].contiguous(), items[:, :k].contiguous()
    if rows := torch.nonzero(tied).flatten().tolist():
        items[rows] = _top_k_strict(scores[rows], k)
        values[rows] = scores[rows].gather(1, items[rows])
    return torch.where(values > -torch.inf, items, 0), values


def _top_k_strict(scores: Tensor, k: int) -> Tensor:
    """Sorts by one integer key: the score's bits, made monotone, above the inverted priority."""
    bits = (scores + 0.0).contiguous().view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
    monotone = torch.where(bits >= 0, bits, -(bits & 0x7FFF_FFFF))
    key = monotone * (1 << 31) - priority(scores.shape[1], scores.device)
    return torch.topk(key, k, dim=1).indices
