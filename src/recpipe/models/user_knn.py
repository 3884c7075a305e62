"""User-to-user kNN: Herlocker et al., An Algorithmic Framework for Performing Collaborative Filtering, SIGIR 1999.

The users of training who are most similar to the history that is asked about vote for their items, each with its
similarity. The bundle holds their events, so it serves anyone, known or new, by history alone.

Deviations: there are no ratings; a known user is a neighbour of himself, since a history carries no name (a vote for
his own past, which matters only where seen items may be recommended again). U users, I items, B batch, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, Pairs, Profiles, Similarity, counts_of, pairs_of
from recpipe.models.recommender import Scorer


class UserKNN(Scorer):
    """The score of an item is the sum of the similarities of those ``neighbours`` who had it."""

    @dataclass(frozen=True)
    class Config:
        """``similarity``, ``profile`` and ``shrinkage`` are defined in recpipe.layers.interactions, a user's profile
        being his items.
        """

        neighbours: int = 100
        similarity: str = "cosine"
        profile: str = "binary"
        shrinkage: float = 10.0

        def __post_init__(self) -> None:
            Similarity(self.similarity, self.profile, self.shrinkage)
            if self.neighbours < 1:
                raise ValueError(f"user_knn.neighbours is {self.neighbours}; it must be at least 1")

    closed_form = True
    probabilistic = False
    config: Config
    offsets: Tensor
    items: Tensor
    counts: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("offsets", torch.zeros(1, dtype=torch.int64))  # (U + 1,)
        self.register_buffer(
            "items", torch.zeros(0, dtype=torch.int32)
        )  # (N,) distinct items of user after user
        self.register_buffer("counts", torch.zeros(0))  # (N,)
        self._held: tuple[Profiles, Tensor] | None = None

    def fit(self, train: Sequences) -> None:
        pairs = pairs_of(train, self.n_items, self.device)
        each = torch.bincount(pairs.user, minlength=pairs.users)
        self.offsets = torch.cat([each.new_zeros(1), each.cumsum(0)])
        self.items, self.counts, self._held = pairs.item.int(), pairs.count, None

    def score(self, batch: Batch) -> Tensor:
        profiles, votes = self._sparse()
        counts = counts_of(batch.items, self.n_items)
        step = max(DENSE // max(profiles.shape), 1)
        return torch.cat([self._voted(profiles, votes, part) for part in counts.split(step)])

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self._held = None

    def _voted(self, profiles: Profiles, votes: Tensor, counts: Tensor) -> Tensor:
        near = profiles.similarities(counts)  # (U, B)
        best = torch.topk(near.T.contiguous(), min(self.config.neighbours, len(near)), dim=1)
        kept = torch.zeros_like(near).scatter_(0, best.indices.T, best.values.T)
        return (votes @ kept).T.contiguous()

    def _sparse(self) -> tuple[Profiles, Tensor]:
        """The users' profiles, and who (column) votes for what (row)."""
        if self._held is None or self._held[1].device != self.items.device:
            config, users = self.config, len(self.offsets) - 1
            owner = torch.arange(users, device=self.items.device).repeat_interleave(self.offsets.diff())
            pairs = Pairs(owner, self.items.long(), self.counts, users, self.n_items + 1)
            measure = Similarity(config.similarity, config.profile, config.shrinkage)
            profiles = Profiles(
                owner,
                pairs.item,
                pairs.count,
                shape=(users, pairs.width),
                features=self.n_items,
                measure=measure,
            )
            self._held = profiles, pairs.by_item(torch.ones_like(pairs.count))
        return self._held
