"""Item-to-item kNN: Sarwar et al., Item-based collaborative filtering, WWW 2001; Deshpande & Karypis, TOIS 2004.

Deviation: there are no ratings; a user's score of an item is the sum of its similarities to the distinct items of the
history. I items, U users, B batch, T time, K neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, Profiles, Similarity, counts_of, csr, pairs_of
from recpipe.models.recommender import Scorer
from recpipe.progress import progress


class ItemKNN(Scorer):
    """An item of the history votes for the ``neighbours`` items that are most similar to it."""

    @dataclass(frozen=True)
    class Config:
        """``similarity``, ``profile`` and ``shrinkage`` are defined in recpipe.layers.interactions, an item's profile
        being its users; ``last`` uses only that many of a user's latest events when recommending, null the window.
        """

        neighbours: int = 100
        similarity: str = "cosine"
        profile: str = "binary"
        shrinkage: float = 10.0
        last: int | None = None

        def __post_init__(self) -> None:
            Similarity(self.similarity, self.profile, self.shrinkage)
            if self.neighbours < 1:
                raise ValueError(f"item_knn.neighbours is {self.neighbours}; it must be at least 1")
            if self.last is not None and self.last < 1:
                raise ValueError(f"item_knn.last is {self.last}; it must be at least 1, or null")

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
        config, pairs = self.config, pairs_of(train, self.n_items, self.device)
        measure = Similarity(config.similarity, config.profile, config.shrinkage)
        shape = (self.n_items + 1, pairs.users)
        profiles = Profiles(
            pairs.item, pairs.user, pairs.count, shape=shape, features=pairs.users, measure=measure
        )
        found = []
        with progress(shape[0], "train", unit="items") as bar:
            for items in torch.arange(shape[0], device=self.device).split(max(DENSE // max(shape), 1)):
                chosen = (pairs.item >= items[0]) & (pairs.item <= items[-1])
                block = torch.zeros(len(items), shape[1], device=self.device)
                block[pairs.item[chosen] - items[0], pairs.user[chosen]] = pairs.count[chosen]
                together = profiles.similarities(block).T  # (block, I + 1)
                together[torch.arange(len(items), device=items.device), items] = 0.0
                found.append(torch.topk(together, min(config.neighbours, self.n_items), dim=1))
                bar.add(len(items))
        self.similarity = torch.cat([part.values for part in found])
        self.near = torch.cat([part.indices for part in found])
        self._matrix = None

    def score(self, batch: Batch) -> Tensor:
        items_BT = batch.items
        if self.config.last is not None:
            place = torch.arange(items_BT.shape[1], device=items_BT.device)
            items_BT = torch.where(place >= batch.lengths[:, None] - self.config.last, items_BT, 0)
        held = (counts_of(items_BT, self.n_items) > 0).float()
        if self._matrix is None or self._matrix.device != held.device:
            self._matrix = self._sparse()
        return (self._matrix @ held.T).T.contiguous()

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self._matrix = None

    def _sparse(self) -> Tensor:
        """(I + 1, I + 1): row = candidate, column = item of the history."""
        size = self.n_items + 1
        column = torch.arange(size, device=self.near.device)[:, None].expand_as(self.near)
        return csr(self.near.flatten(), column.flatten(), self.similarity.flatten(), (size, size))
