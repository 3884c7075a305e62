"""LSTM: Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 1997; forget gate of Gers et al. 2000.

GRU4Rec (Hidasi et al., ICLR 2016) with another cell, and with the deviations of models/gru4rec.py. No peepholes.
B batch, T time, D width, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor, nn

from recpipe.data.batches import Batch
from recpipe.layers.recurrent import Recurrent, RecurrentConfig
from recpipe.layers.side import Side
from recpipe.models.next_item import NextItem


class LSTM(NextItem):
    """Causal LSTM network."""

    @dataclass(frozen=True)
    class Config(RecurrentConfig):
        """Settings of the recurrent network."""

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.encoder = Recurrent(nn.LSTM, config)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        return self.encoder(x_BTD * math.sqrt(self.config.dim))
