"""GPT: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019, in nanoGPT's form.

B batch, T time, D width, H heads, I items.

Deviations from GPT-2: no biases unless asked for; item embeddings times √D, without which learning is slow (LOG.md);
GELU is exact; dropout after the embeddings and on each branch, not on attention weights; users are the documents:
packed one after the other, with positions that restart and attention that stays within a user. Given vectors of items
(SigLIP, text) come in through the shared ``side`` block. ``generate`` replays a published submission: the first items
of a list are found one after the other, each as if the ones before it had happened.
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
from recpipe.layers.top_k import top_k
from recpipe.models.recommender import NextItem


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: GPT.Config) -> None:
        super().__init__()
        D, bias = config.dim, config.bias
        self.heads = config.heads
        self.norm_attention, self.norm_feed = nn.LayerNorm(D, bias=bias), nn.LayerNorm(D, bias=bias)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=bias), nn.Linear(D, D, bias=bias)
        inner = config.feed_forward * D
        self.up, self.down = nn.Linear(D, inner, bias=bias), nn.Linear(inner, D, bias=bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        return x_BTD + self.dropout(self.down(F.gelu(self.up(self.norm_feed(x_BTD)))))

    def attention(self, x_BTD: Tensor, mask: Mask) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask).transpose(1, 2).reshape(B, T, D))


class GPT(NextItem):
    """Predicts the next item at every position from the events up to it."""

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """``feed_forward`` is the inner width in multiples of ``dim``.

        The first ``generate`` items of a list are generated, each appended to the history before the next is asked
        for; 0 takes the whole list from one answer.
        """

        dim: int = 64
        layers: int = 2
        heads: int = 1
        feed_forward: int = 4
        dropout: float = 0.1
        bias: bool = False
        generate: int = 0

        def __post_init__(self) -> None:
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
            if self.generate < 0:
                raise ValueError(f"generate is {self.generate}; it is a number of items, 0 or more")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.probabilistic = config.generate == 0
        self.positions = nn.Embedding(max_length, config.dim)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, bias=config.bias)
        for module in (self.positions, *self.blocks):
            module.apply(_initialise)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(
                ("out.weight", "down.weight")
            ):  # what is added to the stream grows not with depth
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.layers))

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = self.dropout(x_BTD * math.sqrt(self.config.dim) + self.positions(batch.positions))
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return self.norm(x_BTD)

    def refine(self, batch: Batch, scores: Tensor) -> Tensor:
        """Lifts the generated items above all others, in their order; the others keep their scores."""
        best, refined = scores.amax(1, keepdim=True), scores.clone()
        allowed, found = scores > -torch.inf, scores
        for n in range(self.config.generate):
            item, _ = top_k(found, 1)
            more = item > 0  # not where nothing is left
            lifted = torch.where(more, best + (self.config.generate - n), -torch.inf)
            refined.scatter_(1, item, lifted)
            allowed.scatter_(1, item, False)
            if n + 1 < self.config.generate:
                batch = batch.append_event(item[:, 0], self.max_length)
                found = self.score(batch).float().masked_fill(~allowed, -torch.inf)
        return refined


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
