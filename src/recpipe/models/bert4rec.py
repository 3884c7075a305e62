"""BERT4Rec: bidirectional transformer, trained to predict masked events of a history.

Paper: Sun, Liu, Wu, Pei, Lin, Ou, Jiang, BERT4Rec: Sequential Recommendation with Bidirectional Encoder Representations
from Transformer, CIKM 2019 (arXiv 1904.06690).

Differences:

- Masks are drawn anew at every step (authors: ten fixed copies, and one with only the last item masked, which
  ``last_share`` replaces). Masked events always become [MASK]; ``random_share`` and ``kept_share`` are BERT's other
  replacements. One position more than the history has events, so that the appended [MASK] displaces none.
- Positions count from a row's first event, as in the authors' code; with ``count_from: end`` from its last, as in
  RecTools.
- Every event is masked with the probability ``mask_share`` (authors' code: this share of each row, rounded).
- The validation event is no training event (authors' code: it is).
- No output bias: scores are a product with the item table, as in every other model.
- LayerNorm before each branch; ``norm_first: false`` is BERT's block.

Shapes: B batch, T time, D width, H heads, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.layers.inputs import ItemInput
from recpipe.layers.side import Side
from recpipe.models.recommender import Criterion, Scorer

EPSILON = 1e-12  # of every LayerNorm, as in BERT


class Attention(nn.Module):
    """Bidirectional multi-head self-attention."""

    def __init__(self, config: BERT4Rec.Config) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.attention_dropout
        self.qkv, self.out = nn.Linear(config.dim, 3 * config.dim), nn.Linear(config.dim, config.dim)

    def forward(self, x_BTD: Tensor, keys_BT: Tensor) -> Tensor:
        """Return attended states (B, T, D) of ``x_BTD``.

        ``keys_BT`` bool: True at the positions that may be attended to.
        """
        B, T, D = x_BTD.shape
        q, k, v = self.qkv(x_BTD).view(B, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=keys_BT[:, None, None], dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(B, T, D))  # from (B, H, T, D / H)


class Block(nn.Module):
    """Transformer block with pre-normalisation or, as in BERT, post-normalisation."""

    def __init__(self, config: BERT4Rec.Config) -> None:
        super().__init__()
        inner = config.feed_forward * config.dim
        self.inside, self.attention = config.dropout_inside, Attention(config)
        self.up, self.down = nn.Linear(config.dim, inner), nn.Linear(inner, config.dim)
        self.norm_attention, self.norm_feed = (nn.LayerNorm(config.dim, eps=EPSILON) for _ in range(2))
        self.dropout, self.norm_first = nn.Dropout(config.dropout), config.norm_first

    def forward(self, x_BTD: Tensor, keys_BT: Tensor) -> Tensor:
        """Return the block's output (B, T, D). ``keys_BT`` bool: True at the positions that may be attended to."""
        if self.norm_first:
            x_BTD = x_BTD + self.dropout(self.attention(self.norm_attention(x_BTD), keys_BT))
            x_BTD = x_BTD + self.dropout(self.feed(self.norm_feed(x_BTD)))
            return self.dropout(x_BTD) if self.inside else x_BTD
        x_BTD = self.norm_attention(x_BTD + self.dropout(self.attention(x_BTD, keys_BT)))
        return self.norm_feed(x_BTD + self.dropout(self.feed(x_BTD)))

    def feed(self, x_BTD: Tensor) -> Tensor:
        """Return the feed-forward branch (B, T, D) of ``x_BTD``."""
        inner = F.gelu(self.up(x_BTD))
        return self.down(self.dropout(inner) if self.inside else inner)


class BERT4Rec(Scorer):
    """Bidirectional transformer that predicts masked events; the next item is a [MASK] after the last event."""

    takes_side = True
    takes_weights = True

    @dataclass(frozen=True)
    class Config:
        """Settings of the transformer and of masking.

        ``feed_forward``: inner width in multiples of ``dim``. ``mask_share``: share of a row's events that are masked.
        ``last_share``: share of rows in which only the last event is masked. ``random_share``, ``kept_share``: share of
        masked events that are replaced by a random item, or left unchanged (BERT: 0.1 each). ``type_embedding``: add
        BERT's token types, 0 for events and 1 for masked ones (authors: 0 for all). ``norm_first``: pre-normalisation,
        or BERT's blocks. ``scale``: multiply embeddings by √dim as in SASRec, if ``norm_first``. ``initial``: bert
        (truncated normal, 0.02) or xavier. ``dropout_inside``: also in the feed-forward and, if ``norm_first``, on the
        output of a block. ``count_from``: the event at position 0, the first of a row (start) or its last (end).

        RecTools' model, except its head, has the settings of the profile dense-small.
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
                raise ValueError(f"mask_share is {self.mask_share}; it must be between 0 and 1")
            check_choices(self, count_from=("start", "end"), initial=("bert", "xavier"))
            if min(self.random_share, self.kept_share) < 0 or self.random_share + self.kept_share >= 1:
                raise ValueError(
                    f"random_share is {self.random_share} and kept_share {self.kept_share}; "
                    "allowed: at least 0 each, together less than 1"
                )
            if not 0 <= self.last_share <= 1:
                raise ValueError(f"last_share is {self.last_share}; allowed: 0 to 1")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.mask_item = n_items + 1
        self.items = ItemInput(n_items, config.dim, side, extra=1)
        self.positions = nn.Embedding(max_length + 1, config.dim)
        self.types = nn.Embedding(2, config.dim) if config.type_embedding else None
        self.norm = nn.LayerNorm(config.dim, eps=EPSILON)  # after the last block, or BERT's before the first
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        norm = nn.LayerNorm(config.dim, eps=EPSILON)
        self.transform = nn.Sequential(nn.Linear(config.dim, config.dim), nn.GELU(), norm)
        modules = (module for name, child in self.named_children() if name != "items" for module in child.modules())
        for module in modules:
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if config.initial == "xavier":
            for weight in self.parameters():
                if weight.ndim > 1:
                    nn.init.xavier_normal_(weight)

    def encode(self, batch: Batch, table: Tensor) -> Tensor:
        """Return hidden states (B, T, D); only the first ``lengths`` positions of a row are attended to."""
        position, masked = batch.positions, batch.items == self.mask_item
        keys_BT = position < batch.lengths.clamp(min=1)[:, None]  # at least one, else the softmax is 0 / 0
        if self.config.count_from == "end":
            position = (batch.lengths[:, None] - 1 - position).clamp(min=0)
        x_BTD = self.items.embed(batch, table, masked=masked) + self.positions(position)
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
        """Return the loss (scalar) at masked events of ``batch``: hidden states there against their true items."""
        masks_BT = self.draw_masks(batch)
        inputs, table = replace(batch, items=self.mask_items(batch.items, masks_BT)), self.items.table()
        hidden = self.transform(self.encode(inputs, table)[masks_BT])
        weights = None if batch.weights is None else batch.weights[masks_BT]
        return criterion(hidden, self.items.head(table), batch.items[masks_BT], weights)

    def draw_masks(self, batch: Batch) -> Tensor:
        """Draw the masked events (B, T) bool among those that may be targets, at least one in every row with any."""
        is_event, rows = batch.mask if batch.is_target is None else batch.mask & batch.is_target, len(batch.items)
        draw = torch.rand(is_event.shape, device=is_event.device).masked_fill(~is_event, 2.0)
        spread = (draw < self.config.mask_share) | (draw == draw.amin(1, keepdim=True))
        place = torch.arange(is_event.shape[1], device=is_event.device)
        last = place == (place * is_event).amax(1, keepdim=True)
        only_last = torch.rand(rows, 1, device=is_event.device) < self.config.last_share
        return torch.where(only_last, last, spread) & is_event

    def mask_items(self, items_BT: Tensor, masks_BT: Tensor) -> Tensor:
        """Replace items (B, T) where ``masks_BT`` is True by [MASK], a random item, or themselves."""
        masked = items_BT.masked_fill(masks_BT, self.mask_item)
        random_share, unchanged_share = self.config.random_share, self.config.kept_share
        if not random_share + unchanged_share:
            return masked
        draw = torch.rand(items_BT.shape, device=items_BT.device).masked_fill(~masks_BT, 1.0)
        random_items = torch.randint(1, self.n_items + 1, items_BT.shape, device=items_BT.device)
        masked = torch.where(draw < random_share + unchanged_share, items_BT, masked)
        return torch.where(draw < random_share, random_items, masked)

    def query_vectors(self, batch: Batch) -> Tensor:
        """Return vectors (B, D) of a [MASK] that is appended to every row."""
        padded, table = batch.pad(1), self.items.table()
        items = padded.items.scatter(1, batch.lengths[:, None], self.mask_item)
        hidden = self.encode(replace(padded, items=items, lengths=batch.lengths + 1), table)
        hidden = hidden[torch.arange(items.shape[0], device=items.device), batch.lengths]  # (B, D)
        return self.transform(hidden)

    def output_vectors(self) -> Tensor:
        """Return the item table (I + 1, D) that scores items."""
        return self.items.head(self.items.table())

    @property
    def scores_by_content(self) -> bool:
        """Whether item vectors are computed from content alone, so that items without training events are scored."""
        return self.items.is_content_alone

    def item_tables(self) -> dict[str, Tensor]:
        """Return the input and output tables of items (I + 1, D)."""
        return self.items.tables()
