"""The user × item matrix of models that do not look at order. U users, I items, B batch, T time, N distinct pairs.

Similarities of sparse non-negative profiles, a dense block at a time: what both neighbourhood models are made of.

A profile x has F features (users of an item, or items of a user). |x| is the number of its non-zero features, Σx their
sum, c = |x ∧ y| the number that x and y share, p = x / Σx. The shrinkage h ≥ 0 mistrusts pairs that share little.

- cosine: x·y / (‖x‖ ‖y‖ + h)  (Salton & McGill 1983; Sarwar et al., WWW 2001)
- jaccard: c / (|x| + |y| − c + h), of sets  (Jaccard 1912)
- correlation: (x·y − Σx Σy / F) / (σ_x σ_y + h) with σ_x² = ‖x‖² − (Σx)² / F: Pearson's, over all F features
- euclidean: w / (1 + ‖x − y‖)
- hamming: w (1 − (|x| + |y| − 2 c) / F), of sets  (Hamming 1950)
- manhattan: w / (1 + |x| + |y| − 2 c), of sets
- bhattacharyya: w Σ √(p_x p_y)  (Bhattacharyya 1943)
- kl: w / (1 + J) with J = KL(p̃_x ‖ p̃_y) + KL(p̃_y ‖ p̃_x)  (Kullback & Leibler 1951, eq. 2.6)

w = c / (c + h) is significance weighting (Koren, KDD 2008, eq. 2); p̃ = (1 − λ) p + λ / F with λ = ``SMOOTHING`` keeps
J finite (Jelinek & Mercer 1980). Who shares nothing is no neighbour, whatever the distance, nor is who correlates
negatively: their similarity is 0. Of binary profiles bhattacharyya is cosine but for the shrinkage.

All come from products of sparse with dense and a few sums per profile. For kl, J = (1 − λ) Σ (p_x − p_y)(L_x − L_y)
with L = ln(p̃ F / λ), which is 0 wherever p is. N profiles held, B in a block.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.data.sequences import Sequences


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, item) pairs of training, sorted by both; ``item`` is 1-based like everywhere."""

    user: Tensor  # (N,) int64
    item: Tensor  # (N,) int64
    count: Tensor  # (N,) float32, events of the pair
    users: int
    width: int  # I + 1

    def __len__(self) -> int:
        return len(self.user)

    def matrix(self, values: Tensor) -> Tensor:
        """CSR (U, I + 1) with ``values`` (N,)."""
        return csr(self.user, self.item, values, (self.users, self.width))

    def by_item(self, values: Tensor) -> Tensor:
        """The transpose of ``matrix``, CSR (I + 1, U)."""
        return csr(self.item, self.user, values, (self.width, self.users))


def pairs_of(train: Sequences, n_items: int, device: torch.device) -> Pairs:
    """The pairs of all events in ``train``."""
    owner = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
    keys, counts = np.unique(owner * (n_items + 1) + train.items, return_counts=True)
    found = torch.from_numpy(keys).to(device)
    count = torch.from_numpy(counts.astype(np.float32)).to(device)
    return Pairs(found // (n_items + 1), found % (n_items + 1), count, len(train), n_items + 1)


def counts_of(items_BT: Tensor, n_items: int) -> Tensor:
    """(B, I + 1) events of each item in each right-padded history; column 0 is 0."""
    counts = torch.zeros(len(items_BT), n_items + 1, device=items_BT.device)
    return counts.scatter_add_(1, items_BT, (items_BT > 0).float())


def csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A compressed sparse matrix; values of equal places are added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        whole = torch.sparse_coo_tensor(torch.stack([row, column]), values, shape, check_invariants=False)
        return whole.coalesce().to_sparse_csr()


class PairBatches:
    """Every pair once per epoch in random order, each with ``negatives`` uniform items its user has no event of.

    An item that the user does have is drawn again, up to ``TRIES`` times; who has nearly the whole catalogue may
    keep one.
    """

    TRIES = 8

    def __init__(self, pairs: Pairs, *, size: int, negatives: int, generator: torch.Generator) -> None:
        self.pairs, self.size, self.generator = pairs, size, generator
        self._owner = pairs.user[:, None].expand(-1, negatives) * pairs.width
        self._keys = pairs.user * pairs.width + pairs.item

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yields users (n,), items (n,) and negatives (n, negatives)."""
        negatives = self._negatives()
        order = torch.randperm(len(self.pairs), generator=self.generator).to(self._keys.device)
        for chosen in order.split(self.size):
            yield self.pairs.user[chosen], self.pairs.item[chosen], negatives[chosen]

    def _negatives(self) -> Tensor:
        """For all pairs at once: in the order of the keys a search stays in cache."""
        drawn = self._draw(self._owner.numel()).view_as(self._owner)
        for _ in range(self.TRIES):
            keys = self._owner + drawn
            place = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
            known = self._keys[place] == keys
            drawn[known] = self._draw(int(known.sum()))
        return drawn

    def _draw(self, n: int) -> Tensor:
        return torch.randint(1, self.pairs.width, (n,), generator=self.generator).to(self._keys.device)


SIMILARITIES = (
    "cosine",
    "jaccard",
    "correlation",
    "euclidean",
    "hamming",
    "manhattan",
    "bhattacharyya",
    "kl",
)
SETS = ("jaccard", "hamming", "manhattan")
RATIOS = ("cosine", "jaccard", "correlation")  # shrunk in the denominator, the others by w
PROFILES = ("binary", "count")
SMOOTHING = 0.1
DENSE = 1 << 26  # elements of the dense block that one product may make: 256 MiB


@dataclass(frozen=True)
class Similarity:
    """A measure of the list above; the profile of an item or user holds 1 (binary) or the number (count) of events."""

    name: str
    profile: str
    shrinkage: float

    def __post_init__(self) -> None:
        if self.name not in SIMILARITIES:
            raise ValueError(f"similarity is {self.name!r}; allowed: {', '.join(SIMILARITIES)}")
        if self.profile not in PROFILES:
            raise ValueError(f"profile is {self.profile!r}; allowed: {', '.join(PROFILES)}")
        if self.profile == "count" and self.name in SETS:
            raise ValueError(f"similarity {self.name} compares sets; use `profile: binary`")
        if self.shrinkage < 0:
            raise ValueError(f"shrinkage is {self.shrinkage}; it must be at least 0")

    def values(self, counts: Tensor) -> Tensor:
        """x of counts of events."""
        return (counts > 0).float() if self.profile == "binary" else counts

    def encode(self, x: Tensor, total: Tensor, features: int) -> tuple[Tensor, Tensor]:
        """The two values per feature whose products the measure needs, 0 wherever ``x`` is; ``total`` is Σx."""
        p = x / total.clamp(min=1)
        if self.name == "bhattacharyya":
            return p.sqrt(), p.sqrt()
        if self.name == "kl":
            return p, (p * ((1 - SMOOTHING) * features / SMOOTHING)).log1p()
        return x, x

    def combine(self, cross: Tensor, shared: Tensor, one: Sums, other: Sums, features: int) -> Tensor:
        """Similarities (N, B) of products (N, B), common features (N, B) and the sums of both sides."""
        own, others, h = one.own[:, None], other.own, self.shrinkage
        difference = (own + others - 2 * cross).clamp(min=0)
        match self.name:
            case "cosine":
                found = cross / _nonzero((own * others).sqrt() + h)
            case "jaccard":
                found = cross / _nonzero(own + others - cross + h)
            case "correlation":
                mean, means = one.total[:, None] / features, other.total / features
                spread = (own - one.total[:, None] * mean) * (others - other.total * means)
                found = (cross - one.total[:, None] * means) / _nonzero(spread.clamp(min=0).sqrt() + h)
            case "euclidean":
                found = 1 / (1 + difference.sqrt())
            case "hamming":
                found = 1 - difference / features
            case "manhattan":
                found = 1 / (1 + difference)
            case "kl":
                found = 1 / (1 + (1 - SMOOTHING) * (own + others - cross).clamp(min=0))
            case _:
                found = cross
        weight = (shared > 0).float() if self.name in RATIOS else shared / _nonzero(shared + h)
        return found.clamp_(min=0).mul_(weight)


@dataclass(frozen=True)
class Sums:
    """Per profile: Σx and the product of its own two encodings."""

    total: Tensor
    own: Tensor


class Profiles:
    """Sparse profiles (N, columns) against which dense blocks are compared; of the columns ``features`` count."""

    def __init__(
        self,
        row: Tensor,
        column: Tensor,
        counts: Tensor,
        *,
        shape: tuple[int, int],
        features: int,
        measure: Similarity,
    ) -> None:
        self.measure, self.shape, self.features = measure, shape, features
        x = measure.values(counts)
        total = torch.zeros(shape[0], device=x.device).index_add_(0, row, x)
        first, second = measure.encode(x, total[row], features)
        self.sums = Sums(total, torch.zeros_like(total).index_add_(0, row, first * second))
        self._first = csr(row, column, first, shape)
        self._second = csr(row, column, second, shape) if measure.name == "kl" else None
        plain = measure.profile == "binary" and measure.name not in ("bhattacharyya", "kl")
        self._support = None if plain else csr(row, column, torch.ones_like(x), shape)

    def similarities(self, counts_BF: Tensor) -> Tensor:
        """(N, B) of every profile held with every row of ``counts_BF``."""
        x = self.measure.values(counts_BF)
        total = x.sum(1)
        first, second = self.measure.encode(x, total[:, None], self.features)
        cross = self._first @ second.T
        if self._second is not None:
            cross += self._second @ first.T
        shared = cross if self._support is None else self._support @ (counts_BF > 0).float().T
        other = Sums(total, (first * second).sum(1))
        return self.measure.combine(cross, shared, self.sums, other, self.features)


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp(min=1e-12)
