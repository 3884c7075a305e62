"""GPT: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2), 2019, in nanoGPT's form.

B batch, T time, D width, H heads, I items. Deviations from GPT-2:
- No biases by default; exact GELU. Item embeddings times √D, without which it learns slowly (LOG.md).
- Dropout after the embeddings and on each branch, not on attention weights.
- Users are the documents: packed into rows, positions restart and attention stays within a user.

``generate`` reproduces a published Kaggle submission: the first items of a list are decoded autoregressively.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.layers.attention import Mask, attend, causal_mask, init_normal
from recpipe.layers.side import Side
from recpipe.layers.top_k import top_k
from recpipe.models.next_item import NextItem


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, config: GPT.Config) -> None:
        super().__init__()
        D, inner, bias = config.dim, config.feed_forward * config.dim, config.bias
        self.norm_attention, self.norm_feed = nn.LayerNorm(D, bias=bias), nn.LayerNorm(D, bias=bias)
        self.qkv, self.out = nn.Linear(D, 3 * D, bias=bias), nn.Linear(D, D, bias=bias)
        self.up, self.down = nn.Linear(D, inner, bias=bias), nn.Linear(inner, D, bias=bias)
        self.heads, self.dropout = config.heads, nn.Dropout(config.dropout)

    def forward(self, x_BTD: Tensor, mask: Mask = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), mask))
        return x_BTD + self.dropout(self.down(F.gelu(self.up(self.norm_feed(x_BTD)))))

    def attention(self, x_BTD: Tensor, mask: Mask) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.out(attend(q, k, v, mask).transpose(1, 2).reshape(B, T, D))


class GPT(NextItem):
    """Causal transformer."""

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """``feed_forward``: inner width in multiples of ``dim``. ``generate``: number of items at the head of a list
        that are decoded one by one, each appended to the history before the next is scored; 0: one pass for all.
        ``sample_from``: each is drawn from this number of best items by their softmax, with ``sample_seed``; 1: the
        best one.
        """

        dim: int = 64
        layers: int = 2
        heads: int = 1
        feed_forward: int = 4
        dropout: float = 0.1
        bias: bool = False
        generate: int = 0
        sample_from: int = 1
        sample_seed: int = 0

        def __post_init__(self) -> None:
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
            check_at_least(0, self, "generate")
            check_at_least(1, self, "sample_from")

    search_settings = ("sample_from", "sample_seed")
    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.probabilistic = config.generate == 0
        self.positions = nn.Embedding(max_length, config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim, bias=config.bias)
        for module in (self.positions, *self.blocks):
            module.apply(init_normal)
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("out.weight", "down.weight")):  # GPT-2: scaled by the number of residual branches
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.layers))

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = self.dropout(x_BTD * math.sqrt(self.config.dim) + self.positions(batch.positions))
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return self.norm(x_BTD)

    @property
    def scores_by_product(self) -> bool:
        return self.config.generate == 0  # otherwise ``refine`` reads and changes all scores

    def refine(self, batch: Batch, scores: Tensor) -> Tensor:
        """Decode ``generate`` items and raise their scores above all others, in order of decoding."""
        generator = torch.Generator(scores.device).manual_seed(self.config.sample_seed)
        highest, refined = scores.amax(1, keepdim=True), scores.clone()
        allowed, step_scores = scores > -torch.inf, scores
        for n in range(self.config.generate):
            item, values = top_k(step_scores, self.config.sample_from)
            if self.config.sample_from > 1:  # rows without an allowed item have NaN here, and item 0 in every place
                chances = values.softmax(1).nan_to_num(1.0)
                item = item.gather(1, torch.multinomial(chances, 1, generator=generator))
            score = torch.where(item > 0, highest + (self.config.generate - n), -torch.inf)
            refined.scatter_(1, item, score)
            allowed.scatter_(1, item, False)
            if n + 1 < self.config.generate:
                batch = batch.append_event(item[:, 0], self.max_length)
                step_scores = self.score(batch).float().masked_fill(~allowed, -torch.inf)
        return refined
