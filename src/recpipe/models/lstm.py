"""LSTM: Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 1997; forget gate of Gers et al. 2000.

GRU4Rec (Hidasi et al., ICLR 2016) with another cell, and with the deviations of models/gru4rec.py. No peepholes.
"""

from __future__ import annotations

from torch import nn

from recpipe.models.gru4rec import GRU4Rec


class LSTM(GRU4Rec):
    """Causal LSTM network."""

    cell = nn.LSTM
