"""Item-to-item co-occurrence kNN: Sarwar et al., Item-based collaborative filtering, WWW 2001 (cosine, with shrinkage).

Deviation: interactions are binary; a user's score of an item is the sum of its similarities to the distinct items of
the history. U users, I items, B batch, K neighbours.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import Scorer

DENSE = 1 << 26  # elements of the dense block that one product may make: 256 MiB


class ItemKNN(Scorer):
    """sim(i, j) = users of both / (sqrt(users of i × users of j) + shrinkage); the best are kept per item."""

    @dataclass(frozen=True)
    class Config:
        """``last`` uses only that many of a user's latest events when recommending; null uses the whole window."""

        neighbours: int = 100
        shrinkage: float = 10.0
        last: int | None = None

    closed_form = True
    probabilistic = False
    config: Config
    near: Tensor
    similarity: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("near", torch.zeros(n_items + 1, 0, dtype=torch.int64))  # (I + 1, K)
        self.register_buffer("similarity", torch.zeros(n_items + 1, 0))
        self._matrix: Tensor | None = None

    def fit(self, train: Sequences) -> None:
        size, users = self.n_items + 1, len(train)
        owner = np.repeat(np.arange(users, dtype=np.int64), train.lengths)
        pairs = torch.from_numpy(np.unique(owner * size + train.items))
        user, item = pairs // size, pairs % size
        by_item = _csr(item, user, torch.ones(len(pairs)), (size, users))
        count = torch.bincount(item, minlength=size).float()
        kept = min(self.config.neighbours, self.n_items)
        near, similarity = torch.zeros(size, kept, dtype=torch.int64), torch.zeros(size, kept)
        step = max(DENSE // max(users, size), 1)
        for start in range(0, size, step):
            stop = min(start + step, size)
            chosen = (item >= start) & (item < stop)
            block = torch.zeros(users, stop - start)
            block[user[chosen], item[chosen] - start] = 1.0
            together = (by_item @ block).T  # (block, I + 1) users of both
            together /= (count[start:stop, None] * count).sqrt() + self.config.shrinkage + 1e-12
            together[torch.arange(stop - start), torch.arange(start, stop)] = 0.0
            similarity[start:stop], near[start:stop] = torch.topk(together, kept, dim=1)
        device = self.near.device
        self.near, self.similarity, self._matrix = near.to(device), similarity.to(device), None

    def score(self, batch: Batch) -> Tensor:
        B, T = batch.items.shape
        used = batch.items
        if self.config.last is not None:
            place = torch.arange(T, device=used.device)
            used = torch.where(place >= batch.lengths[:, None] - self.config.last, used, 0)
        held = torch.zeros(B, self.n_items + 1, device=used.device).scatter_(1, used, 1.0)
        held[:, 0] = 0.0
        if self._matrix is None or self._matrix.device != held.device:
            self._matrix = self._sparse()
        return (self._matrix @ held.T).T.contiguous()

    def _sparse(self) -> Tensor:
        """(I + 1, I + 1): row = candidate, column = item of the history."""
        size = self.n_items + 1
        column = torch.arange(size, device=self.near.device)[:, None].expand_as(self.near)
        return _csr(self.near.flatten(), column.flatten(), self.similarity.flatten(), (size, size))


def _csr(row: Tensor, column: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return (
            torch.sparse_coo_tensor(torch.stack([row, column]), values, shape, check_invariants=False)
            .coalesce()
            .to_sparse_csr()
        )
