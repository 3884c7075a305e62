"""Mamba4Rec: Liu et al., Mamba4Rec: Towards Efficient Sequential Recommendation with Selective SSMs, 2024.

B batch, T time, D width, I items.

Deviations: the mixer is Mamba-2 (Dao & Gu, ICML 2024), one decay per head and event where Mamba-1 has one per channel
and state: it is matrix products, also on a CPU; ``head_dim`` and two layers by default (the paper: one, and two in an
ablation); the residual around the mixer also with one layer (the authors' code leaves it out there); initial weights
of the mixer as Mamba's authors have them, not N(0, 0.02); LayerNorm's epsilon 1e-5 in place of 1e-12; the loss is the
trainer's, at every position (the paper: softmax, at the last position of every prefix). ``norm: before`` normalises
what goes into a branch, and at the end, in place of every sum.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.layers.dropout import Dropout
from recpipe.layers.side import Side
from recpipe.layers.ssd import Mamba2
from recpipe.models.recommender import NextItem

NORMS = ("after", "before")


class FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, config: Mamba4Rec.Config) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.dropout = Dropout(config.dropout)
        self.apply(_initialise)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x_BTD))))


class Layer(nn.Module):
    """Mamba-2, then a feed-forward; each with dropout, a residual and a LayerNorm."""

    def __init__(self, config: Mamba4Rec.Config) -> None:
        super().__init__()
        self.before = config.norm == "before"
        self.mamba = Mamba2(
            config.dim,
            state=config.state,
            conv=config.conv,
            expand=config.expand,
            head_dim=config.head_dim,
            chunk=config.chunk,
            kernel=config.kernel,
        )
        self.feed = FeedForward(config)
        self.norm_mamba, self.norm_feed = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, segments_BT: Tensor | None) -> Tensor:
        if self.before:
            x_BTD = x_BTD + self.dropout(self.mamba(self.norm_mamba(x_BTD), segments_BT))
            return x_BTD + self.dropout(self.feed(self.norm_feed(x_BTD)))
        x_BTD = self.norm_mamba(x_BTD + self.dropout(self.mamba(x_BTD, segments_BT)))
        return self.norm_feed(x_BTD + self.dropout(self.feed(x_BTD)))


class Mamba4Rec(NextItem):
    """Predicts the next item at every position from the events up to it; no positions: the state knows the order."""

    @dataclass(frozen=True)
    class Config:
        """``feed_forward`` and ``expand`` in multiples of ``dim``; ``state`` numbers per channel, ``conv`` events wide.

        ``chunk`` events are mixed at once, 0 chooses by device. ``kernel``: auto, torch, mamba_ssm. ``norm``: after
        (the paper), before.
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
            if self.norm not in NORMS:
                raise ValueError(f"norm is {self.norm!r}; allowed: {', '.join(NORMS)}")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.dropout = Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm_last = nn.LayerNorm(config.dim) if config.norm == "before" else nn.Identity()

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = self.norm(self.dropout(x_BTD))
        for layer in self.layers:
            x_BTD = layer(x_BTD, batch.segments)
        return self.norm_last(x_BTD)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
