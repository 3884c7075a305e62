"""User × item pairs, negative sampling, and similarities of sparse profiles, for models that ignore order.

U users, I items, B batch, T time, N distinct pairs, F features of a profile.

A profile x is a user's items or an item's users. |x| is the number of its non-zero features, Σx their sum,
c = |x ∧ y| the number of common features, p = x / Σx. The shrinkage h ≥ 0 lowers similarities with few common features.

- cosine: x·y / (‖x‖ ‖y‖ + h)  (Salton & McGill 1983; Sarwar et al., WWW 2001)
- jaccard: c / (|x| + |y| − c + h), of sets  (Jaccard 1912)
- correlation: (x·y − Σx Σy / F) / (σ_x σ_y + h) with σ_x² = ‖x‖² − (Σx)² / F: Pearson's, over all F features
- euclidean: w / (1 + ‖x − y‖)
- hamming: w (1 − (|x| + |y| − 2 c) / F), of sets  (Hamming 1950)
- manhattan: w / (1 + |x| + |y| − 2 c), of sets
- bhattacharyya: w Σ √(p_x p_y)  (Bhattacharyya 1943)
- kl: w / (1 + J) with J = KL(p̃_x ‖ p̃_y) + KL(p̃_y ‖ p̃_x)  (Kullback & Leibler 1951, eq. 2.6)

w = c / (c + h) is significance weighting (Koren, KDD 2008, eq. 2); p̃ = (1 − λ) p + λ / F with λ = ``SMOOTHING`` keeps
J finite (Jelinek & Mercer 1980). Without common features, or with negative correlation, the similarity is 0.

All are computed from products of sparse with dense matrices and sums per profile. For kl,
J = (1 − λ) Σ (p_x − p_y)(L_x − L_y) with L = ln(p̃ F / λ), which is 0 wherever p is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.config import check_at_least, check_choices
from recpipe.data.sequences import Sequences

SETS = ("jaccard", "hamming", "manhattan")
RATIOS = ("cosine", "jaccard", "correlation")  # shrunk in the denominator, the others by w
SIMILARITIES = ("cosine", "correlation", *SETS, "euclidean", "bhattacharyya", "kl")
PROFILES = ("binary", "count")
SMOOTHING = 0.1
DENSE = 1 << 26  # elements of the dense block of one product: 256 MiB


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, item) pairs, sorted by user and item; items count from 1."""

    user: Tensor  # (N,) int64
    item: Tensor  # (N,) int64
    count: Tensor  # (N,) float32, events of the pair
    users: int
    width: int  # I + 1

    def __len__(self) -> int:
        return len(self.user)

    def matrix(self, values: Tensor) -> Tensor:
        """Return ``values`` (N,) as a CSR matrix (U, I + 1)."""
        return csr(self.user, self.item, values, (self.users, self.width))

    def by_item(self, values: Tensor) -> Tensor:
        """Return ``values`` (N,) as a CSR matrix (I + 1, U)."""
        return csr(self.item, self.user, values, (self.width, self.users))


def user_item_pairs(train: Sequences, n_items: int, device: torch.device) -> Pairs:
    """Return the distinct pairs of all events."""
    owner = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths)
    unique, counts = np.unique(owner * (n_items + 1) + train.items, return_counts=True)
    keys, count = torch.from_numpy(unique).to(device), torch.from_numpy(counts.astype(np.float32)).to(device)
    return Pairs(keys // (n_items + 1), keys % (n_items + 1), count, len(train), n_items + 1)


def item_counts(items_BT: Tensor, n_items: int) -> Tensor:
    """Return the number of events (B, I + 1) of each item in right-padded histories; column 0 is 0."""
    counts = torch.zeros(len(items_BT), n_items + 1, device=items_BT.device)
    return counts.scatter_add_(1, items_BT, (items_BT > 0).float())


def csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Build a CSR matrix; values at the same position are added."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        coo = torch.sparse_coo_tensor(torch.stack([row, column]), values, shape, check_invariants=False)
        return coo.coalesce().to_sparse_csr()


class PairBatches:
    """Batches of all pairs in random order: users (n,), items (n,) and uniform negatives (n, negatives).

    A negative that the user has an event of is drawn again up to ``TRIES`` times; users of all items may get one.
    """

    TRIES = 8

    def __init__(self, pairs: Pairs, *, size: int, negatives: int, generator: torch.Generator) -> None:
        self.pairs, self.size, self.generator = pairs, size, generator
        self._owner = pairs.user[:, None].expand(-1, negatives) * pairs.width
        self._keys = pairs.user * pairs.width + pairs.item

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        negatives = self._negatives()
        order = torch.randperm(len(self.pairs), generator=self.generator).to(self._keys.device)
        for batch in order.split(self.size):
            yield self.pairs.user[batch], self.pairs.item[batch], negatives[batch]

    def _negatives(self) -> Tensor:
        """Negatives of all pairs, drawn in the order of the keys: the search then stays in the CPU's cache."""
        negatives = self._draw(self._owner.numel()).view_as(self._owner)
        for _ in range(self.TRIES):
            keys = self._owner + negatives
            index = torch.searchsorted(self._keys, keys).clamp_(max=len(self._keys) - 1)
            is_positive = self._keys[index] == keys
            negatives[is_positive] = self._draw(int(is_positive.sum()))
        return negatives

    def _draw(self, n: int) -> Tensor:
        return torch.randint(1, self.pairs.width, (n,), generator=self.generator).to(self._keys.device)


@dataclass(frozen=True)
class NeighbourConfig:
    """Settings of neighbourhood models, and their similarity measure, see the docstring of this module."""

    neighbours: int = 100  # K
    similarity: str = "cosine"
    profile: str = "binary"  # features are 1 (binary) or the number of events (count)
    shrinkage: float = 10.0  # h

    def __post_init__(self) -> None:
        check_choices(self, similarity=SIMILARITIES, profile=PROFILES)
        if self.profile == "count" and self.similarity in SETS:
            raise ValueError(f"similarity {self.similarity} compares sets; use `profile: binary`")
        check_at_least(0, self, "shrinkage")
        check_at_least(1, self, "neighbours")

    def values(self, counts: Tensor) -> Tensor:
        """Return the features of a profile from numbers of events."""
        return (counts > 0).float() if self.profile == "binary" else counts

    def encode(self, x: Tensor, total: Tensor, features: int) -> tuple[Tensor, Tensor]:
        """Return the two values per feature that the measure multiplies, 0 wherever ``x`` is; ``total`` is Σx."""
        p = x / total.clamp(min=1)
        if self.similarity == "bhattacharyya":
            return p.sqrt(), p.sqrt()
        if self.similarity == "kl":
            return p, (p * ((1 - SMOOTHING) * features / SMOOTHING)).log1p()
        return x, x

    def combine(self, cross: Tensor, shared: Tensor, rows: Sums, columns: Sums, features: int) -> Tensor:
        """Return similarities (N, B) from products (N, B), numbers of common features (N, B) and sums."""
        norms, other_norms, h = rows.norm[:, None], columns.norm, self.shrinkage
        difference = (norms + other_norms - 2 * cross).clamp(min=0)
        match self.similarity:
            case "cosine":
                values = cross / _nonzero((norms * other_norms).sqrt() + h)
            case "jaccard":
                values = cross / _nonzero(norms + other_norms - cross + h)
            case "correlation":
                mean, other_mean = rows.total[:, None] / features, columns.total / features
                variance = (norms - rows.total[:, None] * mean) * (other_norms - columns.total * other_mean)
                covariance = cross - rows.total[:, None] * other_mean
                values = covariance / _nonzero(variance.clamp(min=0).sqrt() + h)
            case "euclidean":
                values = 1 / (1 + difference.sqrt())
            case "hamming":
                values = 1 - difference / features
            case "manhattan":
                values = 1 / (1 + difference)
            case "kl":
                values = 1 / (1 + (1 - SMOOTHING) * (norms + other_norms - cross).clamp(min=0))
            case _:
                values = cross
        weight = (shared > 0).float() if self.similarity in RATIOS else shared / _nonzero(shared + h)
        return values.clamp_(min=0).mul_(weight)


@dataclass(frozen=True)
class Sums:
    """Sums of profiles: Σx, and the product of its two encodings (‖x‖² for most measures)."""

    total: Tensor
    norm: Tensor


class Profiles:
    """Sparse profiles (N, columns) of the users or ``of_items`` of ``pairs``, for comparison with dense blocks."""

    def __init__(self, pairs: Pairs, measure: NeighbourConfig, *, of_items: bool) -> None:
        row, matrix = (pairs.item, pairs.by_item) if of_items else (pairs.user, pairs.matrix)
        self.shape = (pairs.width, pairs.users) if of_items else (pairs.users, pairs.width)
        self.measure, self.features = measure, pairs.users if of_items else pairs.width - 1
        x = measure.values(pairs.count)
        total = torch.zeros(self.shape[0], device=x.device).index_add_(0, row, x)
        first, second = measure.encode(x, total[row], self.features)
        self.sums = Sums(total, torch.zeros_like(total).index_add_(0, row, first * second))
        self._first, self._second = matrix(first), matrix(second) if measure.similarity == "kl" else None
        counts_shared = measure.profile == "binary" and measure.similarity not in ("bhattacharyya", "kl")
        self._support = None if counts_shared else matrix(torch.ones_like(x))

    def similarities(self, counts_BF: Tensor) -> Tensor:
        """Return similarities (N, B) of every profile to every row of ``counts_BF``."""
        x = self.measure.values(counts_BF)
        total = x.sum(1)
        first, second = self.measure.encode(x, total[:, None], self.features)
        cross = self._first @ second.T
        if self._second is not None:
            cross += self._second @ first.T
        shared = cross if self._support is None else self._support @ (counts_BF > 0).float().T
        sums = Sums(total, (first * second).sum(1))
        return self.measure.combine(cross, shared, self.sums, sums, self.features)


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp(min=1e-12)
