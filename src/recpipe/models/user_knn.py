"""UserKNN: training users with the most similar histories vote for their items.

Paper: Herlocker, Konstan, Borchers, Riedl, An Algorithmic Framework for Performing Collaborative Filtering, SIGIR 1999
(doi 10.1145/312624.312682).

The training users most similar to a history vote for their items, weighted by similarity; the bundle contains their
events.

Differences: there are no ratings, and so no deviations from a user's mean; a training user is his own neighbour, since
histories are anonymous (this matters only where seen items may be recommended). Where events have weights, a vote
counts by the largest weight of the pair.

Shapes: U users, I items, B batch, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import (
    DENSE,
    NeighbourConfig,
    Pairs,
    Profiles,
    history_values,
    pair_values,
    user_item_pairs,
)
from recpipe.models.recommender import ClosedForm


class UserKNN(ClosedForm):
    """User-to-user kNN: scores items by the similarities of the neighbours who have them."""

    @dataclass(frozen=True)
    class Config(NeighbourConfig):
        """Settings of similarity and neighbourhood; the profile of a user is his items."""

    takes_weights = True
    config: Config
    offsets: Tensor
    items: Tensor
    counts: Tensor
    weights: Tensor | None

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("offsets", torch.zeros(1, dtype=torch.int64))  # (U + 1,)
        self.register_buffer("items", torch.zeros(0, dtype=torch.int32))  # (N,) distinct items of each user
        self.register_buffer("counts", torch.zeros(0))  # (N,)
        self.register_buffer("weights", None)  # (N,) where events have weights

    def fit(self, train: Sequences) -> None:
        """Store the distinct items of every training user in CSR layout."""
        pairs = user_item_pairs(train, self.n_items, self.device)
        lengths = torch.bincount(pairs.user, minlength=pairs.users)
        self.offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.items, self.counts, self.weights, self._cache = pairs.item.int(), pairs.count, pairs.weight, None

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Load a state dict {name: tensor}, with or without weights of events."""
        self.weights = torch.zeros_like(self.counts) if "weights" in tensors else None
        super().load_tensors(tensors)

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): the similarities of the neighbours who have an item, summed."""
        profiles, votes = self._matrices()
        x, scores = csr_matrix(history_values(batch, self.n_items, self.config.profile).cpu().numpy()), []
        step = max(DENSE // max(profiles.matrix.shape), 1)
        for first in range(0, x.shape[0], step):
            similarities = torch.from_numpy(profiles.similarities(x[first : first + step]).toarray())  # (part, U)
            values, users = torch.topk(similarities, min(self.config.neighbours, similarities.shape[1]), dim=1)
            row = np.repeat(np.arange(len(users)), users.shape[1])
            weights = csr_matrix((values.flatten().numpy(), (row, users.flatten().numpy())), similarities.shape)
            scores.append(torch.from_numpy((weights @ votes).toarray()))
        return torch.cat(scores).to(batch.items.device)

    def _matrices(self) -> tuple[Profiles, csr_matrix]:
        """Profiles of the users, and the matrix (U, I + 1) of their votes."""
        if self._cache is None:
            offsets, items, counts = self.offsets.cpu(), self.items.cpu().long(), self.counts.cpu()
            owner = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
            weights = None if self.weights is None else self.weights.cpu()
            pairs = Pairs(owner, items, counts, len(offsets) - 1, self.n_items + 1, weights)
            values = pair_values(counts, weights, "binary").numpy()
            votes = csr_matrix((values, (owner.numpy(), items.numpy())), (pairs.users, pairs.width))
            self._cache = Profiles(pairs, self.config, of_items=False), votes
        profiles, votes = self._cache
        return profiles, votes
