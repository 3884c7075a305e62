"""Item-to-item kNN: Sarwar et al., Item-based collaborative filtering, WWW 2001; Deshpande & Karypis, TOIS 2004.

Deviation: there are no ratings; the score of an item is the sum of its similarities to the distinct items of the
history, each times its largest weight where events have weights. I items, U users, B batch, T time, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, NeighbourConfig, Profiles, history_values, user_item_pairs
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

    takes_weights = True
    config: Config
    near: Tensor
    similarity: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("near", torch.zeros(n_items + 1, 0, dtype=torch.int64))  # (I + 1, K)
        self.register_buffer("similarity", torch.zeros(n_items + 1, 0))

    def fit(self, train: Sequences) -> None:
        pairs = user_item_pairs(train, self.n_items, torch.device("cpu"))
        profiles, width = Profiles(pairs, self.config, of_items=True), pairs.width
        neighbours, step = [], max(DENSE // width, 1)
        with progress(width, "train", unit="items") as bar:
            for first in range(0, width, step):
                block = profiles.matrix[first : first + step]
                similarities = torch.from_numpy(profiles.similarities(block).toarray())  # (block, I + 1)
                similarities[torch.arange(len(similarities)), first + torch.arange(len(similarities))] = 0.0
                neighbours.append(torch.topk(similarities, min(self.config.neighbours, self.n_items), dim=1))
                bar.add(len(similarities))
        self.similarity = torch.cat([part.values for part in neighbours]).to(self.device)
        self.near = torch.cat([part.indices for part in neighbours]).to(self.device)

    def score(self, batch: Batch) -> Tensor:
        if self.config.last is not None:
            position = torch.arange(batch.items.shape[1], device=batch.items.device)
            is_read = position >= batch.lengths[:, None] - self.config.last
            batch = replace(batch, items=torch.where(is_read, batch.items, 0))
        values, items_BT = history_values(batch, self.n_items, "binary"), batch.items.sort(1).values
        repeats = F.pad(items_BT[:, 1:] == items_BT[:, :-1], (1, 0))
        weights_BT = values.gather(1, items_BT).masked_fill(repeats, 0.0)  # column 0 of the values is 0
        scores = torch.zeros_like(values)
        size = max(DENSE // max(items_BT.shape[1] * self.near.shape[1], 1), 1)
        parts = (x.split(size) for x in (scores, items_BT, weights_BT))
        for part, items, weights in zip(*parts, strict=True):
            sums = self.similarity[items] * weights[..., None]  # (part, T, K)
            part.scatter_add_(1, self.near[items].flatten(1), sums.flatten(1))
        return scores
