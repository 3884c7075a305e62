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

All are computed from products of sparse matrices, on the CPU, and sums per profile. For kl,
J = (1 − λ) Σ (p_x − p_y)(L_x − L_y) with L = ln(p̃ F / λ), which is 0 wherever p is.

Events may have weights. The features of a pair are then the largest weight of its events (binary) or their sum (count);
measures of sets read ‖x‖² for |x|, x·y for c, so that jaccard is the Tanimoto coefficient. A weight of 0 is no event.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences

SETS = ("jaccard", "hamming", "manhattan")
RATIOS = ("cosine", "jaccard", "correlation")  # shrunk in the denominator, the others by w
SIMILARITIES = ("cosine", "correlation", *SETS, "euclidean", "bhattacharyya", "kl")
PROFILES = ("binary", "count")
SMOOTHING = 0.1
DENSE = 1 << 24  # elements of a block of similarities: 64 MiB, in a product that shares all pairs about 1 GiB


@dataclass(frozen=True)
class Pairs:
    """Distinct (user, item) pairs, sorted by user and item; items count from 1."""

    user: Tensor  # (N,) int64
    item: Tensor  # (N,) int64
    count: Tensor  # (N,) float32, number of events of the pair, or the sum of their weights
    users: int
    width: int  # I + 1
    weight: Tensor | None = None  # (N,) float32, largest weight of the pair's events; None where events have none

    def __len__(self) -> int:
        return len(self.user)

    def matrix(self, values: Tensor) -> Tensor:
        """Return ``values`` (N,) as a CSR matrix (U, I + 1)."""
        return csr(self.user, self.item, values, (self.users, self.width))

    def relative_weight(self) -> Tensor | None:
        """Return weights (N,) of mean 1; None where all are equal."""
        if self.weight is None or len(self) == 0 or self.weight.min() == self.weight.max():
            return None
        return (self.weight / self.weight.double().mean()).float()


def user_item_pairs(train: Sequences, n_items: int, device: torch.device) -> Pairs:
    """Return the distinct pairs of all events, without events of weight 0."""
    keys = np.repeat(np.arange(len(train), dtype=np.int64), train.lengths) * (n_items + 1) + train.items
    weight = None
    if train.weights is None:
        unique, counts = np.unique(keys, return_counts=True)
    else:
        is_event = train.weights > 0
        unique, place = np.unique(keys[is_event], return_inverse=True)
        counts = np.bincount(place, train.weights[is_event], minlength=len(unique))
        largest = np.zeros(len(unique), np.float32)
        np.maximum.at(largest, place, train.weights[is_event])
        weight = torch.from_numpy(largest).to(device)
    pairs, count = torch.from_numpy(unique).to(device), torch.from_numpy(counts.astype(np.float32)).to(device)
    return Pairs(pairs // (n_items + 1), pairs % (n_items + 1), count, len(train), n_items + 1, weight)


def item_counts(items_BT: Tensor, n_items: int, weights_BT: Tensor | None = None) -> Tensor:
    """Return the number of events (B, I + 1), or their summed weights, of each item in right-padded histories.

    Column 0 is 0.
    """
    counts = torch.zeros(items_BT.shape[0], n_items + 1, device=items_BT.device)
    values = (items_BT > 0).float() if weights_BT is None else weights_BT * (items_BT > 0)
    return counts.scatter_add_(1, items_BT, values)


def history_values(batch: Batch, n_items: int, scaling: str) -> Tensor:
    """Return ``pair_values`` (B, I + 1) of the items of histories, 0 for others."""
    counts, weights = item_counts(batch.items, n_items, batch.weights), None
    if batch.weights is not None:
        weights = largest_weights(batch.items, batch.weights, n_items)
    return pair_values(counts, weights, scaling)


def distinct_items(batch: Batch, n_items: int, scaling: str) -> tuple[Tensor, Tensor]:
    """Return the items of histories in ascending order (B, T), and their ``pair_values`` (B, T).

    The value is 0 for padding and for an item that stands before, so that each counts once.
    """
    values, items_BT = history_values(batch, n_items, scaling), batch.items.sort(1).values
    repeats = F.pad(items_BT[:, 1:] == items_BT[:, :-1], (1, 0))
    return items_BT, values.gather(1, items_BT).masked_fill(repeats, 0.0)  # column 0 of the values is 0


def largest_weights(items_BT: Tensor, weights_BT: Tensor, n_items: int) -> Tensor:
    """Return the largest weight (B, I + 1) of the events of each item in right-padded histories; column 0 is 0."""
    largest = torch.zeros(items_BT.shape[0], n_items + 1, device=items_BT.device)
    return largest.scatter_reduce_(1, items_BT, weights_BT * (items_BT > 0), "amax")


def pair_values(counts: Tensor, weights: Tensor | None, scaling: str) -> Tensor:
    """Return the entries (of any shape) of a user × item matrix, 0 where the count is.

    With c the sum of the weights of the pair's events and w the largest (without weights c their number, w = 1):
    binary: w; count: c; log: ln(1 + c); tfidf: w (1 + ln(c / w)). ``counts`` (...) are c, ``weights`` (...) are w.
    """
    if scaling == "count":
        return counts
    if scaling == "log":
        return counts.log1p()
    largest = (counts > 0).float() if weights is None else weights
    return largest * (1 + (counts / _nonzero(largest)).clamp(min=1).log()) if scaling == "tfidf" else largest


def csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Build a CSR matrix from ``values`` (n,) at ``row`` (n,) and ``column`` (n,); equal positions are added up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        coo = torch.sparse_coo_tensor(torch.stack([row, column]), values, shape, check_invariants=False)
        return coo.coalesce().to_sparse_csr()


class PairBatches:
    """Batches of all pairs in random order: users (n,), items (n,), uniform negatives (n, negatives), weights (n,).

    Weights have mean 1 over all pairs; None where pairs have the same.
    A negative that the user has an event of is drawn again up to ``TRIES`` times; users of all items may get one.
    """

    TRIES = 8

    def __init__(self, pairs: Pairs, *, size: int, negatives: int, generator: torch.Generator) -> None:
        self.pairs, self.size, self.generator = pairs, size, generator
        self._owner = pairs.user[:, None].expand(-1, negatives) * pairs.width
        self._keys = pairs.user * pairs.width + pairs.item

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
        negatives, weights = self._negatives(), self.pairs.relative_weight()
        order = torch.randperm(len(self.pairs), generator=self.generator).to(self._keys.device)
        for batch in order.split(self.size):
            weight = None if weights is None else weights[batch]
            yield self.pairs.user[batch], self.pairs.item[batch], negatives[batch], weight

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
    """Settings of neighbourhood models, and their similarity measure, see the docstring of this module.

    Raises ValueError for a similarity of sets with ``profile: count``.
    """

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

    def encode(self, x: Tensor, total: Tensor, features: int) -> tuple[Tensor, Tensor]:
        """Return the two values (n,) per feature that the measure multiplies; ``total`` (n,) is the sum Σx of ``x``."""
        p = x / _nonzero(total)
        if self.similarity == "bhattacharyya":
            return p.sqrt(), p.sqrt()
        if self.similarity == "kl":
            return p, (p * ((1 - SMOOTHING) * features / SMOOTHING)).log1p()
        return x, x

    def combine(self, cross: Tensor, shared: Tensor, rows: Sums, columns: Sums, features: int) -> Tensor:
        """Return similarities of pairs of profiles from products, numbers of common features and sums, all (n,)."""
        norms, other_norms, h = rows.norm, columns.norm, self.shrinkage
        difference = (norms + other_norms - 2 * cross).clamp(min=0)
        match self.similarity:
            case "cosine":
                values = cross / _nonzero((norms * other_norms).sqrt() + h)
            case "jaccard":
                values = cross / _nonzero(norms + other_norms - cross + h)
            case "correlation":
                mean, other_mean = rows.total / features, columns.total / features
                variance = (norms - rows.total * mean) * (other_norms - columns.total * other_mean)
                covariance = cross - rows.total * other_mean
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

    def at(self, index: Tensor) -> Sums:
        """Return the sums of the profiles ``index`` (n,)."""
        return Sums(self.total[index], self.norm[index])


class Profiles:
    """Sparse profiles (N, F) of the users or ``of_items`` of ``pairs``, for comparison with blocks of others."""

    def __init__(self, pairs: Pairs, measure: NeighbourConfig, *, of_items: bool) -> None:
        row, column = (pairs.item, pairs.user) if of_items else (pairs.user, pairs.item)
        shape = (pairs.width, pairs.users) if of_items else (pairs.users, pairs.width)
        x = pair_values(pairs.count, pairs.weight, measure.profile)
        self.measure, self.features = measure, pairs.users if of_items else pairs.width - 1
        self.matrix = csr_matrix((x.numpy(), (row.numpy(), column.numpy())), shape)
        is_set = measure.profile == "binary" and pairs.weight is None
        self._counts_shared = is_set and measure.similarity not in ("bhattacharyya", "kl")
        first, second, self.sums = self._encode(self.matrix)
        self._first, self._second, self._support = first.T.tocsr(), second.T.tocsr(), _support(self.matrix).T.tocsr()

    def similarities(self, x_BF: csr_matrix) -> csr_matrix:
        """Return similarities (B, N) of the profiles ``x_BF`` to all profiles, of those with common features."""
        first, second, sums = self._encode(x_BF)
        cross = second @ self._first
        if self.measure.similarity == "kl":
            cross = cross + first @ self._second
        cross.sort_indices()
        row, column = (torch.from_numpy(index.astype(np.int64)) for index in (_rows(cross), cross.indices))
        values = torch.from_numpy(cross.data)
        shared = values if self._counts_shared else torch.from_numpy(self._number_shared(x_BF, cross))
        cross.data = self.measure.combine(values, shared, self.sums.at(column), sums.at(row), self.features).numpy()
        return cross

    def _number_shared(self, x_BF: csr_matrix, cross: csr_matrix) -> np.ndarray:
        """Numbers of common features at the entries of ``cross``."""
        shared = _support(x_BF) @ self._support
        if shared.nnz != cross.nnz:  # products that are 0 in float32
            shared = shared.multiply(_support(cross)).tocsr()
        shared.sort_indices()
        return np.asarray(shared.data)

    def _encode(self, x: csr_matrix) -> tuple[csr_matrix, csr_matrix, Sums]:
        """The two encodings of profiles (n, F), and their sums."""
        row, data = torch.from_numpy(_rows(x).astype(np.int64)), torch.from_numpy(x.data)
        total = torch.zeros(x.shape[0]).index_add_(0, row, data)
        first, second = self.measure.encode(data, total[row], self.features)
        norm = torch.zeros_like(total).index_add_(0, row, first * second)
        matrices = (csr_matrix((values.numpy(), x.indices, x.indptr), x.shape) for values in (first, second))
        return *matrices, Sums(total, norm)


def _rows(x: csr_matrix) -> np.ndarray:
    """Row (n,) of each entry."""
    return np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))


def _support(x: csr_matrix) -> csr_matrix:
    """1 at every entry of ``x``."""
    return csr_matrix((np.ones_like(x.data), x.indices, x.indptr), x.shape)


def _nonzero(x: Tensor) -> Tensor:
    return x.clamp(min=1e-12)
