"""BERT4Rec: Sun et al., Sequential Recommendation with Bidirectional Encoder Representations, CIKM 2019.

B batch, T time, D width, H heads, I items.

Deviations: windows of users are masked anew at every step (the authors: ten fixed copies, and one with only the last
item masked; here ``last_share`` of the rows of a step is masked there alone); places are counted from a row's first
event (the authors pad on the left, so that the place that is asked for is always the same: ``count_from: end``); no
output bias, so that the head is a
product with the item table as for every other model; what is masked is always [MASK] (BERT: a tenth another item, a
tenth left as it is: ``random_share``, ``kept_share``); one position more than the history has events, so that the
appended [MASK] pushes none of them out; LayerNorm before each branch (BERT's own blocks: ``norm_first: false``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.layers.dropout import Dropout
from recpipe.layers.inputs import ItemInput
from recpipe.layers.side import Side
from recpipe.models.recommender import Criterion, Scorer

EPSILON = 1e-12  # of every LayerNorm, as in BERT


class Attention(nn.Module):
    """Multi-head self-attention of every position to all real ones."""

    def __init__(self, config: BERT4Rec.Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.out = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, keys_BT: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_BT[:, None, None], dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))  # from (B, H, T, D / H)


class Block(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward; or, after BERT, norm(x + attention(x))."""

    def __init__(self, config: BERT4Rec.Config) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.inside, self.attention = config.dropout_inside, Attention(config)
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.norm_attention, self.norm_feed = (nn.LayerNorm(config.dim, eps=EPSILON) for _ in range(2))
        self.dropout, self.norm_first = Dropout(config.dropout), config.norm_first

    def forward(self, x_BTD: Tensor, keys_BT: Tensor) -> Tensor:
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), keys_BT))
            x_BTD = x_BTD + self.dropout(self.feed(self.norm_feed(x_BTD)))
            return self.dropout(x_BTD) if self.inside else x_BTD
        x_BTD = self.norm_attention(x_BTD + self.dropout(self.attention(x_BTD, keys_BT)))
        return self.norm_feed(x_BTD + self.dropout(self.feed(x_BTD)))

    def feed(self, x_BTD: Tensor) -> Tensor:
        wide = F.gelu(self.up(x_BTD))
        return self.down(self.dropout(wide) if self.inside else wide)


class BERT4Rec(Scorer):
    """Fills masked places of a history from both sides; the next item is a masked place after the last event."""

    @dataclass(frozen=True)
    class Config:
        """``mask_share`` of the events of a row are masked, or in ``last_share`` of the rows the last event alone.

        ``type_embedding`` adds BERT's token types: 0 for events, 1 for masked places (in the authors' code 0 for all).
        ``norm_first`` puts LayerNorm before attention and feed-forward; without it the blocks are BERT's.
        ``scale``: what comes in is taken times the root of ``dim``, as in SASRec; only with ``norm_first``.
        ``initial`` weights: bert's normal ones of .02, or xavier's. ``dropout_inside``: also within the feed-forward
        and, with ``norm_first``, of what a block gives on. Of the masked events ``random_share`` are replaced by any
        item and ``kept_share`` left as they are, .1 of both in BERT's own. RecTools' model is without ``scale``, with
        the other three.
        ``count_from``: which event of a row has the first of the learned places, its first (start) or its last (end).
        """

        dim: int = 64
        layers: int = 2
        heads: int = 2
        feed_forward: int = 4
        dropout: float = 0.2
        attention_dropout: float = 0.0
        mask_share: float = 0.2
        last_share: float = 0.1
        type_embedding: bool = False
        norm_first: bool = True
        scale: bool = True
        initial: str = "bert"
        dropout_inside: bool = False
        random_share: float = 0.0
        kept_share: float = 0.0
        count_from: str = "start"

        def __post_init__(self) -> None:
            if self.dim % self.heads:
                raise ValueError(f"dim {self.dim} is not a multiple of heads {self.heads}")
            if not 0 < self.mask_share < 1:
                raise ValueError(f"mask_share is {self.mask_share}; it must lie between 0 and 1")
            for name, allowed in (("count_from", ("start", "end")), ("initial", ("bert", "xavier"))):
                if (value := getattr(self, name)) not in allowed:
                    raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
            if min(self.random_share, self.kept_share) < 0 or self.random_share + self.kept_share >= 1:
                raise ValueError(
                    f"random_share is {self.random_share} and kept_share {self.kept_share}; they are shares of the "
                    "masked events, of which some must be [MASK]"
                )
            if not 0 <= self.last_share <= 1:
                raise ValueError(f"last_share is {self.last_share}; it is a share of the rows, 0 to 1")

    config: Config

    takes_side = True

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.mask_item = n_items + 1
        self.items = ItemInput(n_items, config.dim, side, extra=1)
        self.positions = nn.Embedding(max_length + 1, config.dim)
        self.types = nn.Embedding(2, config.dim) if config.type_embedding else None
        self.norm = nn.LayerNorm(config.dim, eps=EPSILON)  # after the last block, or BERT's before the first
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.transform = nn.Sequential(
            nn.Linear(config.dim, config.dim), nn.GELU(), nn.LayerNorm(config.dim, eps=EPSILON)
        )
        for name, module in self.named_children():
            if name != "items":
                module.apply(_initialise)
        if config.initial == "xavier":
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_normal_(weight)

    def encode(self, batch: Batch, table: Tensor) -> Tensor:
        """BERT's hidden states (B, T, D); only the first ``lengths`` places of a row are attended to."""
        place, masked = batch.positions, batch.items == self.mask_item
        keys_BT = place < batch.lengths.clamp(min=1)[:, None]  # at least one, else the softmax is 0 / 0
        if self.config.count_from == "end":
            place = (batch.lengths[:, None] - 1 - place).clamp(min=0)  # padding is attended to by nothing
        x_BTD = self.items.embed(batch, table, hidden=masked) + self.positions(place)
        if self.types is not None:
            x_BTD = x_BTD + self.types(masked.long())
        if not self.config.norm_first:
            x_BTD = self.norm(x_BTD)
        elif self.config.scale:
            x_BTD = x_BTD * math.sqrt(self.config.dim)
        x_BTD = self.dropout(x_BTD)
        for block in self.blocks:
            x_BTD = block(x_BTD, keys_BT)
        return self.norm(x_BTD) if self.config.norm_first else x_BTD

    def loss(self, batch: Batch, criterion: Criterion) -> Tensor:
        hidden_BT = self.draw_masks(batch)
        inputs = replace(batch, items=self.replaced(batch.items, hidden_BT))
        table = self.items.table()
        hidden = self.transform(self.encode(inputs, table)[hidden_BT])
        return criterion(hidden, self.items.head(table), batch.items[hidden_BT])

    def replaced(self, items_BT: Tensor, hidden_BT: Tensor) -> Tensor:
        """(B, T): what the model reads where ``hidden_BT`` is True: [MASK], but for the shares of the config."""
        masked = items_BT.masked_fill(hidden_BT, self.mask_item)
        some, kept = self.config.random_share, self.config.kept_share
        if not some + kept:
            return masked
        draw = torch.rand(items_BT.shape, device=items_BT.device).masked_fill(~hidden_BT, 1.0)
        other = torch.randint(1, self.n_items + 1, items_BT.shape, device=items_BT.device)
        masked = torch.where(draw < some + kept, items_BT, masked)
        return torch.where(draw < some, other, masked)

    def draw_masks(self, batch: Batch) -> Tensor:
        """(B, T) bool, at least one place of every row that has events; drawn from torch's seeded generator."""
        real, rows = batch.mask, len(batch.items)
        draw = torch.rand(real.shape, device=real.device).masked_fill(~real, 2.0)
        lowest = draw.amin(1, keepdim=True)  # masked whatever the share: no row is for nothing
        spread = (draw < self.config.mask_share) | (draw == lowest)
        place = torch.arange(real.shape[1], device=real.device)
        last = place == batch.lengths[:, None] - 1
        only_last = torch.rand(rows, 1, device=real.device) < self.config.last_share
        return torch.where(only_last, last, spread) & real

    def score(self, batch: Batch) -> Tensor:
        rows, table = torch.arange(len(batch.items), device=batch.items.device), self.items.table()
        hidden = self.encode(self.asking(batch), table)[rows, batch.lengths]  # (B, D)
        return self.transform(hidden) @ self.items.head(table).T

    def item_tables(self) -> dict[str, Tensor]:
        return self.items.tables()

    def asking(self, batch: Batch) -> Batch:
        """``batch`` with [MASK] after every last event."""
        longer = batch.pad(1)
        items = longer.items.scatter(1, batch.lengths[:, None], self.mask_item)
        return replace(longer, items=items, lengths=batch.lengths + 1)


def _initialise(module: nn.Module) -> None:
    """BERT's: truncated normal of .02, biases zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
