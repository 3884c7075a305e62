"""Sampling without replacement by a beam search: Kool, van Hoof & Welling, Stochastic Beams and Where to Find Them,
ICML 2019. B users, K beams, W children of a beam.

A leaf's perturbed log-probability is that plus Gumbel noise; the K greatest are a sample without replacement. Drawn
from the root down, a node's is the greatest of its children's, so that a beam of the greatest ones finds them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gumbel(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Standard Gumbel noise, float64, where the generator is."""
    uniform = torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float64)
    return -torch.log(-torch.log(uniform.clamp_(1e-300, 1 - 2**-53)))


def perturbed(parents_BK: Tensor, logs_BKW: Tensor, generator: torch.Generator) -> Tensor:
    """(B, K, W) float64 of children with log-probabilities ``logs``, given that their greatest is ``parents``.

    -inf where ``logs`` is. ``logs`` are those of whole prefixes, whose children's make up theirs (App. B.3).
    """
    free = logs_BKW.double() + gumbel(logs_BKW.shape, generator).to(logs_BKW.device)
    less = free - free.amax(-1, keepdim=True)
    parents = parents_BK[..., None]
    v = parents - free + _log1mexp(less)
    drawn = parents - v.clamp(min=0) - torch.log1p(torch.exp(-v.abs()))
    return drawn.masked_fill_(logs_BKW == -torch.inf, -torch.inf)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact at both ends."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
