"""Table of items by content: frozen item vectors through a trained projection, as LIGER reads and scores items.

I items, D width, V width of item vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recpipe.layers.inputs import item_values
from recpipe.layers.large_tables import StepTable
from recpipe.layers.set_items import TokenCache, perceptron
from recpipe.layers.side import Side


class ContentTable(nn.Module):
    """Table (I + 1, D) from the item vectors of ``side``, which are standardised and frozen.

    Vectors of several kinds are concatenated. ``widths`` of hidden layers of the projection, none for a linear one. An
    item without any vector has a learned row, the same for all. ``cache``, where it is set, caches the table in
    evaluation. Raises ValueError without vectors, and for side information of other kinds.
    """

    vectors: Tensor  # (I + 1, V), zero where there is none
    present: Tensor  # (I + 1, number of kinds), 1 where there is a vector

    def __init__(self, n_items: int, dim: int, side: Side | None, *, widths: Sequence[int] = ()) -> None:
        super().__init__()
        if side is None or not side.widths:
            raise ValueError("items are projected from item vectors; set some, as in `side: {vectors: text}`")
        side.config.check_vectors_only("this model")
        if side.config.train_vectors:
            raise ValueError("this model projects frozen item vectors; set side.train_vectors=false")
        tables = [item_values(side, n_items, f"vectors.{name}", V + 1) for name, V in side.widths.items()]
        self.register_buffer("vectors", torch.cat([table[:, :-1] for table in tables], 1))
        self.register_buffer("present", torch.cat([table[:, -1:] for table in tables], 1))
        width = self.vectors.shape[1]
        self.project = perceptron((width, *widths, dim))
        if not widths:  # outputs of unit variance, as the embeddings of codes
            nn.init.normal_(self.project[0].weight, std=1 / math.sqrt(width))  # type: ignore[arg-type]
        self.missing = nn.Parameter(torch.empty(dim).normal_())
        self.cache: TokenCache | None = None
        self._step = StepTable()

    def forward(self) -> Tensor:
        """Return the table (I + 1, D); row 0, padding, is zero.

        It is computed once for all batches of a training step.
        """
        if torch.is_grad_enabled():
            return self._step.get(self._compute, self.parameters())
        if self.cache is None or self.training:
            return self._compute()
        return self.cache.get(self._compute, self.parameters(), self.buffers())

    def has_content(self) -> Tensor:
        """Return the mask (I + 1,) bool of items with a vector."""
        return self.present.any(1)

    def _compute(self) -> Tensor:
        table = torch.where(self.has_content()[:, None], self.project(self.vectors), self.missing)
        return table * (torch.arange(len(table), device=table.device) > 0)[:, None]
