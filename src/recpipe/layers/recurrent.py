"""Recurrent network over embedded histories, shared by LSTM and GRU4Rec. B batch, T time, D width."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from recpipe.config import check_at_least


@dataclass(frozen=True)
class RecurrentConfig:
    """Settings of LSTM and GRU4Rec."""

    dim: int = 64  # of the item table
    hidden: int = 128  # width of the recurrent state
    layers: int = 1
    dropout: float = 0.2

    def __post_init__(self) -> None:
        check_at_least(1, self, "dim", "hidden", "layers")


class Recurrent(nn.Module):
    """Recurrent network: dropout, layers of torch's ``cell`` with dropout between them, LayerNorm, projection."""

    def __init__(self, cell: type[nn.GRU] | type[nn.LSTM], config: RecurrentConfig) -> None:
        super().__init__()
        dim, hidden, layers, dropout = config.dim, config.hidden, config.layers, config.dropout
        between_layers = dropout if layers > 1 else 0.0  # torch warns for a single layer
        self.dropout = nn.Dropout(dropout)
        self.cells = cell(dim, hidden, layers, batch_first=True, dropout=between_layers)
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, dim)
        self.apply(_initialise)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return outputs (B, T, D) of embedded events ``x_BTD``."""
        states, _ = self.cells(self.dropout(x_BTD))  # (B, T, hidden)
        return self.project(self.dropout(self.norm(states)))


def _initialise(module: nn.Module) -> None:
    """Initialise input weights Xavier-uniform, recurrent weights orthogonal per gate, biases with zero."""
    if isinstance(module, nn.RNNBase):
        for name, weight in module.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(weight)
            for gate in weight.chunk(len(weight) // module.hidden_size):
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(gate)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(gate)
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
