"""SASRec: causal transformer over the items of a history.

Paper: Kang, McAuley, Self-Attentive Sequential Recommendation, ICDM 2018 (arXiv 1808.09781).

Variants in conf: gSASRec (Petrov, Macdonald, RecSys 2023, arXiv 2308.07192) uses the loss gbce and one item table (its
authors' code: a second one for the output). eSASRec (Tikhonovich et al., RecSys 2025, arXiv 2508.06450) uses LiGR
blocks and a sampled softmax.

Differences:

- LayerNorm before each branch on query, key and value; the residual is the input (authors' code: LayerNorm on the query
  only, whose result is also the residual).
- Attention has an output projection (authors' code: none), the feed-forward one dropout (authors' code: two).
- The loss is a training setting, full softmax by default (paper: one negative per positive).
- Right-padding; positions count from the first event of a window.
- Dropout of attention weights is a separate setting, 0 by default (authors' code: as the others).

Shapes: B batch, T time, D width, H heads, I items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.attention import Mask, attend, causal_mask, init_normal
from recpipe.layers.side import Side
from recpipe.models.next_item import NextItem


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, nn.Dropout(config.attention_dropout)
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        """Return attended states (B, T, D) of ``x_BTD`` under the causal ``mask``."""
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask, self.dropout).transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """Transformer block with pre- or post-normalisation and a point-wise feed-forward."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        D, inner = config.dim, config.feed_forward * config.dim
        self.norm_attention, self.norm_feed = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = Attention(config)
        self.up, self.down = nn.Linear(D, inner), nn.Linear(inner, D)
        self.dropout, self.post, self.activation = nn.Dropout(config.dropout), config.norm == "post", config.activation

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        """Return the block's output (B, T, D) of ``x_BTD`` under the causal ``mask``."""
        if self.post:
            x_BTD = self.norm_attention(x_BTD + self.dropout(self.attention(x_BTD, mask)))
            return self.norm_feed(x_BTD + self.feed_forward(x_BTD))
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        return x_BTD + self.feed_forward(self.norm_feed(x_BTD))

    def feed_forward(self, x_BTD: Tensor) -> Tensor:
        """Return the feed-forward branch (B, T, D) of ``x_BTD``."""
        return self.dropout(self.down(ACTIVATIONS[self.activation](self.up(x_BTD))))


class LiGRBlock(nn.Module):
    """LiGR block (Borisyuk et al. 2025) as in eSASRec: branches gated by the residual stream, SwiGLU feed-forward."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        D, inner = config.dim, config.feed_forward * config.dim
        self.norm_attention, self.norm_feed = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = Attention(config)
        self.gate_attention, self.gate_feed = nn.Linear(D, D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * inner, bias=False), nn.Linear(inner, D, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        """Return the block's output (B, T, D) of ``x_BTD`` under the causal ``mask``."""
        attention = self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        x_BTD = x_BTD + torch.sigmoid(self.gate_attention(x_BTD)) * attention
        value, gate = self.up(self.norm_feed(x_BTD)).chunk(2, -1)
        feed_forward = self.dropout(self.down(F.silu(gate) * value))
        return x_BTD + torch.sigmoid(self.gate_feed(x_BTD)) * feed_forward


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}
BLOCKS: dict[str, type[nn.Module]] = {"sasrec": Block, "ligr": LiGRBlock}


class SASRec(NextItem):
    """Causal transformer with SASRec's or LiGR's blocks."""

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """Settings of the transformer.

        ``feed_forward``: inner width in multiples of ``dim`` (paper: 1). ``positions``: add position embeddings.
        ``norm`` of the block sasrec: pre normalises the input of a branch; post, as in RecBole, the sum of branch and
        input, and the embedded events instead of the last states. ``activation`` of the block sasrec: relu (paper) or
        gelu. ``scale_embeddings``: multiply embedded events by sqrt(dim), as the authors' code.
        """

        dim: int = 64
        layers: int = 2
        heads: int = 1
        feed_forward: int = 1
        dropout: float = 0.2
        attention_dropout: float = 0.0
        block: str = "sasrec"
        norm: str = "pre"
        positions: bool = True
        activation: str = "relu"
        scale_embeddings: bool = True

        def __post_init__(self) -> None:
            check_choices(self, norm=("pre", "post"), block=BLOCKS, activation=ACTIVATIONS)
            for name, default in (("norm", "pre"), ("activation", "relu")):
                if (value := getattr(self, name)) != default and self.block != "sasrec":
                    raise ValueError(f"{name} is {value} and block {self.block}; {value} needs block: sasrec")
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.positions = nn.Embedding(max_length, config.dim) if config.positions else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        for module in filter(None, (self.positions, *self.blocks)):
            module.apply(init_normal)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        post = self.config.norm == "post"
        if self.config.scale_embeddings:
            x_BTD = x_BTD * math.sqrt(self.config.dim)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(batch.positions)
        x_BTD = self.dropout(self.norm(x_BTD) if post else x_BTD)
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return x_BTD if post else self.norm(x_BTD)
