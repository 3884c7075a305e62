"""Codebooks as tensors: nearest codes, beam search over levels, scaling of the input. No faiss is needed here.

Shape letters: N items, D width, B beams, L levels, V codes per level.

Codebooks that follow an encoder while it is trained: k-means to begin with, then moving averages of what chose them.

Shape letters: N items, Z latent width, L levels, V codes per level.
"""

from __future__ import annotations

from collections.abc import Iterator

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


TINY = (
    1e-6  # of a moving count: below it a code has not been chosen for hundreds of steps and stays where it is
)


class LearnedCodebooks:
    """One codebook per level. A level quantizes what the earlier ones left: residual 1 is the latent.

    ``masks_LZ`` says which latent dimensions a level sees: all of them in an RQ-VAE, a slice in a PQ-VAE, whose codes
    are then zero elsewhere, so that sums of codes and residuals are the same arithmetic for both.
    """

    def __init__(self, books: list[Tensor], masks_LZ: Tensor) -> None:
        self.books, self.masks = books, masks_LZ
        self.counts = [torch.ones(len(book)) for book in books]
        self.sums = [book.clone() for book in books]

    @classmethod
    def start(
        cls, z_NZ: Tensor, sizes: tuple[int, ...], masks_LZ: Tensor, *, generator: torch.Generator
    ) -> LearnedCodebooks:
        """k-means of the residuals, level by level."""
        residual, books = z_NZ, []
        for size, mask in zip(sizes, masks_LZ, strict=True):
            books.append(kmeans(residual * mask, size, generator=generator))
            residual = residual - books[-1][nearest(residual * mask, books[-1])]
        return cls(books, masks_LZ)

    def distances(self, z_NZ: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """(N, V) squared distances at ``level``; codes of the earlier levels are given."""
        residual = z_NZ
        for book, codes in zip(self.books[:level], codes_NL.unbind(1), strict=False):
            residual = residual - book[codes]
        return squared_distances(residual * self.masks[level], self.books[level])

    def choose(self, z_NZ: Tensor) -> Tensor:
        """(N, L) int64: the nearest code of every level."""
        codes = torch.empty(len(z_NZ), 0, dtype=torch.int64)
        for level in range(len(self.books)):
            codes = torch.cat([codes, self.distances(z_NZ, codes, level).argmin(1, keepdim=True)], 1)
        return codes

    def sum(self, codes_NL: Tensor) -> Tensor:
        """(N, Z) the quantized latent."""
        return torch.stack([book[codes] for book, codes in self._chosen(codes_NL)]).sum(0)

    def residuals(self, z_NZ: Tensor, codes_NL: Tensor) -> Iterator[Tensor]:
        """Per level (N, Z): what it had to quantize, under its mask."""
        for mask, (book, codes) in zip(self.masks, self._chosen(codes_NL), strict=True):
            yield z_NZ * mask
            z_NZ = z_NZ - book[codes]

    def commitment(self, z_NZ: Tensor, codes_NL: Tensor, weights_N: Tensor) -> Tensor:
        """Squared residuals that each level leaves, summed over levels; mean over dimensions and (weighted) items."""
        seen = zip(self.residuals(z_NZ, codes_NL), self._chosen(codes_NL), strict=True)
        left_N = torch.stack(
            [(residual - book[codes]).square().mean(1) for residual, (book, codes) in seen]
        ).sum(0)
        return (weights_N * left_N).mean()

    @torch.no_grad()
    def follow(self, z_NZ: Tensor, codes_NL: Tensor, *, decay: float) -> None:
        """Moves every code towards the mean of the residuals that chose it (van den Oord et al. 2017, appendix A.1)."""
        for level, residual in enumerate(list(self.residuals(z_NZ, codes_NL))):  # all before a book moves
            chosen, book = codes_NL[:, level], self.books[level]
            count = torch.bincount(chosen, minlength=len(book)).float()
            self.counts[level].lerp_(count, 1 - decay)
            self.sums[level].lerp_(torch.zeros_like(book).index_add_(0, chosen, residual), 1 - decay)
            alive = self.counts[level] > TINY
            book[alive] = self.sums[level][alive] / self.counts[level][alive, None]

    @torch.no_grad()
    def revive(self, z_NZ: Tensor, *, generator: torch.Generator) -> int:
        """Moves codes that nobody of ``z_NZ`` chooses onto residuals, drawn by their error; how many."""
        revived, residual = 0, z_NZ
        for level, (book, mask) in enumerate(zip(self.books, self.masks, strict=True)):
            seen = residual * mask
            chosen = nearest(seen, book)
            dead = torch.bincount(chosen, minlength=len(book)) == 0
            drawn = _drawn_by_error(seen, book[chosen], int(dead.sum()), generator)
            places = dead.nonzero()[: len(drawn), 0]
            book[places] = self.sums[level][places] = seen[drawn]
            self.counts[level][places] = 1
            revived += len(drawn)
            residual = residual - book[nearest(seen, book) if len(drawn) else chosen]
        return revived

    def copy(self) -> LearnedCodebooks:
        """The books alone, as they are now."""
        return LearnedCodebooks([book.clone() for book in self.books], self.masks)

    def _chosen(self, codes_NL: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.books, codes_NL.unbind(1), strict=True)


def kmeans(x_NZ: Tensor, size: int, *, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """(V, Z) centroids after Lloyd's algorithm from random rows; an empty one moves to a row far from its own."""
    picked = torch.randperm(len(x_NZ), generator=generator)
    centroids = x_NZ[picked[torch.arange(size) % len(x_NZ)]].clone()
    for _ in range(rounds):
        chosen = nearest(x_NZ, centroids)
        counts = torch.bincount(chosen, minlength=size)
        sums = torch.zeros_like(centroids).index_add_(0, chosen, x_NZ)
        empty = (counts == 0).nonzero()[:, 0]
        drawn = _drawn_by_error(x_NZ, centroids[chosen], len(empty), generator)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        centroids[empty[: len(drawn)]] = x_NZ[drawn]
    return centroids


def sinkhorn(distances_NV: Tensor, *, epsilon: float, rounds: int = 50) -> Tensor:
    """(N, V) shares of N items in V codes: rows sum to 1, columns to N / V.

    Distances are brought to [-1, 1] before they are divided by ``epsilon``, as in LC-Rec (Zheng et al. 2024).
    """
    least, most = distances_NV.min(), distances_NV.max()
    scaled = (2 * distances_NV - least - most) / (most - least).clamp(min=1e-12)
    shares = torch.exp(-(scaled.double() + 1) / epsilon).clamp(min=1e-300)
    for _ in range(rounds):
        shares = shares / shares.sum(0) * (len(shares) / shares.shape[1])
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def _drawn_by_error(x_NZ: Tensor, near_NZ: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` different rows of ``x_NZ``, the likelier the farther from ``near_NZ``; none that equals it."""
    error = (x_NZ - near_NZ).square().sum(1)
    count = min(count, int((error > 0).sum()))
    if not count:
        return torch.empty(0, dtype=torch.int64)
    return torch.multinomial(error, count, generator=generator)
