"""GPT: causal transformer of GPT-2's shape in nanoGPT's form, over items instead of words.

Papers: Radford, Wu, Child, Luan, Amodei, Sutskever, Language Models are Unsupervised Multitask Learners (GPT-2), OpenAI
2019; code: Karpathy, nanoGPT (a repository); for items: kolakows/nanoGPT-recommender (a repository).

``generate`` reproduces a published Kaggle submission: the first items of a list are decoded autoregressively.

Differences:

- No biases by default and exact GELU, as in nanoGPT (GPT-2: biases, GELU by tanh). Item embeddings times √D, without
  which it learns slowly (docs/experiments/sasrec-and-bert4rec.md).
- Dropout after the embeddings and on each branch, not on attention weights.
- Users are the documents: packed into rows, positions restart and attention stays within a user.

Shapes: B batch, T time, D width, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recpipe.config import check_at_least
from recpipe.data.batches import Batch
from recpipe.layers.attention import causal_mask
from recpipe.layers.gpt2 import GPT2Block, init_gpt2
from recpipe.layers.side import Side
from recpipe.layers.top_k import top_k
from recpipe.models.next_item import NextItem


class GPT(NextItem):
    """Causal transformer with GPT-2's blocks."""

    layouts = ("padded", "packed")

    @dataclass(frozen=True)
    class Config:
        """Settings of the transformer and of autoregressive decoding.

        ``feed_forward``: inner width in multiples of ``dim``. ``generate``: number of items at the head of a list that
        are decoded one by one, each appended to the history before the next is scored; 0: one pass for all.
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
        self.blocks = nn.ModuleList(
            GPT2Block(
                config.dim,
                heads=config.heads,
                inner=config.feed_forward * config.dim,
                dropout=config.dropout,
                bias=config.bias,
            )
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.dim, bias=config.bias)
        init_gpt2(self.positions, self.blocks)

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events ``x_BTD``."""
        x_BTD = self.dropout(x_BTD * math.sqrt(self.config.dim) + self.positions(batch.positions))
        mask = causal_mask(batch, x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        return self.norm(x_BTD)

    @property
    def scores_by_product(self) -> bool:
        """False if ``generate`` is set: ``refine`` reads and changes the scores of all items."""
        return self.config.generate == 0 and not self.history_bias  # ``refine`` reads and changes all scores

    def refine(self, batch: Batch, scores: Tensor) -> Tensor:
        """Decode ``generate`` items and raise their scores (B, I + 1) above all others, in order of decoding."""
        generator = torch.Generator(scores.device).manual_seed(self.config.sample_seed)
        highest, refined = scores.amax(1, keepdim=True), scores.clone()
        allowed, step_scores = scores > -torch.inf, scores
        biased = bool(self.history_bias) and self.config.generate > 1
        bias = torch.where(allowed, scores - self.score(batch).float(), 0.0) if biased else 0.0  # of every step
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
                step_scores = (self.score(batch).float() + bias).masked_fill(~allowed, -torch.inf)
        return refined
