"""Autoencoder with learned codebooks between encoder and decoder, the network of RQ-VAE and PQ-VAE.

Shape letters: N items, B batch, D width, Z latent width, L levels, V codes per level.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.semantic_ids.collisions import reallocate
from recpipe.semantic_ids.quantizer import nearest, squared_distances

CHUNK = 8192  # rows that go through the network at once after training
COMPONENT_ROWS = 50_000  # rows from which principal components are computed
MIN_COUNT = 1e-6  # of a moving average: a code that was not chosen for hundreds of steps stays where it is


@dataclass(frozen=True)
class Losses:
    """Losses of one batch, and the latents and codes for the codebook update."""

    reconstruction: Tensor
    commitment: Tensor
    latent: Tensor  # (B, Z), detached
    codes: Tensor | None  # (B, L); None before there are codebooks
    quantized: Tensor  # (B, Z), with the gradient of the latent, straight through


@dataclass(frozen=True)
class CodeOverrides:
    """Codes that the rows in ``mask`` are committed to, with ``weight``, instead of their nearest ones."""

    codes: Tensor  # (N, L)
    mask: Tensor  # (N,) bool
    weight: float = 1.0

    def __getitem__(self, rows: Tensor) -> CodeOverrides:
        return CodeOverrides(self.codes[rows], self.mask[rows], self.weight)


@dataclass
class QuantizedAutoencoder:
    """Encoder, codebooks and decoder for standardised vectors. Without codebooks the latent is not quantized."""

    network: Autoencoder
    codebooks: LearnedCodebooks | None = None
    bf16: bool = False  # autocast in `losses` only

    def losses(
        self,
        x_BD: Tensor,
        *,
        dropped_BD: Tensor | None = None,
        sinkhorn_epsilons: tuple[float, ...] | None = None,
        overrides: CodeOverrides | None = None,
    ) -> Losses:
        """Compute mean squared errors per dimension of a batch (B, D).

        ``dropped_BD`` (bool) masks input dropout of the encoder. ``sinkhorn_epsilons`` (L,) balance the codes of
        levels. ``overrides``: codes (B, L) that some rows are committed to.
        """
        input_BD = x_BD
        if dropped_BD is not None:
            input_BD = x_BD.masked_fill(dropped_BD, 0) / (1 - dropped_BD.float().mean())
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            z_BZ = self.network.encode(input_BD).to(x_BD.dtype)
        quantized, commitment, codes = z_BZ, z_BZ.new_zeros(()), None
        if self.codebooks is not None:
            codes = self.codebooks.encode(z_BZ.detach(), sinkhorn_epsilons)
            weights = torch.ones(len(codes))
            if overrides is not None:
                codes = torch.where(overrides.mask[:, None], overrides.codes, codes)
                weights[overrides.mask] = overrides.weight
            commitment = self.codebooks.commitment(z_BZ, codes, weights)
            quantized = z_BZ + (self.codebooks.decode(codes) - z_BZ).detach()  # straight-through estimator
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            decoded = self.network.decode(quantized).to(x_BD.dtype)
        return Losses(F.mse_loss(decoded, x_BD), commitment, z_BZ.detach(), codes, quantized)

    @torch.no_grad()
    def latent(self, x_ND: Tensor) -> Tensor:
        """Return the output (N, Z) of the encoder."""
        return torch.cat([self.network.encode(part) for part in x_ND.split(CHUNK)])

    @torch.no_grad()
    def encode(self, x_ND: Tensor) -> Tensor:
        """Return the nearest codes (N, L) int64."""
        codebooks = self._codebooks()
        return torch.cat([codebooks.encode(self.network.encode(part)) for part in x_ND.split(CHUNK)])

    @torch.no_grad()
    def quantized(self, x_ND: Tensor) -> Tensor:
        """Return the latent (N, Z) after quantization."""
        return self._codebooks().decode(self.encode(x_ND))

    @torch.no_grad()
    def decode(self, codes_NL: Tensor) -> Tensor:
        """Return the reconstruction (N, D) of codes (N, L)."""
        codebooks = self._codebooks()
        return torch.cat([self.network.decode(codebooks.decode(part)) for part in codes_NL.split(CHUNK)])

    @torch.no_grad()
    def distances(self, x_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """Return squared distances (N, V) in the latent space to the codes of ``level``."""
        codebooks, parts = self._codebooks(), zip(x_ND.split(CHUNK), codes_NL.split(CHUNK), strict=True)
        return torch.cat([codebooks.distances(self.network.encode(x), codes, level) for x, codes in parts])

    def reconstruction_error(self, x_ND: Tensor) -> float:
        """Return the mean squared error of encoding and decoding the rows (N, D)."""
        return F.mse_loss(self.decode(self.encode(x_ND)), x_ND).item()

    def separating_codes(self, x_ND: Tensor, *, weight: float) -> CodeOverrides | None:
        """Reallocate colliding, distinct rows of (N, D) to free codes (N, L).

        None where less than half of all codes would stay free.
        """
        codebooks, z = self._codebooks(), self.latent(x_ND)
        sizes = tuple(len(book) for book in codebooks.books)
        if 2 * len(x_ND) > math.prod(sizes):
            return None
        nearest_NL = codebooks.encode(z).numpy().astype(np.int32)
        codes_NL = reallocate(
            nearest_NL,
            sizes,
            lambda rows, codes, level: codebooks.distances(z[rows], torch.from_numpy(codes).long(), level).numpy(),
            taken_ML=nearest_NL[:0],
        )
        moved_N = (codes_NL != nearest_NL).any(1)
        return CodeOverrides(torch.from_numpy(codes_NL).long(), torch.from_numpy(moved_N), weight)

    def _codebooks(self) -> LearnedCodebooks:
        assert self.codebooks is not None
        return self.codebooks


@dataclass
class BestState:
    """State with the lowest error, and the number of evaluations since then."""

    error: float = math.inf
    age: int = 0
    state: tuple[dict[str, Tensor], LearnedCodebooks] | None = None

    def update(self, model: QuantizedAutoencoder, error: float) -> None:
        """Store a copy of the state of ``model`` if ``error`` is the lowest so far; otherwise count the evaluation."""
        self.age += 1
        if error < self.error:
            assert model.codebooks is not None
            self.error, self.age = error, 0
            self.state = (copy.deepcopy(model.network.state_dict()), model.codebooks.copy())

    def restore(self, model: QuantizedAutoencoder) -> None:
        """Load the stored state into ``model``. Raises ValueError if no error was finite."""
        if self.state is None:
            raise ValueError("the quantizer diverged: no finite reconstruction error; lower lr")
        model.network.load_state_dict(self.state[0])
        model.codebooks = self.state[1]


class Autoencoder(nn.Module):
    """Encoder (N, D) to (N, Z) and decoder back, each the sum of an MLP, as in TIGER, and a linear path.

    The linear path starts as the principal components: a quarter less error on Amazon Beauty at equal steps.
    """

    def __init__(self, width: int, latent: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.encoder = _mlp((width, *hidden, latent))
        self.decoder = _mlp((latent, *reversed(hidden), width))
        self.inward = nn.Linear(width, latent, bias=False)
        self.outward = nn.Linear(latent, width, bias=False)

    def encode(self, x_ND: Tensor) -> Tensor:
        """Return the latent (N, Z) of vectors (N, D)."""
        return self.inward(x_ND) + self.encoder(x_ND)

    def decode(self, z_NZ: Tensor) -> Tensor:
        """Return the vectors (N, D) of a latent (N, Z)."""
        return self.outward(z_NZ) + self.decoder(z_NZ)

    @torch.no_grad()
    def init_components(self, x_ND: Tensor, order_Z: Tensor) -> None:
        """Set the linear path to the principal components of centred rows (N, D).

        The i-th component starts at the latent dimension ``order_Z[i]``, of Z.
        """
        x_ND = x_ND[:COMPONENT_ROWS].double()
        components = torch.linalg.eigh(x_ND.T @ x_ND).eigenvectors.flip(1)
        count = min(components.shape[1], len(order_Z))
        # The sign of an eigenvector is arbitrary: make its largest entry positive, on any machine.
        signs = components.gather(0, components.abs().argmax(0, keepdim=True)).sign()
        directions = torch.zeros(len(order_Z), x_ND.shape[1], dtype=torch.float64)
        directions[order_Z[:count]] = (components * signs).T[:count]
        self.inward.weight.copy_(directions)
        self.outward.weight.copy_(directions.T)
        for last in (self.encoder[-1], self.decoder[-1]):
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class LearnedCodebooks:
    """Residual codebooks as moving averages of the latents that choose them, initialised by k-means.

    ``books`` are L tensors (V, Z). ``masks_LZ`` (0 or 1) selects the latent dimensions of a level: all in an RQ-VAE, a
    slice in a PQ-VAE. Codes are zero outside of the mask, so that sums and residuals are the same arithmetic for both.
    """

    def __init__(self, books: list[Tensor], masks_LZ: Tensor) -> None:
        self.books, self.masks = books, masks_LZ
        self.counts = [torch.ones(len(book)) for book in books]
        self.sums = [book.clone() for book in books]

    @classmethod
    def from_kmeans(
        cls, z_NZ: Tensor, sizes: tuple[int, ...], masks_LZ: Tensor, *, generator: torch.Generator
    ) -> LearnedCodebooks:
        """Build codebooks by k-means of the residuals of a latent (N, Z), level by level."""
        residual, books = z_NZ, []
        for size, mask in zip(sizes, masks_LZ, strict=True):
            books.append(kmeans(residual * mask, size, generator=generator))
            residual = residual - books[-1][nearest(residual * mask, books[-1])]
        return cls(books, masks_LZ)

    def distances(self, z_NZ: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """Return squared distances (N, V) at ``level``, after the codes of the earlier levels."""
        residual = z_NZ
        for book, codes in zip(self.books[:level], codes_NL.unbind(1), strict=False):
            residual = residual - book[codes]
        return squared_distances(residual * self.masks[level], self.books[level])

    def encode(self, z_NZ: Tensor, epsilons: tuple[float, ...] | None = None) -> Tensor:
        """Return the nearest codes (N, L) int64; at levels with an epsilon above 0 those of a balanced plan."""
        codes = torch.empty(len(z_NZ), 0, dtype=torch.int64)
        for level in range(len(self.books)):
            costs = self.distances(z_NZ, codes, level)
            if epsilons is not None and epsilons[level]:
                costs = -sinkhorn(costs, epsilon=epsilons[level])
            codes = torch.cat([codes, costs.argmin(1, keepdim=True)], 1)
        return codes

    def decode(self, codes_NL: Tensor) -> Tensor:
        """Return the quantized latent (N, Z): the sum of the codes' vectors."""
        return torch.stack([book[codes] for book, codes in self._levels(codes_NL)]).sum(0)

    def residuals(self, z_NZ: Tensor, codes_NL: Tensor) -> Iterator[Tensor]:
        """Yield for each level the masked input (N, Z) that it quantizes."""
        for mask, (book, codes) in zip(self.masks, self._levels(codes_NL), strict=True):
            yield z_NZ * mask
            z_NZ = z_NZ - book[codes]

    def commitment(self, z_NZ: Tensor, codes_NL: Tensor, weights_N: Tensor) -> Tensor:
        """Return the squared error (scalar) of each level, summed over levels.

        It is the mean over dimensions, and over items with weights (N,).
        """
        levels = zip(self.residuals(z_NZ, codes_NL), self._levels(codes_NL), strict=True)
        errors_LN = [(residual - book[codes]).square().mean(1) for residual, (book, codes) in levels]
        return (weights_N * torch.stack(errors_LN).sum(0)).mean()

    @torch.no_grad()
    def update(self, z_NZ: Tensor, codes_NL: Tensor, *, decay: float) -> None:
        """Move each code towards the mean of the residuals (N, Z) that chose it (van den Oord 2017, appendix A.1)."""
        for level, residual in enumerate(list(self.residuals(z_NZ, codes_NL))):  # all before a book moves
            codes, book = codes_NL[:, level], self.books[level]
            count = torch.bincount(codes, minlength=len(book)).float()
            self.counts[level].lerp_(count, 1 - decay)
            self.sums[level].lerp_(torch.zeros_like(book).index_add_(0, codes, residual), 1 - decay)
            alive = self.counts[level] > MIN_COUNT
            book[alive] = self.sums[level][alive] / self.counts[level][alive, None]

    @torch.no_grad()
    def revive(self, z_NZ: Tensor, *, generator: torch.Generator) -> int:
        """Move codes that no row of (N, Z) chooses onto residuals sampled by their error; return how many moved."""
        revived, residual = 0, z_NZ
        for level, (book, mask) in enumerate(zip(self.books, self.masks, strict=True)):
            masked = residual * mask
            codes = nearest(masked, book)
            dead = torch.bincount(codes, minlength=len(book)) == 0
            rows = _sample_by_error(masked, book[codes], int(dead.sum()), generator)
            targets = dead.nonzero()[: len(rows), 0]
            book[targets] = self.sums[level][targets] = masked[rows]
            self.counts[level][targets] = 1
            revived += len(rows)
            residual = residual - book[nearest(masked, book) if len(rows) else codes]
        return revived

    def copy(self) -> LearnedCodebooks:
        """Copy the codebooks, without their moving averages."""
        return LearnedCodebooks([book.clone() for book in self.books], self.masks)

    def _levels(self, codes_NL: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.books, codes_NL.unbind(1), strict=True)


def kmeans(x_NZ: Tensor, size: int, *, generator: torch.Generator, rounds: int = 10) -> Tensor:
    """Return centroids (V, Z) by Lloyd's algorithm from random rows of (N, Z).

    Empty ones move to rows far from their centroid.
    """
    rows = torch.randperm(len(x_NZ), generator=generator)
    centroids = x_NZ[rows[torch.arange(size) % len(x_NZ)]].clone()
    for _ in range(rounds):
        codes = nearest(x_NZ, centroids)
        counts = torch.bincount(codes, minlength=size)
        sums = torch.zeros_like(centroids).index_add_(0, codes, x_NZ)
        empty = (counts == 0).nonzero()[:, 0]
        rows = _sample_by_error(x_NZ, centroids[codes], len(empty), generator)
        centroids = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], centroids)
        centroids[empty[: len(rows)]] = x_NZ[rows]
    return centroids


def sinkhorn(distances_NV: Tensor, *, epsilon: float, rounds: int = 50) -> Tensor:
    """Return a balanced assignment (N, V): rows sum to 1, columns to N / V.

    Distances are scaled to [-1, 1] before they are divided by ``epsilon``, as in LC-Rec (Zheng et al. 2024).
    """
    low, high = distances_NV.min(), distances_NV.max()
    scaled = (2 * distances_NV - low - high) / (high - low).clamp(min=1e-12)
    shares = torch.exp(-(scaled.double() + 1) / epsilon).clamp(min=1e-300)
    for _ in range(rounds):
        shares = shares / shares.sum(0) * (len(shares) / shares.shape[1])
        shares = shares / shares.sum(1, keepdim=True)
    return shares


def _sample_by_error(x_NZ: Tensor, near_NZ: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Up to ``count`` distinct row numbers, with probabilities proportional to the squared error."""
    error = (x_NZ - near_NZ).square().sum(1)
    count = min(count, int((error > 0).sum()))
    return torch.multinomial(error, count, generator=generator) if count else torch.empty(0, dtype=torch.int64)
