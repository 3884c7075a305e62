"""Mamba4Rec: Liu et al., Towards Efficient Sequential Recommendation with Selective State Space Models, 2024.

B batch, T time, D width, I items.

Deviations: Mamba-2 blocks (Dao & Gu, ICML 2024) instead of Mamba-1, whose scan is slow without its CUDA kernel; the
loss is the trainer's at every position (the authors': the last item of every prefix); a residual around the mixer also
with one layer; ``norm_first`` normalises before mixer and feed-forward instead of after them.
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


class Mamba4Rec(NextItem):
    """Predicts the next item at every position from a state of the events up to it; there are no positions."""

    @dataclass(frozen=True)
    class Config:
        """``state``, ``head_dim``, ``expand``, ``conv`` and ``kernel`` are those of recpipe.layers.ssd.Mamba2;
        ``feed_forward`` is the inner width in multiples of ``dim``.
        """

        dim: int = 64
        layers: int = 2
        state: int = 32
        head_dim: int = 32
        expand: int = 2
        conv: int = 4
        feed_forward: int = 4
        dropout: float = 0.2
        norm_first: bool = False
        kernel: str = "auto"

        def __post_init__(self) -> None:
            for name in ("dim", "layers", "state", "head_dim", "expand", "conv", "feed_forward"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.dropout, self.norm = Dropout(config.dropout), nn.LayerNorm(config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = self.dropout(x_BTD)
        x_BTD = x_BTD * self.config.dim**0.5 if self.config.norm_first else self.norm(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, batch.segments)
        return self.norm(x_BTD) if self.config.norm_first else x_BTD


class Block(nn.Module):
    """norm(x + mixer(x)), then the same with the feed-forward; or x + mixer(norm(x))."""

    def __init__(self, config: Mamba4Rec.Config) -> None:
        super().__init__()
        self.mixer = Mamba2(
            config.dim,
            state=config.state,
            head_dim=config.head_dim,
            expand=config.expand,
            conv=config.conv,
            kernel=config.kernel,
        )
        inner = config.feed_forward * config.dim
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.norm_mixer, self.norm_feed = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.dropout, self.norm_first = Dropout(config.dropout), config.norm_first
        for linear in (self.mixer.in_proj, self.mixer.out_proj, self.up, self.down):
            nn.init.normal_(linear.weight, std=0.02)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, x_BTD: Tensor, segments: Tensor | None) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.mixer(self.norm_mixer(x_BTD), segments))
            return x_BTD + self.dropout(self.feed(self.norm_feed(x_BTD)))
        x_BTD = self.norm_mixer(x_BTD + self.dropout(self.mixer(x_BTD, segments)))
        return self.norm_feed(x_BTD + self.dropout(self.feed(x_BTD)))

    def feed(self, x_BTD: Tensor) -> Tensor:
        return self.down(self.dropout(F.gelu(self.up(x_BTD))))
