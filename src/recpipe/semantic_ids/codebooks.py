"""Codebooks as tensors: nearest codes, beam search over levels, scaling of the input. No faiss is needed here.

Shape letters: N items, D width, B beams, L levels, V codes per level.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEAD = 1e-4  # a dimension whose spread is below this share of the typical one holds rounding errors only
ROWS = 4096


def squared_distances(x_ND: Tensor, book_VD: Tensor) -> Tensor:
    """(N, V), never negative."""
    lengths = x_ND.square().sum(1, keepdim=True) + book_VD.square().sum(1)
    return torch.addmm(lengths, x_ND, book_VD.T, alpha=-2).clamp_min_(0)


def nearest(x_ND: Tensor, book_VD: Tensor) -> Tensor:
    """(N,) int64 number of the nearest code."""
    return torch.cat([squared_distances(part, book_VD).argmin(1) for part in x_ND.split(ROWS)])


def additive_codes(x_ND: Tensor, books: list[Tensor], width: int) -> Tensor:
    """(N, L) int64: per vector one code of every book, with a sum that is near.

    ``width`` 1 takes the nearest code of each level; more keeps that many ways at every level (beam search, as
    faiss' ResidualQuantizer does) and finds sums that are nearer.
    """
    return torch.cat([_beams(part, books, width) for part in x_ND.split(ROWS)])


def _beams(x_ND: Tensor, books: list[Tensor], width: int) -> Tensor:
    rest_NBD, rows = x_ND[:, None], torch.arange(len(x_ND))[:, None]
    codes_NBL = torch.empty(len(x_ND), 1, 0, dtype=torch.int64)
    for book_VD in books:
        distances = squared_distances(rest_NBD.flatten(0, 1), book_VD).reshape(len(x_ND), -1)
        best = distances.topk(min(width, distances.shape[1]), largest=False).indices
        beam, code = best // len(book_VD), best % len(book_VD)
        codes_NBL = torch.cat([codes_NBL[rows, beam], code[..., None]], 2)
        rest_NBD = rest_NBD[rows, beam] - book_VD[code]
    return codes_NBL[:, 0]


def scaling(x_ND: Tensor, standardise: bool) -> tuple[Tensor, Tensor]:
    """(D,) mean and scale with which ``(x - mean) / scale`` has variance 1 in every dimension; 0 and 1 if not wanted.

    Dead dimensions keep their scale: MiniLM has some whose values are rounding errors of 1e-9 and 1e-33, which
    differ from machine to machine, and would otherwise weigh as much as all others.
    """
    if not standardise:
        return torch.zeros(x_ND.shape[1]), torch.ones(x_ND.shape[1])
    mean, spread = x_ND.double().mean(0), x_ND.double().std(0, correction=0)
    dead = spread <= DEAD * spread.square().mean().sqrt()
    return mean.float(), torch.where(dead, 1.0, spread).float()
