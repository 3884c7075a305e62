"""SASRec: Kang & McAuley, Self-Attentive Sequential Recommendation, ICDM 2018.

B batch, T time, D width, H heads, I items.

Deviations: LayerNorm before each block on query, key and value alike (the paper normalises the query only); the loss
is the trainer's (full softmax by default; the paper has one negative per positive); right-padding, with positions
counted from each window's first event; dropout on attention weights is a setting of its own, 0 by default.

Variants by conf: gSASRec (Petrov & Macdonald, RecSys 2023) is this net with the loss gbce (its authors' code has a
second item table for the output; ours has one); eSASRec (RecSys 2025) has LiGR blocks and a sampled softmax.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.layers.attention import Mask, attend, causal_mask
from recpipe.layers.dropout import Dropout
from recpipe.layers.side import Side
from recpipe.models.recommender import NextItem


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, Dropout(config.attention_dropout)
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(q, k, v, mask, self.dropout)  # (B, H, T, D / H)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))


class Block(nn.Module):
    """x + attention, then x + point-wise feed-forward; ``norm`` says whether inputs or sums are normalised."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.norm_attention, self.norm_feed = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.attention = Attention(config)
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.dropout, self.post = Dropout(config.dropout), config.norm == "post"

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        if self.post:
            x_BTD = self.norm_attention(x_BTD + self.dropout(self.attention(x_BTD, mask)))
            return self.norm_feed(x_BTD + self._fed(x_BTD))
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        return x_BTD + self._fed(self.norm_feed(x_BTD))

    def _fed(self, x_BTD: Tensor) -> Tensor:
        return self.dropout(self.down(F.relu(self.up(x_BTD))))


class LiGRBlock(nn.Module):
    """LiGR (Borisyuk et al. 2025), as in eSASRec: each branch is gated by what it is added to, SwiGLU feeds forward."""

    def __init__(self, config: SASRec.Config) -> None:
        super().__init__()
        D, inner = config.dim, config.feed_forward * config.dim
        self.norm_attention, self.norm_feed = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attention = Attention(config)
        self.gate_attention, self.gate_feed = nn.Linear(D, D), nn.Linear(D, D)
        self.up, self.down = nn.Linear(D, 2 * inner, bias=False), nn.Linear(inner, D, bias=False)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        mixed = self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        x_BTD = x_BTD + torch.sigmoid(self.gate_attention(x_BTD)) * mixed
        value, gate = self.up(self.norm_feed(x_BTD)).chunk(2, -1)
        fed = self.dropout(self.down(F.silu(gate) * value))
        return x_BTD + torch.sigmoid(self.gate_feed(x_BTD)) * fed


BLOCKS: dict[str, type[nn.Module]] = {"sasrec": Block, "ligr": LiGRBlock}


class SASRec(NextItem):
    """Predicts the next item at every position from the events up to it."""

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """``feed_forward`` is the inner width in multiples of ``dim`` (1 in the paper); ``block``: sasrec or ligr.

        ``norm``, of the block sasrec: pre normalises what a branch reads; post, as RecBole does, the sum of branch and
        input, and the embedded events instead of the last state. ``positions``: learned embeddings of places are added
        to the items.
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

        def __post_init__(self) -> None:
            if self.norm not in ("pre", "post") or (self.norm == "post" and self.block != "sasrec"):
                raise ValueError(f"norm is {self.norm!r}; allowed: pre, and post with the block sasrec")
            if self.block not in BLOCKS:
                raise ValueError(f"block is {self.block!r}; allowed: {', '.join(BLOCKS)}")
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.positions = nn.Embedding(max_length, config.dim) if config.positions else None
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(BLOCKS[config.block](config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)
        for module in filter(None, (self.positions, *self.blocks)):
            module.apply(_initialise)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        post = self.config.norm == "post"
        x_BTD = x_BTD * math.sqrt(self.config.dim)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(batch.positions)
        x_BTD = self.dropout(self.norm(x_BTD) if post else x_BTD)
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return x_BTD if post else self.norm(x_BTD)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
