"""Settings that the RQ-VAE and the PQ-VAE share, with their reasons. Numbers behind the defaults: LOG.md.

The network around the codes: an MLP beside a linear path, and back.

Shape letters: N items, D width, Z latent width.

An autoencoder with codebooks in its middle: what is trained, and what encodes and decodes afterwards.

Shape letters: N items, B of a batch, D width, Z latent width, L levels, V codes per level.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from recpipe.semantic_ids.codebooks import LearnedCodebooks, sinkhorn
from recpipe.semantic_ids.collisions import reallocate
from recpipe.semantic_ids.quantizer import QuantizerConfig


@dataclass(frozen=True)
class DeadCodes:
    """When codes that no item chooses are moved onto items that are badly reconstructed."""

    every: int = 5  # epochs
    until: float = 0.7  # of all steps; the rest is for those moved last to settle; 0: never

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.until <= 1:
            raise ValueError(
                f"dead_codes are every {self.every!r}, until {self.until!r}; allowed: at least 1, and from 0 to 1"
            )


@dataclass(frozen=True)
class VAEConfig(QuantizerConfig):
    """Defaults were chosen on Amazon Beauty (12,101 items); bounds on steps keep them sane for 50 items and for 1e6."""

    standardise: bool = True  # every dimension to mean 0 and variance 1: without it codebooks collapse
    widths: tuple[int, ...] = (512, 256, 128)  # of the encoder's hidden layers; the decoder mirrors them
    latent: int = 16  # fewer: items differ in more prefixes; more: vectors are reconstructed better
    beta: float = 0.25  # weight of the commitment loss
    decay: float = 0.95  # of the moving averages that codebooks are
    batch: int = 512
    epochs: int = 140
    least_steps: int = 600  # a step is one batch
    most_steps: int = 10_000
    warm_up: float = 0.07  # share of the steps without codes, before k-means
    lr: float = 5e-3  # at its highest: a few steps of warm-up, then a cosine to nearly nothing
    weight_decay: float = 1e-4
    dropout: float = 0.1  # share of a vector that the encoder does not see in a step: few items overfit soon
    dead_codes: DeadCodes = DeadCodes()
    separate: float = (
        4.0  # weight with which items of equal codes are committed to free ones; 0: they are not
    )
    sinkhorn: tuple[float, ...] | None = None  # epsilon per level, 0: none; LC-Rec has [0, 0, 0.003]
    settle: float = 0.25  # share of the steps until codes are settled enough for a state to be kept
    held_out: float = 0.05  # share of the items that choose the best state; 0: all do
    patience: int = 15  # looks at the held-out items (about 50 in a fit) without a better one
    precision: str = "auto"  # of the network in training: fp32, bf16; auto: bf16 where there is AMX
    threads: int = (
        1  # in training: repeatable on any machine; more gain little here, and lose much on a busy one
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.dead_codes, DeadCodes):
            object.__setattr__(self, "dead_codes", _dead_codes(self.dead_codes))
        for name in ("latent", "batch", "epochs", "least_steps", "most_steps", "patience", "threads"):
            self._check(name, getattr(self, name) >= 1, "at least 1")
        self._check("latent", self.latent >= self.levels, f"at least levels, {self.levels}")
        for name in ("decay", "held_out", "warm_up", "dropout", "settle"):
            self._check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        for name in ("beta", "weight_decay", "separate"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("lr", self.lr > 0, "above 0")
        self._check("precision", self.precision in ("auto", "fp32", "bf16"), "auto, fp32, bf16")
        self._check("widths", all(width >= 1 for width in self.widths), "at least 1 each")
        if self.sinkhorn is not None:
            fits = len(self.sinkhorn) == self.levels and min(self.sinkhorn) >= 0
            self._check("sinkhorn", fits, f"null, or {self.levels} numbers of at least 0")

    def _check(self, name: str, right: bool, allowed: str) -> None:
        if not right:
            raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {allowed}")


def _dead_codes(values: Mapping[str, Any]) -> DeadCodes:
    known = [field.name for field in fields(DeadCodes)]
    if unknown := [str(key) for key in values if key not in known]:
        raise ValueError(f"dead_codes: unknown setting {', '.join(unknown)}; known: {', '.join(known)}")
    return DeadCodes(**values)


ROWS = 50_000  # principal components need no more


class Autoencoder(nn.Module):
    """x (N, D) to a latent (N, Z) and back: ``linear(x) + mlp(x)`` both ways.

    The MLP alone is what TIGER has. The linear path begins as the principal components (``start_at_components``), so
    that training refines a good code instead of finding it: on Beauty it takes a quarter off the error at equal steps.
    """

    def __init__(self, width: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = _mlp((width, *hidden, latent))
        self.decoder = _mlp((latent, *reversed(hidden), width))
        self.inward = nn.Linear(width, latent, bias=False)
        self.outward = nn.Linear(latent, width, bias=False)

    def encode(self, x_ND: Tensor) -> Tensor:
        """(N, Z)"""
        return self.inward(x_ND) + self.encoder(x_ND)

    def decode(self, z_NZ: Tensor) -> Tensor:
        """(N, D)"""
        return self.outward(z_NZ) + self.decoder(z_NZ)

    @torch.no_grad()
    def start_at_components(self, x_ND: Tensor, order_Z: Tensor) -> None:
        """The linear path becomes the principal components of ``x_ND`` (centred), the i-th at place ``order_Z[i]``."""
        x_ND = x_ND[:ROWS].double()
        components = torch.linalg.eigh(x_ND.T @ x_ND).eigenvectors.flip(1)
        found = min(components.shape[1], len(order_Z))
        # The sign of an eigenvector is anybody's choice: its largest entry is positive, on any machine.
        top = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        directions = torch.zeros(len(order_Z), x_ND.shape[1], dtype=torch.float64)
        directions[order_Z[:found]] = (components * top).T[:found]
        self.inward.weight.copy_(directions)
        self.outward.weight.copy_(directions.T)
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


CODED_AUTOENCODER_ROWS = 8192


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
        return torch.cat([self.network.encode(part) for part in x_ND.split(CODED_AUTOENCODER_ROWS)])

    @torch.no_grad()
    def choose(self, x_ND: Tensor) -> Tensor:
        """(N, L) int64: the nearest code of every level."""
        return torch.cat(
            [self._books.choose(self.network.encode(part)) for part in x_ND.split(CODED_AUTOENCODER_ROWS)]
        )

    @torch.no_grad()
    def decode(self, codes_NL: Tensor) -> Tensor:
        """(N, D)"""
        return torch.cat(
            [self.network.decode(self._books.sum(part)) for part in codes_NL.split(CODED_AUTOENCODER_ROWS)]
        )

    @torch.no_grad()
    def distances(self, x_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """(N, V)"""
        parts = zip(x_ND.split(CODED_AUTOENCODER_ROWS), codes_NL.split(CODED_AUTOENCODER_ROWS), strict=True)
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
