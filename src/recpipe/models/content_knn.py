"""Content kNN: items whose text or image vectors are nearest to those of the last events; nothing is trained.

Paper: Lops, de Gemmis, Semeraro, Content-based Recommender Systems: State of the Art and Trends, Recommender Systems
Handbook, 2011 (doi 10.1007/978-0-387-85820-3_3), a survey of content-based recommenders.

It also ranks items without events. Similarities of several kinds of vectors are averaged.

Differences: of the methods of the survey this is one of the simplest: the profile of a user is the mean vector of his
latest events, and no feedback is learned from.

Shapes: B batch, T time, I items, V width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.layers.side import Side
from recpipe.models.recommender import ClosedForm
from recpipe.semantic_ids.faiss_quantizers import one_thread


class ContentKNN(ClosedForm):
    """Content kNN: scores are the inner product of an item's vector with the mean vector of the latest events.

    Raises ValueError without item vectors (``side.vectors``).
    """

    @dataclass(frozen=True)
    class Config:
        """Settings of the mean of the latest events.

        ``last``: number of latest events with a vector that are averaged; null: the whole window. ``decay``: weight of
        an event relative to the one after it. ``normalise``: cosine similarity.
        """

        last: int | None = 1
        decay: float = 1.0
        normalise: bool = True

        def __post_init__(self) -> None:
            check_at_least(1, self, "last")
            if not 0 < self.decay <= 1:
                raise ValueError(f"decay is {self.decay}; it must be more than 0 and at most 1")

    takes_side = True
    required_side = ("vectors",)
    config: Config
    vectors: Tensor  # (I + 1, V)
    present: Tensor  # (I + 1,) bool

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        if side is None or not side.widths:
            raise ValueError("content_knn needs item vectors; set `side: {vectors: text}`")
        side.config.check_vectors_only("content_knn")
        self.register_buffer("vectors", torch.zeros(n_items + 1, sum(side.widths.values())))
        self.register_buffer("present", torch.zeros(n_items + 1, dtype=torch.bool))
        values = [side.values.get(f"vectors.{name}") for name in side.widths]
        if tables := [torch.from_numpy(value) for value in values if value is not None]:
            parts = [F.normalize(table[:, :-1]) if config.normalise else table[:, :-1] for table in tables]
            self.vectors = torch.cat(parts, 1).div_(len(parts) ** 0.5)
            self.present = torch.stack([table[:, -1] > 0 for table in tables]).any(0)

    def fit(self, train: Sequences) -> None:
        """Do nothing: the vectors are the model."""

    @property
    def scores_by_content(self) -> bool:
        """True: every item with a vector is scored, with or without training events."""
        return True

    def query(self, batch: Batch) -> Tensor:
        """Return weighted means (B, V) of the latest events' vectors, zero where no event has one."""
        is_used_BT = self.present[batch.items]
        age_BT = is_used_BT.flip(1).cumsum(1).flip(1) - 1  # 0 for the last event with a vector
        if self.config.last is not None:
            is_used_BT = is_used_BT & (age_BT < self.config.last)
        weight_BT = torch.where(is_used_BT, self.config.decay ** age_BT.clamp(min=0), 0.0)
        weight_BT = weight_BT / weight_BT.sum(1, keepdim=True).clamp(min=1e-30)
        return F.embedding_bag(batch.items, self.vectors, per_sample_weights=weight_BT, mode="sum")

    def score(self, batch: Batch) -> Tensor:
        """Return scores (B, I + 1); items without a vector rank last."""
        batch = batch if batch.items.shape[1] else batch.pad(1)
        scores = self.query(batch) @ self.vectors.T
        return torch.where(self.present, scores, scores.amin(1, keepdim=True) - 1.0)

    def nearest(self, items: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the ``k`` nearest other items of ``items`` (n,) and their scores, (n, k); 0 and -inf for none."""
        import faiss

        rows, vectors = np.flatnonzero(self.present.cpu().numpy()), self.vectors.cpu().numpy()
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors[rows])
        with one_thread():
            scores, row_numbers = index.search(np.ascontiguousarray(vectors[items]), k + 1)
        neighbours = np.where(row_numbers >= 0, rows[row_numbers], 0)
        invalid = (neighbours == items[:, None]) | (neighbours == 0) | ~np.isin(items, rows)[:, None]
        order = np.argsort(invalid, axis=1, kind="stable")[:, :k]
        neighbours, scores, invalid = (np.take_along_axis(values, order, 1) for values in (neighbours, scores, invalid))
        return np.where(invalid, 0, neighbours), np.where(invalid, -np.inf, scores)
