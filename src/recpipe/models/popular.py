"""Popular: most popular items, of all time or of the last days of training; the baseline of every table.

Paper: none.

The windowed version is strong under a global time split: in the benchmark of eSASRec, popularity of seven days is above
eSASRec on ML-20M (NDCG@10 .167, .156).

Differences: none known.

Shapes: B batch, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.data.batches import Batch
from recpipe.data.sequences import Sequences
from recpipe.models.recommender import ClosedForm

DAY = 86_400


class Popular(ClosedForm):
    """Popularity: scores are numbers of training events, or sums of their weights."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the window.

        ``days``: count only events of that many days before the last training event; null: all.
        """

        days: float | None = None

    takes_weights = True
    config: Config
    counts: Tensor

    def __init__(self, config: Config, *, n_items: int, max_length: int) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length)
        self.register_buffer("counts", torch.zeros(n_items + 1))

    def fit(self, train: Sequences) -> None:
        """Count the training events (I + 1,) of items.

        Raises ValueError for ``days`` on a data set without timestamps.
        """
        items, weights = train.items, train.weights
        if self.config.days is not None:
            if train.timestamps is None:
                problem = f"days is {self.config.days} and this data set has no timestamps"
                raise ValueError(f"{problem}; set `baselines: [popular]` in its conf file")
            is_recent = train.timestamps > train.timestamps.max() - self.config.days * DAY
            items, weights = items[is_recent], None if weights is None else weights[is_recent]
        counts = np.bincount(items, weights, minlength=self.n_items + 1)
        self.counts.copy_(torch.from_numpy(counts.astype(np.float32)))

    def score(self, batch: Batch) -> Tensor:
        """Return the counts (B, I + 1), the same for every history."""
        return self.counts.repeat(batch.items.shape[0], 1)
