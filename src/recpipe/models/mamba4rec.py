"""Mamba4Rec: causal state-space network of Mamba-2 layers.

Papers: Liu et al., Mamba4Rec: Towards Efficient Sequential Recommendation with Selective State Space Models, 2024
(arXiv 2403.03900); the mixer of Dao, Gu, Transformers are SSMs: Generalized Models and Efficient Algorithms Through
Structured State Space Duality (Mamba-2), ICML 2024 (arXiv 2405.21060).

Differences:

- The mixer is Mamba-2: one decay per head and event (Mamba-1: per channel and state), so that it consists of matrix
  products, also on a CPU.
- Two layers by default (paper: one, and two in an ablation); the residual around the mixer also with one layer.
- Initial weights of the mixer as in Mamba, not N(0, 0.02); epsilon of LayerNorm 1e-5, not 1e-12.
- The loss is a training setting, at every position (paper: softmax, at the last position of every prefix).

Shapes: B batch, T time, D width, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.attention import init_normal
from recpipe.layers.side import Side
from recpipe.layers.ssd import Mamba2
from recpipe.models.next_item import NextItem


class FeedForward(nn.Module):
    """Two linear layers with GELU."""

    def __init__(self, config: Mamba4Rec.Config) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.apply(init_normal)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the outputs (B, T, D) of ``x_BTD``."""
        return self.down(self.dropout(F.gelu(self.up(x_BTD))))


class Layer(nn.Module):
    """Mamba-2 and feed-forward, each with dropout, residual and LayerNorm."""

    def __init__(self, config: Mamba4Rec.Config) -> None:
        super().__init__()
        settings = {name: getattr(config, name) for name in ("state", "conv", "expand", "head_dim", "chunk", "kernel")}
        self.mamba, self.feed = Mamba2(config.dim, **settings), FeedForward(config)
        self.norm_mamba, self.norm_feed = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.before, self.dropout = config.norm == "before", nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
        """Return the layer's output (B, T, D).

        ``segments_BT``: user of each event in a packed row, None in padded batches.
        """
        if self.before:
            x_BTD = x_BTD + self.dropout(self.mamba(self.norm_mamba(x_BTD), segments_BT))
            return x_BTD + self.dropout(self.feed(self.norm_feed(x_BTD)))
        x_BTD = self.norm_mamba(x_BTD + self.dropout(self.mamba(x_BTD, segments_BT)))
        return self.norm_feed(x_BTD + self.dropout(self.feed(x_BTD)))


class Mamba4Rec(NextItem):
    """Causal state-space network, without position embeddings."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the state-space layers.

        ``feed_forward``, ``expand``: in multiples of ``dim``. ``state``: per channel. ``conv``: width in events.
        ``norm``: after each branch (paper) or before (pre-normalisation). ``kernel``: auto, torch or mamba_ssm.
        ``chunk``: events per chunk of the scan, 0 chooses by device.
        """

        dim: int = 64
        layers: int = 2
        state: int = 32
        conv: int = 4
        expand: int = 2
        head_dim: int = 64
        feed_forward: int = 4
        dropout: float = 0.2
        norm: str = "after"
        chunk: int = 0
        kernel: str = "auto"

        def __post_init__(self) -> None:
            check_choices(self, norm=("after", "before"))

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm_last = nn.LayerNorm(config.dim) if config.norm == "before" else nn.Identity()

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        x_BTD = self.norm(self.dropout(x_BTD))
        for layer in self.layers:
            x_BTD = layer(x_BTD, batch.segments)
        return self.norm_last(x_BTD)
