"""ItemKNN: item-to-item nearest neighbours by the users that items have in common.

Papers: Sarwar, Karypis, Konstan, Riedl, Item-based Collaborative Filtering Recommendation Algorithms, WWW 2001 (doi
10.1145/371920.372071); Deshpande, Karypis, Item-based Top-N Recommendation Algorithms, TOIS 2004 (doi
10.1145/963770.963776).

Up to ``DENSE_ITEMS`` items the neighbours are those of dense rows of similarities; of larger catalogues only the items
with common users are sorted, and of equally similar ones the lower number is the neighbour.

Differences: there are no ratings; similarities are not normalised per item, an option of Deshpande and Karypis; the
score of an item is the sum of its similarities to the distinct items of the history, each times its largest weight
where events have weights.

Shapes: I items, U users, B batch, T time, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.interactions import DENSE, NeighbourConfig, Profiles, distinct_items, user_item_pairs
from recpipe.models.recommender import ClosedForm
from recpipe.progress import Progress, progress

DENSE_ITEMS = 1 << 17  # items up to which rows of similarities are dense
PRODUCTS = 1 << 23  # pairs of items in a block of sparse similarities, about 500 MiB


class ItemKNN(ClosedForm):
    """Item-to-item kNN: scores are sums of similarities to the items of the history."""

    @dataclass(frozen=True)
    class Config(NeighbourConfig):
        """Settings of similarity and neighbourhood; the profile of an item is its users.

        ``last``: number of latest events that are used; null: the window.
        """

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
        """Store the most similar items (I + 1, K) of every item and their similarities."""
        pairs = user_item_pairs(train, self.n_items, torch.device("cpu"))
        profiles, k = Profiles(pairs, self.config, of_items=True), min(self.config.neighbours, self.n_items)
        find = dense_neighbours if self.n_items <= DENSE_ITEMS else sparse_neighbours
        with progress(pairs.width, "train", unit="items") as bar:
            near, similarity = find(profiles, k, bar)
        self.near, self.similarity = near.to(self.device), similarity.to(self.device)

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1): sums of similarities to the distinct items of the history."""
        if self.config.last is not None:
            position = torch.arange(batch.items.shape[1], device=batch.items.device)
            is_read = position >= batch.lengths[:, None] - self.config.last
            batch = replace(batch, items=torch.where(is_read, batch.items, 0))
        items_BT, weights_BT = distinct_items(batch, self.n_items, "binary")
        scores = torch.zeros(len(items_BT), self.n_items + 1, device=items_BT.device)
        size = max(DENSE // max(items_BT.shape[1] * self.near.shape[1], 1), 1)
        parts = (x.split(size) for x in (scores, items_BT, weights_BT))
        for part, items, weights in zip(*parts, strict=True):
            sums = self.similarity[items] * weights[..., None]  # (part, T, K)
            part.scatter_add_(1, self.near[items].flatten(1).long(), sums.flatten(1))
        return scores


def dense_neighbours(profiles: Profiles, k: int, bar: Progress) -> tuple[Tensor, Tensor]:
    """Return the most similar other items (I + 1, K) int64 of every item, and their similarities."""
    width, parts = profiles.matrix.shape[0], []
    for first in range(0, width, step := max(DENSE // width, 1)):
        block = profiles.matrix[first : first + step]
        similarities = torch.from_numpy(profiles.similarities(block).toarray())  # (block, I + 1)
        similarities[torch.arange(len(similarities)), first + torch.arange(len(similarities))] = 0.0
        parts.append(torch.topk(similarities, k, dim=1))
        bar.add(len(similarities))
    return torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])


def sparse_neighbours(profiles: Profiles, k: int, bar: Progress) -> tuple[Tensor, Tensor]:
    """Return the neighbours (I + 1, K) int32 and similarities of ``dense_neighbours`` without dense rows.

    Item 0 with similarity 0 stands where there are fewer. A block has about ``PRODUCTS`` pairs of items with a common
    user, counted once for each of these.
    """
    matrix = profiles.matrix
    near, similarity = (np.zeros((matrix.shape[0], k), dtype) for dtype in (np.int32, np.float32))
    sizes = (matrix != 0).astype(np.int64)  # by user, the number of items; by item, the pairs with its users' items
    block_of = np.cumsum(sizes @ np.asarray(sizes.sum(0)).ravel()) // PRODUCTS
    for rows in np.split(np.arange(len(block_of)), np.flatnonzero(np.diff(block_of)) + 1):
        found = profiles.similarities(matrix[rows[0] : rows[-1] + 1])
        row = np.repeat(rows, np.diff(found.indptr))
        valid = (found.data > 0) & (found.indices != row)
        row, item, value = row[valid], found.indices[valid], found.data[valid]
        order = np.lexsort((-value, row))  # stable: of equal values the lower item
        row, item, value = row[order], item[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        best = rank < k
        near[row[best], rank[best]], similarity[row[best], rank[best]] = item[best], value[best]
        bar.add(len(rows))
    return torch.from_numpy(near), torch.from_numpy(similarity)
