"""GRU4Rec: causal recurrent network of gated recurrent units (GRU).

Paper: Hidasi, Karatzoglou, Baltrunas, Tikk, Session-based Recommendations with Recurrent Neural Networks, ICLR 2016
(arXiv 1511.06939).

Differences:

- One item table for input and output (paper: one-hot input, separate output layer).
- Whole histories in padded batches (paper: session-parallel mini-batches with truncated gradients).
- The loss is a training setting, full softmax by default (paper: BPR or TOP1 over the items of the batch).
- LayerNorm and a projection between the cells and the output; item embeddings times √D.
- torch's GRU applies the reset gate after the recurrent product (paper: before).

Shapes: B batch, T time, D width, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.layers.recurrent import Recurrent, RecurrentConfig
from recpipe.layers.side import Side
from recpipe.models.next_item import NextItem


class GRU4Rec(NextItem):
    """Causal GRU network."""

    @dataclass(frozen=True)
    class Config(RecurrentConfig):
        """Settings of the recurrent network."""

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.encoder = Recurrent(nn.GRU, config)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        return self.encoder(x_BTD * math.sqrt(self.config.dim))
