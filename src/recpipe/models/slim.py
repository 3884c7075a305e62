"""SLIM: sparse linear item-to-item model of the whole history, with weights of at least 0.

Paper: Ning, Karypis, SLIM: Sparse Linear Methods for Top-N Recommender Systems, ICDM 2011 (doi 10.1109/ICDM.2011.134).

Column w_j of W minimises ½‖x_j − X w_j‖² + ½ λ₂ ‖w_j‖² + λ₁ ‖w_j‖₁ with w_j ≥ 0 and w_jj = 0 (eq. 4), for the user ×
item matrix X of U users; a user with row x is scored by x W. As in scikit-learn's ElasticNet, λ₁ = U · alpha · l1_ratio
and λ₂ = U · alpha · (1 − l1_ratio).

Solved by coordinate descent on the Gram matrix XᵀX for many target items at once, each with an active set of source
items: the support of its solution, and the items that the optimality conditions say should join it, until none does.
The result is that of coordinate descent over all items.

Differences: only the ``neighbours`` largest weights of a target item are stored. X holds events, scaled by ``scaling``;
where events have weights, binary is the largest weight of a pair.

Shapes: I items, B batch, M target items of a block, A size of active sets.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix, vstack
from torch import Tensor

from recpipe.config import check_at_least, check_choices
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import history_values, user_item_pairs
from recpipe.layers.item_pairs import check_memory, gram_matrix, user_item_matrix
from recpipe.layers.transition_graph import load_matrix, store_matrix
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress

log = logging.getLogger(__name__)

BYTES = 4  # of an entry of the Gram matrix
TARGETS = 512  # M
JOINING = 32  # source items that may join the active set of a target item at first; later as many as it has
PAIRS = 1 << 26  # elements of the Gram matrices of active sets that are in memory at once, 256 MiB
ROUNDS = 100  # of active sets
FIRST_SWEEPS, SWEEPS = 8, 200  # of coordinate descent over an active set, while sets grow and for the solution
TOLERANCE = 1e-5  # largest change of a weight in the last sweep
SLACK = 1e-4  # by which an optimality condition may be violated, relative to its terms


class SLIM(ClosedForm):
    """Sparse linear model of the whole history with weights of at least 0."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the elastic net.

        ``neighbours``: most weights of a target item. ``scaling``: of X, binary: 1, log: ln(1 + c) for c events, count:
        c. ``memory_gib``: limit of the Gram matrix, 4 I² bytes.
        """

        alpha: float = 0.01
        l1_ratio: float = 0.01
        neighbours: int = 200
        scaling: str = "binary"
        memory_gib: float = 4.0

        def __post_init__(self) -> None:
            check_choices(self, scaling=("binary", "log", "count"))
            check_at_least(1, self, "neighbours")
            for name in ("alpha", "memory_gib"):
                if getattr(self, name) <= 0:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be greater than 0")
            if not 0 < self.l1_ratio <= 1:
                raise ValueError(f"l1_ratio is {self.l1_ratio}; it must be more than 0 and at most 1")

    takes_weights = True
    config: Config
    offsets: Tensor
    targets: Tensor
    weights: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("offsets", torch.zeros(n_items + 2, dtype=torch.int64))  # W in CSR layout, by source item
        self.register_buffer("targets", torch.zeros(0, dtype=torch.int32))
        self.register_buffer("weights", torch.zeros(0))

    def fit(self, train: Sequences) -> None:
        """Fit the sparse weights (I + 1, I + 1) to training events. Raises ValueError if XᵀX exceeds ``memory_gib``."""
        check_memory(self.n_items, BYTES, self.config.memory_gib, model="slim")
        pairs, parts = user_item_pairs(train, self.n_items, torch.device("cpu")), []
        gram = torch.from_numpy(gram_matrix(user_item_matrix(pairs, self.config.scaling), np.float32))
        strength = pairs.users * self.config.alpha
        lambda1, lambda2 = strength * self.config.l1_ratio, strength * (1 - self.config.l1_ratio)
        with progress(self.n_items, "train", unit="items") as bar:
            for targets_M in torch.arange(self.n_items).split(TARGETS):
                sources_MA, weights_MA = elastic_net(gram, targets_M, lambda1, lambda2)
                parts.append(self._largest(sources_MA, weights_MA))
                bar.add(len(targets_M))
        by_target = vstack([csr_matrix((1, self.n_items + 1)), *parts])  # (I + 1, I + 1), row 0 is padding
        weights = by_target.T.tocsr()
        weights.sort_indices()
        self.offsets, self.targets, self.weights = store_matrix(weights, self.device)
        self._cache = None

    def _largest(self, sources_MA: Tensor, weights_MA: Tensor) -> csr_matrix:
        """Return the largest weights of target items as a matrix (M, I + 1)."""
        values, place = torch.topk(weights_MA, min(self.config.neighbours, weights_MA.shape[1]), dim=1)
        row, column = np.nonzero(values.numpy())
        items = sources_MA.gather(1, place).numpy()[row, column] + 1
        return csr_matrix((values.numpy()[row, column], (row, items)), (len(values), self.n_items + 1))

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): the weights of a user's distinct items times their scaled counts, summed."""
        if self._cache is None:
            self._cache = load_matrix(self.offsets, self.targets, self.weights)
        x = csr_matrix(history_values(batch, self.n_items, self.config.scaling).cpu().numpy())
        return torch.from_numpy((x @ self._cache).toarray()).to(batch.items.device)


def elastic_net(gram: Tensor, targets_M: Tensor, lambda1: float, lambda2: float) -> tuple[Tensor, Tensor]:
    """Return source items (M, A) int64 and their weights (M, A) ≥ 0 that solve eq. 4 for ``targets_M``; 0 for none.

    ``gram`` is XᵀX (I, I).
    """
    correlation_MI = gram[targets_M]
    weights_MI, is_active_MI = torch.zeros_like(correlation_MI), torch.zeros_like(correlation_MI, dtype=torch.bool)
    sweeps, width = FIRST_SWEEPS, JOINING
    for _ in range(ROUNDS):
        joins_MI = _joining(gram, targets_M, weights_MI, is_active_MI, lambda1, width)
        if not joins_MI.any():
            if sweeps == SWEEPS:
                break
            sweeps = SWEEPS  # the sets may change once more by the exact solution
        sources_MA, is_source_MA = _padded(is_active_MI | joins_MI)
        correlation_MA, start_MA = (values.gather(1, sources_MA) for values in (correlation_MI, weights_MI))
        solved = _coordinate_descent(gram, sources_MA, is_source_MA, correlation_MA, start_MA, lambda1, lambda2, sweeps)
        weights_MI = torch.zeros_like(weights_MI).scatter_add_(1, sources_MA, solved)
        is_active_MI, width, sweeps = weights_MI > 0, max(JOINING, sources_MA.shape[1]), min(2 * sweeps, SWEEPS)
    else:
        log.warning("SLIM: active sets of %s items still change after %s rounds", int(joins_MI.any(1).sum()), ROUNDS)
    sources_MA, is_source_MA = _padded(weights_MI > 0)
    return sources_MA, torch.where(is_source_MA, weights_MI.gather(1, sources_MA), 0.0)


def _joining(
    gram: Tensor, targets_M: Tensor, weights_MI: Tensor, is_active_MI: Tensor, lambda1: float, width: int
) -> Tensor:
    """Mark up to ``width`` items (M, I) per target that are not active and whose weight should be greater than 0."""
    correlation_MI = gram[targets_M]
    products_MI = torch.from_numpy(csr_matrix(weights_MI.numpy()) @ gram.numpy())
    slope_MI = correlation_MI - products_MI - lambda1  # of the objective, downwards, where the weight is 0
    slope_MI[is_active_MI] = -torch.inf
    slope_MI.scatter_(1, targets_M[:, None], -torch.inf)
    values, items = torch.topk(slope_MI, min(width, slope_MI.shape[1]), dim=1)
    slack_M = SLACK * (correlation_MI.amax(1) + lambda1)
    return torch.zeros_like(is_active_MI).scatter_(1, items, values > slack_M[:, None])


def _padded(mask_MI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns (M, A) where ``mask_MI`` is True, ascending and padded with 0, and True where there is one."""
    counts = mask_MI.sum(1)
    width = max(int(counts.max()), 1)
    is_there = torch.arange(width) < counts[:, None]
    columns = torch.zeros(is_there.shape, dtype=torch.int64)
    columns[is_there] = mask_MI.nonzero()[:, 1]
    return columns, is_there


def _coordinate_descent(
    gram: Tensor, sources_MA: Tensor, is_source_MA: Tensor, correlation_MA: Tensor, weights_MA: Tensor,
    lambda1: float, lambda2: float, sweeps: int,
) -> Tensor:  # fmt: skip
    """Return the weights (M, A) of active sets, starting at ``weights_MA``; those of padding stay 0."""
    parts, size = [], max(PAIRS // sources_MA.shape[1] ** 2, 1)
    for sources, is_source, correlation, start in zip(
        *(values.split(size) for values in (sources_MA, is_source_MA, correlation_MA, weights_MA)), strict=True
    ):
        pairs_AMA = torch.stack([gram[place[:, None], sources] for place in sources.T])  # row a: of source a
        diagonal_AM = pairs_AMA.diagonal(dim1=0, dim2=2).T
        weights = torch.where(is_source, start, 0.0)
        for _ in range(sweeps):
            before = weights.clone()
            for a in range(sources.shape[1]):
                rest = correlation[:, a] - torch.linalg.vecdot(pairs_AMA[a], weights) + diagonal_AM[a] * weights[:, a]
                weights[:, a] = ((rest - lambda1) / (diagonal_AM[a] + lambda2)).clamp_(min=0) * is_source[:, a]
            if (weights - before).abs().max() <= TOLERANCE:
                break
        parts.append(weights)
    return torch.cat(parts)
