"""LSTM: causal recurrent network of LSTM cells, GRU4Rec with another cell.

Papers: Hochreiter, Schmidhuber, Long Short-Term Memory, Neural Computation 1997 (doi 10.1162/neco.1997.9.8.1735);
forget gate of Gers, Schmidhuber, Cummins, Learning to Forget: Continual Prediction with LSTM, Neural Computation 2000
(doi 10.1162/089976600300015015); recommender after Hidasi et al., GRU4Rec, ICLR 2016 (arXiv 1511.06939).

Differences: those of GRU4Rec (``gru4rec``), except that of the reset gate.

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
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        return self.encoder(x_BTD * math.sqrt(self.config.dim))
