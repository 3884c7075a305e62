"""Slots for new items: a share of every list goes to what training never saw, the nearest to the user by content.

A model that learns items by their ids cannot recommend one that it has not met. Slots let it, at a price that is known
before: of the first k places floor(share k) are slots, whatever k, and the others keep the model's order. They change
the list and so are part of what a number was measured with. U users, N targets, K results, C content results, I items.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import Ranking
from recpipe.layers.side import Side, SideConfig
from recpipe.models.content_knn import ContentKNN

Vectors = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By modality the vectors (I, V) and which items have one (I,) bool."""


@dataclass(frozen=True)
class ContentSlots:
    """``share``: of the places of a list. ``last`` events with a vector (null: all of the window) make the query,
    each weighing ``decay`` times the event after it, as in content_knn.
    """

    share: float = 0.0
    last: int | None = 10
    decay: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(
                f"content_slots.share is {self.share}; it is a share of the list, from 0 to below 1"
            )
        ContentKNN.Config(last=self.last, decay=self.decay)  # refuses what cannot be

    def places(self, k: int) -> np.ndarray:
        """(k,) bool: which of the first k places are slots. Place j is one if floor(share j) grows there."""
        filled = np.floor(np.arange(k + 1) * self.share + 1e-9)
        return np.diff(filled) > 0


def nearest_unseen(
    histories: Sequences,
    vectors: Vectors,
    train_events: np.ndarray,
    k: int,
    *,
    slots: ContentSlots,
    window: int,
    exclude_seen: bool,
) -> np.ndarray:
    """The ``k`` items without ``train_events`` (I,) that are most like each user's last ones: (U, k), 0 where none is.

    Users whose last ``window`` events have no vector get none. Raises ValueError where no such item has a vector.
    """
    n_items, unseen = len(train_events), train_events == 0
    known = np.any([present for _, present in vectors.values()], axis=0) & np.ones(n_items, bool)
    if not (known & unseen).any():
        raise ValueError(
            f"no item can fill a content slot: of {n_items}, {int(unseen.sum())} are unseen in training, "
            f"{int(known.sum())} have a vector and none both. Hold some out (protocol.held_out_items), describe them "
            "(the block `content` of the data set) and run `kedro run --pipelines=embed`"
        )
    side = Side.of(SideConfig(vectors="+".join(vectors)), histories, {}, vectors, n_items=n_items)
    query = ContentKNN.Config(last=slots.last, decay=slots.decay)
    knn = ContentKNN(query, n_items=n_items, max_length=window, side=side)
    candidates = torch.from_numpy(np.concatenate([[False], known & unseen]))
    items, _ = knn.recommend(histories, k, exclude_seen=exclude_seen, candidates=candidates)
    described = np.concatenate([[False], known])[histories.last(window).items]
    owner = np.repeat(np.arange(len(histories)), histories.last(window).lengths)
    asked = np.bincount(owner[described], minlength=len(histories)) > 0
    return np.where(asked[:, None], items, 0)


def mixed(items: np.ndarray, content: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists (U, K) in which the places that ``slot`` (K,) marks are of ``content`` (U, C), the others of ``items``
    (U, K), each in its order and no item twice; and which items are of the content (U, K).

    Where one side has nothing left, the other fills the place; 0 is none.
    """
    sides = [items.copy(), content.copy()]
    made, of_content = np.zeros_like(items), np.zeros(items.shape, bool)
    rows = np.arange(len(items))
    for place, is_slot in enumerate(slot):
        own, new = (side[rows, (side > 0).argmax(1)] for side in sides)  # the first left of each
        of_content[:, place] = (new > 0) & (is_slot | (own == 0))
        made[:, place] = np.where(of_content[:, place], new, own)
        for side in sides:
            side[side == made[:, place, None]] = 0
    return made, of_content


def with_slots(ranking: Ranking, fold: Fold, content: np.ndarray, slots: ContentSlots) -> Ranking:
    """``ranking`` with ``content`` (U, C) in its slots. Scores are of the model, NaN for what is of the content.

    A target's rank is its place in the list; beyond the list it is the model's rank plus the number of slots, which
    says no more than that it is beyond. Raises ValueError where the list is too short to have a slot.
    """
    if slots.share == 0:
        return ranking
    slot = slots.places(ranking.items.shape[1])
    if not slot.any():
        raise ValueError(
            f"content_slots.share is {slots.share} and lists have {len(slot)} items, so there is no slot; "
            f"give at least {1 / len(slot):.4f}"
        )
    items, of_content = mixed(ranking.items, content, slot)
    found = items[ranking.user] == fold.targets.items[:, None]
    beyond = np.where(ranking.rank > 0, ranking.rank + slot.sum(), 0)
    rank = np.where(found.any(1), found.argmax(1) + 1, beyond).astype(np.int32)
    old_place = (items[:, :, None] == ranking.items[:, None, :]).argmax(2)
    scores = np.take_along_axis(ranking.scores, old_place, 1)
    scores = np.where(items == 0, -np.inf, np.where(of_content, np.nan, scores)).astype(np.float32)
    return replace(ranking, items=items, rank=rank, scores=scores)
