"""Places of lists, filled one after the other under rules that look at the whole list.

U users, K places, M items of a pool, I items, D width; item 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.data.user_items import UserItems
from recpipe.evaluation.content_slots import slot_places
from recpipe.serving.ranking import Floats, Ints, Ranking
from recpipe.serving.rules import BundleRules


@dataclass(frozen=True)
class Places:
    """Lists that are being filled."""

    items: Ints  # (U, K), 0 where nothing is yet
    scores: Floats  # (U, K)
    from_content: NDArray[np.bool_]  # (U, K)

    @classmethod
    def empty(cls, users: int, k: int) -> Places:
        """Return empty lists."""
        return cls(np.zeros((users, k), np.int32), np.full((users, k), -np.inf, np.float32), np.zeros((users, k), bool))

    def counts(self, rows: NDArray[np.integer]) -> NDArray[np.int64]:
        """Count the items of the lists of ``rows`` (n,), as (n,)."""
        counts: NDArray[np.int64] = np.count_nonzero(self.items[rows], axis=1)
        return counts

    def taken(self, rows: NDArray[np.integer], rules: BundleRules) -> UserItems:
        """Return the items of the lists of ``rows`` (n,), and all items of categories that are full."""
        user, place = np.nonzero(self.items[rows])
        items = self.items[rows][user, place].astype(np.int64)
        limit = rules.rules.max_per_category
        if limit is not None and rules.categories is not None and len(items):
            category = rules.categories[items]
            width = int(rules.categories.max()) + 1
            pairs, count = np.unique(user[category > 0] * width + category[category > 0], return_counts=True)
            full = pairs[count >= limit]
            members = np.argsort(rules.categories, kind="stable")  # items by category
            ends = np.cumsum(np.bincount(rules.categories, minlength=width))
            lengths = np.diff(ends, prepend=0)[full % width]
            index = np.arange(lengths.sum()) + np.repeat(ends[full % width] - np.cumsum(lengths), lengths)
            user = np.concatenate([user, np.repeat(full // width, lengths)])
            items = np.concatenate([items, members[index]])
        return UserItems.of_pairs(user, items, len(rows))

    def fill(self, rows: NDArray[np.integer], pools: list[Ranking], rules: BundleRules) -> NDArray[np.integer]:
        """Fill the lists of ``rows`` (n,) from their ``pools``.

        Returns the positions (m,) in ``rows`` of users that need other pools.
        """
        pool = Pool.of(pools, rules, self.items[rows])
        is_full = np.stack([each.items[:, -1] > 0 for each in pools])  # a pool that may have left items out
        share = rules.rules.new_items
        k = self.items.shape[1]
        slot = np.zeros(k, np.int64) if share is None else slot_places(share.share, k).astype(np.int64)
        waiting = np.zeros(len(rows), bool)
        for _ in range(k):
            counts = self.counts(rows)
            user = np.flatnonzero((counts < k) & ~waiting)
            if not len(user):
                break
            slot_pool = slot[counts[user]]
            has = pool.has(user)  # (pools, n)
            waits = ~has[slot_pool, np.arange(len(user))] & is_full[slot_pool, user]
            use = np.where(has[slot_pool, np.arange(len(user))], slot_pool, len(pools) - 1 - slot_pool)
            waits |= ~has[use, np.arange(len(user))] & is_full[use, user]
            waiting[user[waits]] = True
            can = has[use, np.arange(len(user))] & ~waits
            if not can.any():
                break
            user, use = user[can], use[can]
            column = pool.best(user, use)
            place = rows[user], counts[user]
            self.items[place] = pool.items[user, column]
            self.scores[place] = pool.scores[user, column]
            self.from_content[place] = np.isnan(pool.scores[user, column])
            pool.remove(user, column, self.items[rows[user]], rules)
        return np.flatnonzero(waiting)


@dataclass(frozen=True)
class Pool:
    """Items that places are filled from: those of all pools side by side, (U, M)."""

    items: Ints
    scores: Floats
    source: NDArray[np.int64]  # (M,), the pool of a column
    valid: NDArray[np.bool_]  # (U, M), items that may still be taken
    relevance: Floats  # (U, M), 0 to 1 in each pool
    similarity: Floats  # (U, M), greatest cosine with an item of the list, -1 without any
    vectors: Tensor | None  # (I + 1, D)
    diversity: float

    @classmethod
    def of(cls, pools: list[Ranking], rules: BundleRules, chosen: Ints) -> Pool:
        """Put ``pools`` side by side; ``chosen`` (U, K) are the items of the lists so far."""
        items = np.concatenate([each.items for each in pools], 1)
        scores = np.concatenate([each.scores for each in pools], 1)
        source = np.repeat(np.arange(len(pools)), [each.items.shape[1] for each in pools])
        relevance = np.concatenate([_relevance(each) for each in pools], 1)
        pool = cls(
            items, scores, source, items > 0, relevance, np.full(items.shape, -1, np.float32),
            rules.vectors, rules.rules.diversity,
        )  # fmt: skip
        for place in np.flatnonzero(chosen.any(0)):
            users = np.flatnonzero(chosen[:, place])
            pool.compare(users, chosen[users, place])
        return pool

    def has(self, user: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return (pools, n) bool: whether each pool has an item for the users."""
        return np.stack([self.valid[user][:, self.source == n].any(1) for n in range(self.source.max() + 1)])

    def best(self, user: NDArray[np.integer], source: NDArray[np.integer]) -> NDArray[np.integer]:
        """Return the column (n,) of the best item that pool ``source`` (n,) has for each user; the first of equals."""
        allowed = self.valid[user] & (self.source == source[:, None])
        value = (1 - self.diversity) * self.relevance[user] - self.diversity * self.similarity[user]
        order = allowed if self.diversity == 0 else np.where(allowed, value, -np.inf)  # items are in order of relevance
        column: NDArray[np.integer] = order.argmax(1)
        return column

    def remove(self, user: NDArray[np.integer], column: NDArray[np.integer], chosen: Ints, rules: BundleRules) -> None:
        """Remove items that were taken, and those of categories that ``chosen`` (n, K) has filled."""
        item = self.items[user, column]
        self.valid[user] &= self.items[user] != item[:, None]
        if self.diversity > 0:
            self.compare(user, item)
        limit = rules.rules.max_per_category
        if limit is not None and rules.categories is not None:
            category = rules.categories[item]
            count = (rules.categories[chosen] == category[:, None]).sum(1)
            full = (count >= limit) & (category > 0)
            is_full = (rules.categories[self.items[user]] == category[:, None]) & full[:, None]
            self.valid[user] &= ~is_full

    def compare(self, user: NDArray[np.integer], item: Ints) -> None:
        """Update the similarity of all columns with the items (n,) that the lists of ``user`` now have."""
        if self.vectors is None:
            return
        columns = self.vectors[torch.from_numpy(self.items[user].astype(np.int64))]
        cosine = torch.einsum("nmd,nd->nm", columns, self.vectors[torch.from_numpy(item.astype(np.int64))]).numpy()
        self.similarity[user] = np.maximum(self.similarity[user], cosine)


def _relevance(ranking: Ranking) -> Floats:
    """Scores of each user's pool from 0 to 1; by place where there are no scores."""
    scores, exists = ranking.scores.astype(np.float64), ranking.items > 0
    if np.isnan(scores).any():
        scores = np.broadcast_to(-np.arange(scores.shape[1], dtype=np.float64), scores.shape)
    low = np.where(exists, scores, np.inf).min(1, keepdims=True)
    high = np.where(exists, scores, -np.inf).max(1, keepdims=True)
    width = np.where(high > low, high - low, 1.0)
    return np.where(exists, (scores - low) / width, 0.0).astype(np.float32)
