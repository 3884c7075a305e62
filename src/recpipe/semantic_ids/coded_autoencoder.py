"""An autoencoder with codebooks in its middle: what is trained, and what encodes and decodes afterwards.

Shape letters: N items, B of a batch, D width, Z latent width, L levels, V codes per level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recpipe.semantic_ids.autoencoder import Autoencoder
from recpipe.semantic_ids.learned_codebooks import LearnedCodebooks, sinkhorn
from recpipe.semantic_ids.reallocation import reallocate

ROWS = 8192


@dataclass(frozen=True)
class Losses:
    """Of one batch: both losses, the latent without its graph, and the codes (None before there are any)."""

    reconstruction: Tensor
    commitment: Tensor
    latent: Tensor
    codes: Tensor | None


@dataclass(frozen=True)
class Forced:
    """Codes (N, L) that the rows in ``moved`` (N,) shall learn instead of their nearest, with so much weight."""

    codes: Tensor
    moved: Tensor
    weight: float = 1.0

    def __getitem__(self, rows: Tensor) -> Forced:
        return Forced(self.codes[rows], self.moved[rows], self.weight)


@dataclass
class CodedAutoencoder:
    """Vectors here are standardised. Before there are ``books`` the latent goes through as it is."""

    network: Autoencoder
    books: LearnedCodebooks | None = None
    bf16: bool = False  # in `losses` only

    def losses(
        self,
        x_BD: Tensor,
        *,
        hidden_BD: Tensor | None = None,
        sinkhorn_epsilons: tuple[float, ...] | None = None,
        forced: Forced | None = None,
    ) -> Losses:
        """Mean squared errors per dimension; what is ``hidden_BD`` the encoder sees as 0, the mean of all items."""
        seen_BD = (
            x_BD if hidden_BD is None else x_BD.masked_fill(hidden_BD, 0) / (1 - hidden_BD.float().mean())
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            z_BZ = self.network.encode(seen_BD).to(x_BD.dtype)
        quantized, commitment, codes = z_BZ, z_BZ.new_zeros(()), None
        if self.books is not None:
            codes = balanced_choice(self.books, z_BZ.detach(), sinkhorn_epsilons)
            weights = torch.ones(len(codes))
            if forced is not None:
                codes = torch.where(forced.moved[:, None], forced.codes, codes)
                weights[forced.moved] = forced.weight
            commitment = self.books.commitment(z_BZ, codes, weights)
            quantized = z_BZ + (self.books.sum(codes) - z_BZ).detach()  # straight through
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            decoded = self.network.decode(quantized).to(x_BD.dtype)
        return Losses(functional.mse_loss(decoded, x_BD), commitment, z_BZ.detach(), codes)

    @torch.no_grad()
    def latent(self, x_ND: Tensor) -> Tensor:
        """(N, Z)"""
        return torch.cat([self.network.encode(part) for part in x_ND.split(ROWS)])

    @torch.no_grad()
    def choose(self, x_ND: Tensor) -> Tensor:
        """(N, L) int64: the nearest code of every level."""
        return torch.cat([self._books.choose(self.network.encode(part)) for part in x_ND.split(ROWS)])

    @torch.no_grad()
    def decode(self, codes_NL: Tensor) -> Tensor:
        """(N, D)"""
        return torch.cat([self.network.decode(self._books.sum(part)) for part in codes_NL.split(ROWS)])

    @torch.no_grad()
    def distances(self, x_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """(N, V)"""
        parts = zip(x_ND.split(ROWS), codes_NL.split(ROWS), strict=True)
        return torch.cat([self._books.distances(self.network.encode(x), codes, level) for x, codes in parts])

    def reconstruction(self, x_ND: Tensor) -> float:
        """Mean squared error through the codes."""
        return functional.mse_loss(self.decode(self.choose(x_ND)), x_ND).item()

    def separated(self, x_ND: Tensor, *, weight: float) -> Forced | None:
        """Codes with which no two rows collide, by ``reallocate``; None where there is no room for that.

        Rows must be distinct: nothing could learn to tell equal ones apart.
        """
        books, z = self._books, self.latent(x_ND)
        sizes = tuple(len(book) for book in books.books)
        if 2 * len(x_ND) > math.prod(sizes):
            return None
        codes = books.choose(z).numpy().astype(np.int32)

        def distances(rows: NDArray, codes_RL: NDArray, level: int) -> NDArray[np.float32]:
            return books.distances(z[rows], torch.from_numpy(codes_RL).long(), level).numpy()

        apart = reallocate(codes, sizes, distances, codes[:0])
        return Forced(torch.from_numpy(apart).long(), torch.from_numpy((apart != codes).any(1)), weight)

    @property
    def _books(self) -> LearnedCodebooks:
        assert self.books is not None
        return self.books


def balanced_choice(books: LearnedCodebooks, z_NZ: Tensor, epsilons: tuple[float, ...] | None) -> Tensor:
    """(N, L) int64: the nearest code, but of a level with an epsilon above 0 the largest share of a balanced plan."""
    codes = torch.empty(len(z_NZ), 0, dtype=torch.int64)
    for level in range(len(books.books)):
        costs = books.distances(z_NZ, codes, level)
        if epsilons is not None and epsilons[level]:
            costs = -sinkhorn(costs, epsilon=epsilons[level])
        codes = torch.cat([codes, costs.argmin(1, keepdim=True)], 1)
    return codes
