"""Markov: first-order Markov chain over items, smoothed by popularity.

Papers: Shani, Heckerman, Brafman, An MDP-Based Recommender System, JMLR 6, 2005; smoothing of Zhai, Lafferty, A Study
of Smoothing Methods for Language Models Applied to Information Retrieval, TOIS 22, 2004 (doi 10.1145/984321.984322).

P(j | i) = (c_ij + μ p_j) / (c_i + μ) with c_ij the number of times that item j follows item i, c_i their sum over j,
and p_j = (n_j + 1) / (N + I) the share of item j in all N events: Dirichlet smoothing with the popularity of items as
the background.

The score is the log-probability. Users without history, and all users of a training set without transitions, get the
items by popularity.

Differences: smoothing by popularity in place of the paper's skipping, clustering and mixture of orders; no rewards.
With ``last`` above 1, the probability is the mean of those after each of the latest items, weighted by ``decay``: a
mixture of first-order chains, which needs no counts of longer contexts.

Shapes: B batch, T time, I items, E edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.transition_graph import last_known_items, load_matrix, store_matrix, transition_counts
from recpipe.models.recommender import ClosedForm


class Markov(ClosedForm):
    """Markov chain: scores items by the log-probability that they follow the latest ones."""

    @dataclass(frozen=True)
    class Config:
        """Settings of smoothing and of the mixture of latest items.

        ``smoothing``: μ, number of transitions that the background counts as. ``last``: latest items that are read.
        ``decay``: weight of an item relative to the one after it; no effect for ``last: 1``.
        """

        smoothing: float = 10.0
        last: int = 1
        decay: float = 0.5

        def __post_init__(self) -> None:
            check_at_least(1, self, "last")
            if self.smoothing <= 0:
                raise ValueError(f"smoothing is {self.smoothing}; it must be greater than 0, such as 10")
            if not 0 < self.decay <= 1:
                raise ValueError(f"decay is {self.decay}; it must be more than 0 and at most 1")

    probabilistic = True
    takes_weights = True
    config: Config
    offsets: Tensor
    following: Tensor
    counts: Tensor
    background: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("offsets", torch.zeros(n_items + 2, dtype=torch.int64))
        self.register_buffer("following", torch.zeros(0, dtype=torch.int32))  # (E,) items, by the item that they follow
        self.register_buffer("counts", torch.zeros(0))  # (E,)
        background = torch.full((n_items + 1,), 1 / n_items)
        background[0] = 0.0
        self.register_buffer("background", background)  # p (I + 1,)

    def fit(self, train: Sequences) -> None:
        """Count the transitions of training as a sparse matrix of E edges, and the popularity (I + 1,) of items."""
        transitions = transition_counts(train, self.n_items)
        self.offsets, self.following, self.counts = store_matrix(transitions, self.device)
        events = np.bincount(train.items, train.weights, minlength=self.n_items + 1) + 1.0
        events[0] = 0.0
        self.background = torch.from_numpy((events / events.sum()).astype(np.float32)).to(self.device)
        self._cache = None

    def score(self, batch: Batch) -> Tensor:
        """Return log-probabilities (B, I + 1); column 0 is -inf."""
        chain, share, log_background = self._chain()
        items_BL = last_known_items(batch.items.cpu(), self.config.last).numpy()
        weight_BL = np.where(items_BL > 0, self.config.decay ** np.arange(items_BL.shape[1]), 0.0)
        weight_BL[:, 0] += weight_BL.sum(1) == 0  # users without history: row 0, which has no transitions
        weight_BL /= weight_BL.sum(1, keepdims=True)
        row = np.repeat(np.arange(len(items_BL)), items_BL.shape[1])
        mixture = csr_matrix((weight_BL.ravel(), (row, items_BL.ravel())), (len(items_BL), self.n_items + 1)) @ chain
        smooth_B = (weight_BL * share[items_BL]).sum(1)
        row, item = np.repeat(np.arange(len(items_BL)), np.diff(mixture.indptr)), mixture.indices
        seen = np.log(mixture.data + smooth_B[row] * np.exp(log_background[item]))
        scores = (np.log(smooth_B)[:, None].astype(np.float32)) + log_background.astype(np.float32)
        scores[row, item] = seen
        return torch.from_numpy(scores).to(batch.items.device)

    def _chain(self) -> tuple[csr_matrix, np.ndarray, np.ndarray]:
        """Return c_ij / (c_i + μ) (I + 1, I + 1), the background's share μ / (c_i + μ) (I + 1,), and ln p (I + 1,)."""
        if self._cache is None:
            counts = load_matrix(self.offsets, self.following, self.counts).astype(np.float64)
            total = np.asarray(counts.sum(1)).ravel() + self.config.smoothing
            counts.data /= np.repeat(total, np.diff(counts.indptr))
            with np.errstate(divide="ignore"):  # padding
                log_background = np.log(self.background.cpu().numpy().astype(np.float64))
            self._cache = counts, self.config.smoothing / total, log_background
        chain, share, log_background = self._cache
        return chain, share, log_background
