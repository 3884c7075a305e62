"""Collaborative ids: terms of an RQ-VAE's loss that align its codes with item vectors of a trained model.

LETTER (Wang et al., Learnable Item Tokenization for Generative Recommendation, CIKM 2024):
loss = L_RQ-VAE + alpha · L_CF + beta · L_Div, for the quantized latent z_i and the collaborative vector h_i of item i,

- L_CF = -mean_i log( exp<z_i, h_i> / Σ_j exp<z_i, h_j> ), over the items j of the batch (InfoNCE);
- L_Div = -mean_i log( exp<e_i, e_+> / Σ_{j != i} exp<e_i, e_j> ), for the code e_i of item i at a level, the other
  codes e_j of the level, and a random one e_+ of the same cluster, by a k-means with clusters of bounded size.

Deviations from the paper:

- a trained projection takes z to the width of h, and L_CF compares cosines, divided by ``temperature``: the lengths of
  vectors differ between models, and in LETTER's code follow from a training of 32 dimensions for this purpose;
- L_CF is a mean over the prefixes of an id, z being the sum of their codes: with the whole id alone the last codes
  carry what is collaborative, while a beam search decides by the first ones;
- h is centred, since a direction that all items share says nothing;
- items without a collaborative vector, such as those without training events, have no L_CF;
- codebooks are moving averages, so that L_Div moves the latents towards or away from codes, straight through;
- products of codes are divided by the mean squared length of the level's codes, which shrinks from level to level;
- clusters have equal sizes, by an optimal assignment, instead of sizes in a range.

Shape letters: N items, B batch, Z latent width, C width of collaborative vectors, L levels, V codes of a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.semantic_ids.autoencoder import LearnedCodebooks, Losses, kmeans
from recpipe.semantic_ids.quantizer import ItemVectors, squared_distances

HELD_OUT_BATCH = 512  # items that the held-out InfoNCE compares


@dataclass(frozen=True)
class CollaborativeConfig:
    """Settings of ``collaborative`` of an RQ-VAE or PQ-VAE.

    ``model``: whose item vectors are used, a name in conf/base/parameters/models. ``alpha``: weight of InfoNCE.
    ``beta``: weight of the diversity term. ``clusters``: clusters of the codes of a level (the paper: 10).
    """

    model: str
    alpha: float = 0.1
    beta: float = 1e-4
    temperature: float = 0.1  # temperature of InfoNCE
    clusters: int = 10

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            self._check(name, getattr(self, name) >= 0, "at least 0")
        self._check("temperature", self.temperature > 0, "above 0")
        self._check("clusters", self.clusters >= 1, "at least 1")

    def _check(self, name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise ValueError(f"collaborative.{name} is {getattr(self, name)!r}; allowed: {allowed}")


class Terms(NamedTuple):
    """Terms of one batch, not weighted."""

    info_nce: Tensor
    diversity: Tensor


class Alignment:
    """Alignment terms during one fit: InfoNCE and diversity.

    ``targets`` has a row per row of the training set, ``held_out`` per held-out one.
    """

    def __init__(
        self, config: CollaborativeConfig, targets: ItemVectors, held_out: ItemVectors, latent: int, *, seed: int
    ) -> None:
        self.config, self._held_out = config, held_out
        vectors, self.present = torch.from_numpy(targets.vectors), torch.from_numpy(targets.present)
        self.mean = vectors[self.present].mean(0) if self.present.any() else vectors.new_zeros(vectors.shape[1])
        self.vectors = unit_vectors(vectors, self.mean)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # layers draw from the global generator
            torch.manual_seed(seed)
            self.projection = nn.Linear(latent, vectors.shape[1], bias=False)
        self.labels: list[Tensor] = []  # (V,) cluster of each code, per level

    def parameters(self) -> Iterator[nn.Parameter]:
        """Return the weights that are trained with the autoencoder's."""
        return self.projection.parameters()

    def cluster_codes(self, codebooks: LearnedCodebooks) -> None:
        """Group the codes of each level into clusters, as they are now."""
        if self.config.beta:
            books = codebooks.books
            self.labels = [balanced_clusters(book, self.config.clusters, self.generator) for book in books]

    def terms(self, rows_B: Tensor, losses: Losses, codebooks: LearnedCodebooks | None) -> Terms:
        """Compute the terms (scalars) of a batch, whose rows of the training set are ``rows_B`` (B,)."""
        present = self.present[rows_B]
        vectors_BC = self.vectors[rows_B[present]]
        if codebooks is None or losses.codes is None:
            nce = self.info_nce(losses.quantized[present], vectors_BC)
            return Terms(nce, nce.new_zeros(()))
        gradient_BZ = losses.quantized - losses.quantized.detach()  # zero, with the gradient of the latent
        prefix_BZ, info_nces, diversities = gradient_BZ, [], [gradient_BZ.new_zeros(())]
        for level, book in enumerate(codebooks.books):
            codes = losses.codes[:, level]
            prefix_BZ = prefix_BZ + book[codes]
            info_nces.append(self.info_nce(prefix_BZ[present], vectors_BC))
            if self.labels:
                anchors = book[codes] + gradient_BZ * codebooks.masks[level]
                others = cluster_neighbours(codes, self.labels[level], self.generator)
                diversities.append(diversity(anchors, codes, others, book))
        return Terms(torch.stack(info_nces).mean(), torch.stack(diversities).sum())

    def info_nce(self, quantized_BZ: Tensor, vectors_BC: Tensor) -> Tensor:
        """Return the InfoNCE (scalar) of quantized latents (B, Z) and collaborative vectors (B, C) of the same items.

        It is 0 for fewer than two items.
        """
        if len(quantized_BZ) < 2:
            return quantized_BZ.sum() * 0
        return info_nce(self.projection(quantized_BZ), vectors_BC, self.config.temperature)

    @torch.no_grad()
    def held_out(self, quantized_NZ: Tensor) -> float:
        """Return the mean InfoNCE of held-out items (N, Z) in blocks; 0 without collaborative vectors."""
        present = torch.from_numpy(self._held_out.present)
        vectors = unit_vectors(torch.from_numpy(self._held_out.vectors)[present], self.mean)
        blocks = zip(quantized_NZ[present].split(HELD_OUT_BATCH), vectors.split(HELD_OUT_BATCH), strict=True)
        losses = [self.info_nce(*block).item() for block in blocks]
        return sum(losses) / max(len(losses), 1)


def unit_vectors(vectors_NC: Tensor, mean_C: Tensor) -> Tensor:
    """Return vectors (N, C), centred by ``mean_C`` and scaled to length 1."""
    return F.normalize(vectors_NC - mean_C, dim=1)


def info_nce(projected_BC: Tensor, unit_BC: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy (scalar) of an item's own vector among those of the batch, by cosine.

    ``projected_BC`` (B, C) are projected latents, ``unit_BC`` (B, C) collaborative vectors of length 1.
    """
    logits = F.normalize(projected_BC, dim=1) @ unit_BC.T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits)))


def diversity(anchors_BZ: Tensor, codes_B: Tensor, others_B: Tensor, book_VZ: Tensor) -> Tensor:
    """Return the mean cross-entropy (scalar) of a code of the same cluster among all codes but the item's own.

    ``anchors_BZ`` are the items' codes as vectors (B, Z) with the gradient of the latent, ``codes_B`` their numbers,
    ``others_B`` those of the same cluster, ``book_VZ`` all codes of the level.
    """
    scale = book_VZ.square().sum(1).mean().clamp(min=1e-12)
    logits = (anchors_BZ @ book_VZ.T / scale).scatter(1, codes_B[:, None], -torch.inf)
    losses = F.cross_entropy(logits, others_B, reduction="none")
    return torch.where(others_B == codes_B, 0.0, losses).mean()  # codes that are alone in their cluster


def balanced_clusters(book_VZ: Tensor, clusters: int, generator: torch.Generator, *, rounds: int = 3) -> Tensor:
    """Return cluster labels (V,) of equal size, up to one, at least two codes each where there are so many.

    Lloyd's algorithm from the centroids of plain k-means, with an optimal assignment of codes to places in each round.
    """
    from scipy.optimize import linear_sum_assignment

    size = len(book_VZ)
    clusters = max(1, min(clusters, size // 2))
    centroids = kmeans(book_VZ, clusters, generator=generator)
    places = torch.arange(size) % clusters  # cluster of each place, so that every cluster has size / clusters of them
    labels = torch.zeros(size, dtype=torch.int64)
    for _ in range(rounds):
        costs = squared_distances(book_VZ, centroids)[:, places]
        labels = places[torch.from_numpy(linear_sum_assignment(costs.numpy())[1])]
        sums = torch.zeros_like(centroids).index_add_(0, labels, book_VZ)
        centroids = sums / torch.bincount(labels, minlength=clusters)[:, None]
    return labels


def cluster_neighbours(codes_B: Tensor, labels_V: Tensor, generator: torch.Generator) -> Tensor:
    """Return a random other code (B,) of the cluster of each code; the code itself where it is alone."""
    order = torch.argsort(labels_V, stable=True)
    sizes = torch.bincount(labels_V)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    label = labels_V[codes_B]
    start, size = starts[label], sizes[label]
    step = 1 + (torch.rand(len(codes_B), generator=generator) * (size - 1).clamp(min=1)).long()
    return order[start + (place[codes_B] - start + step.clamp(max=size - 1)) % size]
