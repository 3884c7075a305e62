"""A recurrent network over embedded histories: what LSTM and GRU4Rec share. B batch, T time, D width."""

from __future__ import annotations

from torch import Tensor, nn

from recpipe.layers.dropout import Dropout


class Recurrent(nn.Module):
    """Dropout -> ``layers`` of torch's ``cell`` -> LayerNorm -> projection back to ``dim``.

    Causal, so that padding on the right reaches nothing that is read. ``dropout`` acts on the input, between
    layers and on what goes into the projection. Raises ValueError for a size below one.
    """

    def __init__(
        self, cell: type[nn.GRU] | type[nn.LSTM], *, dim: int, hidden: int, layers: int, dropout: float
    ) -> None:
        super().__init__()
        for name, value in (("dim", dim), ("hidden", hidden), ("layers", layers)):
            if value < 1:
                raise ValueError(f"{name} is {value}; a recurrent network needs at least 1")
        between = dropout if layers > 1 else 0.0  # torch warns where there is nothing between
        self.dropout = Dropout(dropout)
        self.cells = cell(dim, hidden, layers, batch_first=True, dropout=between)
        self.norm = nn.LayerNorm(hidden)
        self.project = nn.Linear(hidden, dim)
        self.apply(_initialise)

    def forward(self, x_BTD: Tensor) -> Tensor:
        states, _ = self.cells(self.dropout(x_BTD))  # (B, T, hidden)
        return self.project(self.dropout(self.norm(states)))


def _initialise(module: nn.Module) -> None:
    """Weights that see the input Xavier-uniform, recurrent ones orthogonal gate by gate, biases zero."""
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
