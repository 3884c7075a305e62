"""Lists of any length under rules: ranking by the model, then places filled one after the other.

U users, K places, M items of a pool, I items; item 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems, candidates_of
from recpipe.evaluation.recommendations import COLD_USERS, CONTENT_SLOTS, SOURCES
from recpipe.models.recommender import Recommender
from recpipe.serving.item_index.search import ItemIndex
from recpipe.serving.places import Places
from recpipe.serving.ranking import Floats, Ints, Ranking, Restrictions, intersection, rank
from recpipe.serving.rules import BundleRules

POOL = 5  # items ranked for a place, where places are filled by rules
USERS_AT_ONCE = 1 << 10  # whose pools are compared with each other
POOLED_AT_ONCE = 1 << 18  # items in the pools of these users, whose vectors lie in memory together
EXCLUDED_AT_ONCE = 1 << 24  # items of full categories that users who need another pool must not get


@dataclass(frozen=True)
class Lists:
    """Lists of users, best first."""

    items: Ints  # (U, K), 1-based; 0 for none, at the end
    scores: Floats  # (U, K), -inf for none; NaN for items of another model in content slots
    probabilities: Floats | None  # (U, K) among the candidates; None of models without; NaN where search was not exact
    sources: NDArray[np.int8]  # (U, K), index of SOURCES


@dataclass(frozen=True)
class ListMaker:
    """Lists by one model under one set of rules. ``content`` ranks new items; by default the model itself.

    ``index`` of the model's items: without probabilities, and faster in a large catalogue.
    """

    model: Recommender
    rules: BundleRules
    content: Recommender | None = None
    index: ItemIndex | None = None

    def lists(
        self,
        histories: Sequences,
        k: int,
        *,
        candidates: Candidates | None = None,
        restricted: NDArray[np.bool_] | None = None,
        excluded: UserItems | None = None,
        now: int,
    ) -> Lists:
        """Return lists of ``k`` items, shorter only where there are no more; ``now`` in seconds since 1970.

        ``restricted`` (U,): the users that ``candidates`` hold for, by default all; others may get any item.
        """
        if restricted is None or restricted.all():
            return self._lists(histories, k, candidates, excluded, now)
        if not restricted.any():
            return self._lists(histories, k, None, excluded, now)
        groups = np.flatnonzero(~restricted), np.flatnonzero(restricted)
        parts = [
            self._lists(
                histories.select_users(rows),
                k,
                candidates_of(candidates, rows) if restricted[rows[0]] else None,
                None if excluded is None else excluded.select(rows),
                now,
            )
            for rows in groups
        ]
        return _in_order(_concatenate(parts), np.argsort(np.concatenate(groups)))

    def _lists(
        self, histories: Sequences, k: int, candidates: Candidates | None, excluded: UserItems | None, now: int
    ) -> Lists:
        k = min(k, self.model.n_items)
        excluded, exclude_seen = self._excluded(histories, excluded, now)
        candidates = intersection(self.rules.candidates, candidates)
        restrictions = Restrictions(exclude_seen, candidates, excluded)
        cold = self.model.needs_fallback(histories)
        if not self.rules.rules.picks:
            ranking = rank(self.model, histories, k, **restrictions.arguments(), index=self.index)
            return _lists(ranking, cold, np.zeros(ranking.items.shape, bool))
        size = min(POOLED_AT_ONCE // pool_size(k, self.model.n_items), USERS_AT_ONCE)
        parts = _blocks(np.arange(len(histories)), size)
        lists = [self._pick(histories.select_users(rows), k, restrictions.select(rows), cold[rows]) for rows in parts]
        return _concatenate(lists) if lists else _lists(_no_ranking(0, k), cold, np.zeros((0, k), bool))

    def _excluded(self, histories: Sequences, excluded: UserItems | None, now: int) -> tuple[UserItems | None, bool]:
        """Items that users must not get, and whether those of the history are excluded besides."""
        after = self.rules.again_after
        if after is None:
            return excluded, self.rules.exclude_seen
        if histories.timestamps is None:
            raise ValueError(f"rules.seen is {self.rules.rules.seen} days, which needs timestamps of the histories")
        recent = histories.timestamps > now - after
        owner = np.repeat(np.arange(len(histories)), histories.lengths)
        pairs = UserItems.of_pairs(owner[recent], histories.items[recent], len(histories))
        return pairs.joined(excluded), False

    def _pick(self, histories: Sequences, k: int, restrictions: Restrictions, cold: NDArray[np.bool_]) -> Lists:
        """Fill the places of lists from pools; a user whose pool is exhausted gets another one."""
        places, size = Places.empty(len(histories), k), pool_size(k, self.model.n_items)
        blocks: list[NDArray[np.integer]] = [np.arange(len(histories))]
        normalizer: Floats | None = None
        while blocks:
            rows = blocks.pop()
            part, allowed = histories.select_users(rows), restrictions.select(rows)
            allowed = allowed.without(places.taken(rows, self.rules))
            pools = self._pools(part, size, allowed)
            normalizer = pools[0].log_normalizer if normalizer is None else normalizer
            waiting = rows[places.fill(rows, pools, self.rules)]
            blocks += _blocks(waiting, EXCLUDED_AT_ONCE // self.model.n_items)
        return _lists(Ranking(places.items, places.scores, normalizer), cold, places.from_content)

    def _pools(self, histories: Sequences, size: int, restrictions: Restrictions) -> list[Ranking]:
        """Ranking of all items, and with the rule ``new_items`` one of the new ones."""
        pool = rank(self.model, histories, size, **restrictions.arguments(), index=self.index)
        if self.rules.is_new is None:
            return [pool]
        new = restrictions.among(self.rules.is_new)
        if self.content is None:
            return [pool, rank(self.model, histories, size, **new.arguments(), index=self.index)]
        ranking = rank(self.content, histories, size, **new.arguments())
        ranking.items[self.content.needs_fallback(histories)] = 0
        return [pool, Ranking(ranking.items, np.full_like(ranking.scores, np.nan), None)]


def _lists(ranking: Ranking, cold: NDArray[np.bool_], from_content: NDArray[np.bool_]) -> Lists:
    source = np.where(cold, SOURCES.index(COLD_USERS), 0).astype(np.int8)
    sources = np.where(from_content, np.int8(SOURCES.index(CONTENT_SLOTS)), source[:, None])
    probabilities = None
    if ranking.log_normalizer is not None:
        normalizer = np.where(ranking.items[:, 0] > 0, ranking.log_normalizer, 0.0)  # -inf without any item
        probabilities = np.exp(ranking.scores.astype(np.float64) - normalizer[:, None]).astype(np.float32)
    return Lists(ranking.items, ranking.scores, probabilities, sources)


def pool_size(k: int, n_items: int) -> int:
    """Return the number of items that are ranked to fill ``k`` places by rules."""
    return min(max(POOL * k, k + 10), n_items)


def _no_ranking(users: int, k: int) -> Ranking:
    return Ranking(np.zeros((users, k), np.int32), np.zeros((users, k), np.float32), None)


def _blocks(rows: NDArray[np.integer], size: int) -> list[NDArray[np.integer]]:
    size = max(size, 1)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _concatenate(parts: list[Lists]) -> Lists:
    probabilities = None
    if any(part.probabilities is not None for part in parts):  # those of an index have none
        blank = [np.full(part.items.shape, np.nan, np.float32) for part in parts]
        probabilities = np.concatenate(
            [nan if part.probabilities is None else part.probabilities for nan, part in zip(blank, parts, strict=True)]
        )
    return Lists(
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.scores for part in parts]),
        probabilities,
        np.concatenate([part.sources for part in parts]),
    )


def _in_order(lists: Lists, order: NDArray[np.integer]) -> Lists:
    probabilities = None if lists.probabilities is None else lists.probabilities[order]
    return Lists(lists.items[order], lists.scores[order], probabilities, lists.sources[order])
