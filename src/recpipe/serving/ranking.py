"""First items of every user by a model, under restrictions. U users, M items of a ranking, I items; item 0 is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recpipe.data.sequences import Sequences
from recpipe.data.user_items import Candidates, UserItems, candidates_of
from recpipe.layers.top_k import top_k
from recpipe.models.recommender import Recommender, Scorer
from recpipe.progress import progress
from recpipe.serving.item_index.search import ItemIndex, indexed_top_k

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Ranking:
    """First items of users by a model, and the log of the sum of exp(score) over all candidates."""

    items: Ints  # (U, M)
    scores: Floats  # (U, M)
    log_normalizer: Floats | None  # (U,)


def rank(
    model: Recommender,
    histories: Sequences,
    k: int,
    *,
    exclude_seen: bool,
    candidates: Candidates | None = None,
    excluded: UserItems | None = None,
    index: ItemIndex | None = None,
) -> Ranking:
    """Rank the first ``k`` items of every user, of the candidates that are not excluded.

    ``index``: of the model's items, used unless users have candidates of their own. Then there is no normaliser, which
    is a sum over all candidates: a probability needs exact search.

    Raises ValueError for NaN scores, and for a beam search of fewer than ``k`` beams.
    """
    restrictions: dict[str, Any] = {"exclude_seen": exclude_seen, "candidates": candidates, "excluded": excluded}
    if not isinstance(model, Scorer):
        items, scores = model.recommend(histories, k, **restrictions)
        return Ranking(items, scores, np.zeros(len(items), np.float32) if model.probabilistic else None)
    items = np.zeros((len(histories), k), np.int32)
    scores = np.full(items.shape, -np.inf, np.float32)
    if index is not None and index.index is not None and not isinstance(candidates, UserItems):
        for rows, best_items, best_scores in indexed_top_k(model, index, histories, k, **restrictions):
            items[rows], scores[rows] = best_items, best_scores
        return Ranking(items, scores, None)
    normalizer = np.zeros(len(items), np.float32) if model.probabilistic else None
    with progress(len(histories), "rank users", unit="users") as bar:
        for rows, values in model.score_batches(histories, **restrictions):
            best, best_values = top_k(values, k)
            items[rows], scores[rows] = best.cpu().numpy(), best_values.cpu().numpy()
            if normalizer is not None:
                normalizer[rows] = values.logsumexp(1).cpu().numpy()
            bar.add(len(rows))
    return Ranking(items, scores, normalizer)


@dataclass(frozen=True)
class Restrictions:
    """Items that users may get, as arguments of a model."""

    exclude_seen: bool
    candidates: Candidates | None
    excluded: UserItems | None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of ``Recommender.recommend``."""
        return {"exclude_seen": self.exclude_seen, "candidates": self.candidates, "excluded": self.excluded}

    def select(self, rows: NDArray[np.integer]) -> Restrictions:
        """Select the users ``rows`` (m,)."""
        excluded = None if self.excluded is None else self.excluded.select(rows)
        return Restrictions(self.exclude_seen, candidates_of(self.candidates, rows), excluded)

    def without(self, items: UserItems) -> Restrictions:
        """Exclude more items."""
        return Restrictions(self.exclude_seen, self.candidates, items.joined(self.excluded))

    def among(self, mask: Tensor) -> Restrictions:
        """Keep the candidates that are in ``mask`` (I + 1,)."""
        return Restrictions(self.exclude_seen, intersection(mask, self.candidates), self.excluded)


def intersection(mask: Tensor | None, candidates: Candidates | None) -> Candidates | None:
    """Return the candidates of every user that are in ``mask`` (I + 1,) too; None for the whole catalogue."""
    if mask is None or candidates is None:
        return candidates if mask is None else mask
    if isinstance(candidates, Tensor):
        return candidates & mask
    allowed = mask.numpy()[candidates.items]
    return UserItems.of_pairs(candidates.owner[allowed], candidates.items[allowed], len(candidates))


def check_k(k: object) -> None:
    """Raise ValueError unless ``k`` is a whole number from 1."""
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}; it is a whole number from 1")
