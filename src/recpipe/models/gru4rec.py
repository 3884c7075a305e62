"""GRU4Rec: Hidasi et al., Session-based Recommendations with Recurrent Neural Networks, ICLR 2016.

B batch, T time, D width, I items.

Deviations: items are embedded and the head is the same table (the paper has one-hot inputs and a head of its own);
whole histories of users in padded batches (the paper: session-parallel mini-batches that cut the gradient); the loss is
the trainer's (full softmax by default; the paper: BPR or TOP1 over the other items of the batch); LayerNorm and a
projection between the cells and the head; torch's GRU, which resets after the recurrent product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.layers.recurrent import Recurrent
from recpipe.layers.side import Side
from recpipe.models.recommender import NextItem


class GRU4Rec(NextItem):
    """Predicts the next item at every position from the events up to it."""

    @dataclass(frozen=True)
    class Config:
        """``dim`` is the width of the item table, ``hidden`` that of the recurrent state."""

        dim: int = 64
        hidden: int = 128
        layers: int = 1
        dropout: float = 0.2

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.encoder = Recurrent(
            nn.GRU, dim=config.dim, hidden=config.hidden, layers=config.layers, dropout=config.dropout
        )

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        return self.encoder(x_BTD * math.sqrt(self.config.dim))
