"""User-to-user kNN: Herlocker et al., An Algorithmic Framework for Performing Collaborative Filtering, SIGIR 1999.

The training users most similar to a history vote for their items, weighted by similarity; the bundle contains their
events. U users, I items, B batch, K neighbours.

Deviations: there are no ratings; a training user is his own neighbour, since histories are anonymous (this matters only
where seen items may be recommended).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, NeighbourConfig, Pairs, Profiles, item_counts, user_item_pairs
from recpipe.models.recommender import ClosedForm


class UserKNN(ClosedForm):
    """Scores items by the similarities of the neighbours who have them."""

    @dataclass(frozen=True)
    class Config(NeighbourConfig):
        """The profile of a user is his items."""

    config: Config
    offsets: Tensor
    items: Tensor
    counts: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("offsets", torch.zeros(1, dtype=torch.int64))  # (U + 1,)
        self.register_buffer("items", torch.zeros(0, dtype=torch.int32))  # (N,) distinct items of each user
        self.register_buffer("counts", torch.zeros(0))  # (N,)

    def fit(self, train: Sequences) -> None:
        pairs = user_item_pairs(train, self.n_items, self.device)
        lengths = torch.bincount(pairs.user, minlength=pairs.users)
        self.offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.items, self.counts, self._cache = pairs.item.int(), pairs.count, None

    def score(self, batch: Batch) -> Tensor:
        profiles, items_of_users = self._matrices()
        scores = []
        for part in item_counts(batch.items, self.n_items).split(max(DENSE // max(profiles.shape), 1)):
            similarities = profiles.similarities(part)  # (U, B)
            best = torch.topk(similarities.T.contiguous(), min(self.config.neighbours, len(similarities)), dim=1)
            weights = torch.zeros_like(similarities).scatter_(0, best.indices.T, best.values.T)
            scores.append((items_of_users @ weights).T.contiguous())
        return torch.cat(scores)

    def _matrices(self) -> tuple[Profiles, Tensor]:
        """Profiles of the users, and the binary matrix (I + 1, U) of their items."""
        if self._cache is None or self._cache[1].device != self.items.device:
            users = len(self.offsets) - 1
            owner = torch.arange(users, device=self.items.device).repeat_interleave(self.offsets.diff())
            pairs = Pairs(owner, self.items.long(), self.counts, users, self.n_items + 1)
            self._cache = Profiles(pairs, self.config, of_items=False), pairs.by_item(torch.ones_like(pairs.count))
        profiles, items_of_users = self._cache
        return profiles, items_of_users
