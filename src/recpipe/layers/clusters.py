"""k-means for few points of few dimensions: Lloyd (1982), begun as k-means++ (Arthur & Vassilvitskii 2007).

n points, V dimensions, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

ITERATIONS, STARTS = 100, 10


def k_means(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Centres (K, V), the best of several starts; fewer than ``k`` where there are fewer different points.

    Deterministic in ``generator``.
    """
    if not len(points_nV):
        return points_nV
    found = [_lloyd(points_nV, _spread(points_nV, k, generator)) for _ in range(STARTS)]
    return min(found, key=lambda centres: float(distances(points_nV, centres).amin(1).sum()))


def _lloyd(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    before = torch.empty(0)
    for _ in range(ITERATIONS):
        nearest = distances(points_nV, centres_KV).argmin(1)
        if torch.equal(nearest, before):
            break
        sums = torch.zeros_like(centres_KV).index_add_(0, nearest, points_nV)
        sizes = torch.bincount(nearest, minlength=len(centres_KV))[:, None]
        centres_KV, before = torch.where(sizes > 0, sums / sizes.clamp(min=1), centres_KV), nearest
    return centres_KV


def distances(points_nV: Tensor, centres_KV: Tensor) -> Tensor:
    """Squared, (n, K)."""
    crossed = points_nV @ centres_KV.T
    return points_nV.square().sum(1, keepdim=True) - 2 * crossed + centres_KV.square().sum(1)


def _spread(points_nV: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """Points drawn one by one, each with a chance that grows with the squared distance to those drawn before."""
    first = int(torch.randint(len(points_nV), (), generator=generator))
    chosen = [first]
    away = (points_nV - points_nV[first]).square().sum(1)
    while len(chosen) < k and bool((away > 0).any()):
        chosen.append(int(torch.multinomial(away, 1, generator=generator)))
        away = torch.minimum(away, (points_nV - points_nV[chosen[-1]]).square().sum(1))
    return points_nV[chosen]
