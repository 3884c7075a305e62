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
    """Return the best k items and their scores, both (B, K); item 0 where the score is -inf. ``scores`` is (B, I)."""
    values, items = torch.topk(scores, min(k + 1, scores.shape[1]), dim=1)
    finite = values > -torch.inf
    tied = ((values[:, 1:] == values[:, :-1]) & finite[:, 1:]).any(1)
    values, items = values[:, :k].contiguous(), items[:, :k].contiguous()
    if rows := torch.nonzero(tied).flatten().tolist():
        # one integer key: the bits of the score, made monotone, above the inverted tie order
        bits = (scores[rows] + 0.0).contiguous().view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
        monotone = torch.where(bits >= 0, bits, -(bits & 0x7FFF_FFFF))
        key = monotone * (1 << 31) - tie_order(scores.shape[1], scores.device)
        items[rows] = torch.topk(key, k, dim=1).indices
        values[rows] = scores[rows].gather(1, items[rows])
    return torch.where(values > -torch.inf, items, 0), values


def rank_of(scores: Tensor, rows: Tensor, items: Tensor) -> Tensor:
    """Return the ranks (N,) int64, from 1, of the pairs (rows, items) in ``scores`` (B, I); 0 for a score of -inf."""
    same_rows = len(rows) == len(scores) and bool((rows == torch.arange(len(scores), device=rows.device)).all())
    compared = scores if same_rows else scores[rows]
    target = compared.gather(1, items[:, None])
    greater = (compared > target).sum(1)
    equal = (compared >= target).sum(1) - greater
    if len(tied := torch.nonzero(equal > 1).flatten()):
        order = tie_order(scores.shape[1], scores.device)
        before = (compared[tied] == target[tied]) & (order < order[items[tied]][:, None])
        greater[tied] += before.sum(1)
    return torch.where(target[:, 0] == -torch.inf, 0, greater + 1)
