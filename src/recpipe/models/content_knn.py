"""Content kNN: the items whose text or image is most like what was seen last. Nothing is learned from interactions.

The content-based baseline of the field (Lops et al., Recommender Systems Handbook, 2011); as a next-item predictor it
tells how far content alone goes, and it ranks items that nobody has touched yet. Of several kinds of vectors the mean
of their cosines counts. B batch, T time, I items, V width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import split_names
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.side import Side
from recpipe.models.recommender import Scorer
from recpipe.semantic_ids.faiss_quantizers import one_thread


class ContentKNN(Scorer):
    """Inner products of every item's vector with the mean vector of the latest events."""

    @dataclass(frozen=True)
    class Config:
        """``last``: of so many latest events that have a vector (null: of the whole window), each one weighing
        ``decay`` times the event after it. ``normalise`` makes every vector one of unit length.
        """

        last: int | None = 1
        decay: float = 1.0
        normalise: bool = True

        def __post_init__(self) -> None:
            if self.last is not None and self.last < 1:
                raise ValueError(f"content_knn.last is {self.last}; it must be at least 1, or null")
            if not 0 < self.decay <= 1:
                raise ValueError(f"content_knn.decay is {self.decay}; it must be more than 0 and at most 1")

    closed_form = True
    probabilistic = False
    takes_side = True
    needs = ("vectors",)
    config: Config
    vectors: Tensor  # (I + 1, V)
    present: Tensor  # (I + 1,) bool

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        if side is None or not side.widths:
            raise ValueError(
                "content_knn has nothing but item vectors to go by; give it `side: {vectors: text}`"
            )
        for part in ("items", "users", "events"):
            if split_names(getattr(side.config, part)):
                raise ValueError(f"content_knn reads item vectors alone; say side.{part}=none for this model")
        widths = side.widths
        tables = [side.values.get(f"vectors.{name}") for name in widths]
        self.register_buffer("vectors", torch.zeros(n_items + 1, sum(widths.values())))
        self.register_buffer("present", torch.zeros(n_items + 1, dtype=torch.bool))
        if given := [torch.from_numpy(table) for table in tables if table is not None]:
            parts = [F.normalize(table[:, :-1]) if config.normalise else table[:, :-1] for table in given]
            self.vectors = torch.cat(parts, 1) / len(parts) ** 0.5
            self.present = torch.stack([table[:, -1] > 0 for table in given]).any(0)

    def fit(self, train: Sequences) -> None:
        """Vectors are all there is."""

    def query(self, batch: Batch) -> Tensor:
        """(B, V): the weighted mean of the latest events' vectors, zero where no event has one."""
        has_BT = self.present[batch.items]
        age_BT = has_BT.flip(1).cumsum(1).flip(1) - 1  # events with a vector since, 0 for the last of them
        if self.config.last is not None:
            has_BT = has_BT & (age_BT < self.config.last)
        weight_BT = torch.where(has_BT, self.config.decay ** age_BT.clamp(min=0), 0.0)
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1e-30)
        return F.embedding_bag(batch.items, self.vectors, per_sample_weights=weight_BT, mode="sum")

    def score(self, batch: Batch) -> Tensor:
        """Items without a vector come after all the others."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        scores = self.query(batch) @ self.vectors.T
        return torch.where(self.present, scores, scores.amin(1, keepdim=True) - 1.0)

    def nearest(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``k`` other items most like each of ``items`` (n,) and their inner products, both (n, k), by faiss.

        Item 0 with -inf where fewer can be had, and for items without a vector.
        """
        import faiss

        rows = np.flatnonzero(self.present.cpu().numpy())
        vectors = self.vectors.cpu().numpy()
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors[rows])
        with one_thread():
            scores, found = index.search(np.ascontiguousarray(vectors[items]), k + 1)
        near = np.where(found >= 0, rows[found], 0)
        own = (near == items[:, None]) | (near == 0) | ~np.isin(items, rows)[:, None]
        order = np.argsort(own, axis=1, kind="stable")[:, :k]  # the item itself goes to the end
        near, scores, own = (np.take_along_axis(part, order, 1) for part in (near, scores, own))
        return np.where(own, 0, near), np.where(own, -np.inf, scores)
