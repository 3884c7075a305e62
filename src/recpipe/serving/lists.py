"""Lists of any length under rules: ranking by the model, then places filled one after the other.

U users, K places, M items of a pool, I items; item 0 is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems
from recpipe.evaluation.recommendations import COLD_USERS, CONTENT_SLOTS, SOURCES
from recpipe.models.recommender import Recommender
from recpipe.serving.item_index import ItemIndex
from recpipe.serving.places import Places
from recpipe.serving.ranking import Floats, Ints, Ranking, Restrictions, intersection, rank
from recpipe.serving.rules import BundleRules

POOL = 5  # items ranked for a place, where places are filled by rules
USERS_AT_ONCE = 1 << 10  # whose pools are compared with each other


@dataclass(frozen=True)
class Lists:
    """Lists of users, best first."""

    items: Ints  # (U, K), 1-based; 0 for none, at the end
    scores: Floats  # (U, K), -inf for none; NaN for items of another model in content slots
    probabilities: Floats | None  # (U, K) among the candidates; None of models without
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
        excluded: UserItems | None = None,
        now: int,
    ) -> Lists:
        """Return lists of ``k`` items, shorter only where there are no more; ``now`` in seconds since 1970."""
        k = min(k, self.model.n_items)
        excluded, exclude_seen = self._excluded(histories, excluded, now)
        candidates = intersection(self.rules.candidates, candidates)
        restrictions = Restrictions(exclude_seen, candidates, excluded)
        cold = self.model.needs_fallback(histories)
        if not self.rules.rules.picks:
            ranking = rank(self.model, histories, k, **restrictions.arguments(), index=self.index)
            return _lists(ranking, cold, np.zeros(ranking.items.shape, bool))
        users = np.arange(len(histories))
        parts = [users[start : start + USERS_AT_ONCE] for start in range(0, len(users), USERS_AT_ONCE)]
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
        rows, normalizer = np.arange(len(histories)), None
        while len(rows):
            part, allowed = histories.select_users(rows), restrictions.select(rows)
            allowed = allowed.without(places.taken(rows, self.rules))
            pools = self._pools(part, size, allowed)
            normalizer = pools[0].log_normalizer if normalizer is None else normalizer
            waiting = places.fill(rows, pools, self.rules)
            rows = rows[waiting]
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


def _concatenate(parts: list[Lists]) -> Lists:
    probabilities = [part.probabilities for part in parts if part.probabilities is not None]
    return Lists(
        np.concatenate([part.items for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate(probabilities) if probabilities else None,
        np.concatenate([part.sources for part in parts]),
    )
