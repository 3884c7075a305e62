"""Content slots: places of a list that are filled with cold items, nearest to the user's last events by content.

Of the first k places, floor(share k) are slots, whatever k; the others keep the order of the model, which cannot
recommend items without training events. Shapes: U users, K results, C content results, I items.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.ranking import Ranking, list_ranks
from recpipe.models.content_knn import ContentKNN
from recpipe.training.bundle import Bundle


@dataclass(frozen=True)
class ContentSlots:
    """Rule of content slots: their share of the places, and the model of type content_knn that fills them."""

    share: float
    content: Bundle

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"content_slots.share is {self.share}; it is a share of the list, between 0 and 1")
        if not isinstance(self.content.model, ContentKNN):
            raise ValueError(
                f"content_slots.model is {self.content.name}, of type {self.content.type}; it must be a model of type "
                "content_knn, such as text_knn"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for metrics.json."""
        return {"share": self.share, "model": self.content.name}

    def apply(self, ranking: Ranking, fold: Fold, bundle: Bundle, *, exclude_seen: bool) -> Ranking:
        """Fill the slots of a ranking by ``bundle``; scores of slot items are NaN.

        The rank of a target is its place in the list; beyond the list, the rank by the model plus the number of slots.
        Raises ValueError for lists too short for a slot, another catalogue, and without a cold item that has a vector.
        """
        self.content.check_catalogue(bundle.vocabulary)
        slot = slot_places(self.share, ranking.items.shape[1])
        if not slot.any():
            raise ValueError(
                f"content_slots.share is {self.share} and lists have {len(slot)} items, so there is no slot; "
                f"give at least {1 / len(slot):.4f}"
            )
        content = self.cold_lists(fold.histories, bundle.train_events, len(slot), exclude_seen=exclude_seen)
        items, from_content = fill_slots(ranking.items, content, slot)
        place = list_ranks(items[ranking.user], fold.targets.items)
        beyond = np.where(ranking.rank > 0, ranking.rank + slot.sum(), 0)
        rank = np.where(place > 0, place, beyond).astype(np.int32)
        place_before = (items[:, :, None] == ranking.items[:, None, :]).argmax(2)
        scores = np.take_along_axis(ranking.scores, place_before, 1)
        scores = np.where(items == 0, -np.inf, np.where(from_content, np.nan, scores)).astype(np.float32)
        return replace(ranking, items=items, rank=rank, scores=scores)

    def cold_lists(self, histories: Sequences, train_events: np.ndarray, k: int, *, exclude_seen: bool) -> np.ndarray:
        """List the ``k`` items without ``train_events`` (I,) nearest to each user (U, k); 0 for none and no vector.

        Raises ValueError if no item has a vector and no training event.
        """
        model = self.content.model
        assert isinstance(model, ContentKNN)
        present, cold = model.present.cpu().numpy(), np.concatenate([[False], train_events == 0])
        if not (present & cold).any():
            raise ValueError(
                f"no item can fill a content slot: of {len(train_events)}, {int(cold.sum())} have no training event, "
                f"{int(present.sum())} have a vector and none both. Hold some out (protocol.held_out_items), describe "
                "them (the block `content` of the data set) and run `kedro run --pipelines=embed,train "
                f"--params model={self.content.name}`"
            )
        items, _ = model.recommend(histories, k, exclude_seen=exclude_seen, candidates=torch.from_numpy(present & cold))
        window = histories.last(model.max_length)
        owner = np.repeat(np.arange(len(histories)), window.lengths)
        has_query = np.bincount(owner[present[window.items]], minlength=len(histories)) > 0
        return np.where(has_query[:, None], items, 0)


def slot_places(share: float, k: int) -> np.ndarray:
    """Mark the slots among the first k places (k,): place j is one if floor(share j) > floor(share (j - 1))."""
    return np.asarray(np.diff(np.floor(np.arange(k + 1) * share + 1e-9)) > 0)


def fill_slots(items: np.ndarray, content: np.ndarray, slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge lists in order: places of ``slot`` (K,) from ``content`` (U, C), others from ``items`` (U, K), each once.

    Where one is exhausted, the other fills the place. Returns the lists (U, K) and a mask of items from ``content``.
    """
    sources = [items.copy(), content.copy()]
    merged, from_content = np.zeros_like(items), np.zeros(items.shape, bool)
    rows = np.arange(len(items))
    for place, is_slot in enumerate(slot):
        model_item, content_item = (source[rows, (source > 0).argmax(1)] for source in sources)
        from_content[:, place] = (content_item > 0) & (is_slot | (model_item == 0))
        merged[:, place] = np.where(from_content[:, place], content_item, model_item)
        for source in sources:
            source[source == merged[:, place, None]] = 0
    return merged, from_content
