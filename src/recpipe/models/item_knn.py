"""Item-to-item kNN: Sarwar et al., Item-based collaborative filtering, WWW 2001; Deshpande & Karypis, TOIS 2004.

Deviation: there are no ratings; the score of an item is the sum of its similarities to the distinct items of the
history. I items, U users, B batch, T time, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, NeighbourConfig, Profiles, csr, item_counts, user_item_pairs
from recpipe.models.recommender import ClosedForm
from recpipe.progress import progress


class ItemKNN(ClosedForm):
    """Scores items by their similarity to the items of the history."""

    @dataclass(frozen=True)
    class Config(NeighbourConfig):
        """The profile of an item is its users. ``last``: number of latest events that are used; null: the window."""

        last: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            check_at_least(1, self, "last")

    config: Config
    near: Tensor
    similarity: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("near", torch.zeros(n_items + 1, 0, dtype=torch.int64))  # (I + 1, K)
        self.register_buffer("similarity", torch.zeros(n_items + 1, 0))

    def fit(self, train: Sequences) -> None:
        pairs = user_item_pairs(train, self.n_items, self.device)
        profiles = Profiles(pairs, self.config, of_items=True)
        neighbours, step = [], max(DENSE // max(profiles.shape), 1)
        with progress(pairs.width, "train", unit="items") as bar:
            for items in torch.arange(pairs.width, device=self.device).split(step):
                in_block = (pairs.item >= items[0]) & (pairs.item <= items[-1])
                block = torch.zeros(len(items), pairs.users, device=self.device)
                block[pairs.item[in_block] - items[0], pairs.user[in_block]] = pairs.count[in_block]
                similarities = profiles.similarities(block).T  # (block, I + 1)
                similarities[torch.arange(len(items), device=items.device), items] = 0.0
                neighbours.append(torch.topk(similarities, min(self.config.neighbours, self.n_items), dim=1))
                bar.add(len(items))
        self.similarity = torch.cat([part.values for part in neighbours])
        self.near, self._cache = torch.cat([part.indices for part in neighbours]), None

    def score(self, batch: Batch) -> Tensor:
        items_BT = batch.items
        if self.config.last is not None:
            position = torch.arange(items_BT.shape[1], device=items_BT.device)
            items_BT = torch.where(position >= batch.lengths[:, None] - self.config.last, items_BT, 0)
        in_history = (item_counts(items_BT, self.n_items) > 0).float()
        if self._cache is None or self._cache.device != in_history.device:
            size = self.n_items + 1  # rows: candidates, columns: items of the history
            column = torch.arange(size, device=self.near.device)[:, None].expand_as(self.near)
            self._cache = csr(self.near.flatten(), column.flatten(), self.similarity.flatten(), (size, size))
        return (self._cache @ in_history.T).T.contiguous()
