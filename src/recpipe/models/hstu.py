"""HSTU: causal network with pointwise gated attention (Hierarchical Sequential Transduction Units).

Paper: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations, ICML 2024 (arXiv 2402.17152), section 3; sizes and time buckets as in the authors' public experiments.

A layer, with n = LN(x) and no feed-forward:

    u, v, q, k = SiLU(n W)
    y = (u * LN(A v)) W_o + b + x,  A = SiLU(q k' + position bias + time bias) / N where S <= T, else 0

Differences:

- The time of a query is the setting ``time_mode``. The authors' code reads the time of the event to be predicted
  (``query``), which makes it incomparable to models that do not; ``last_item`` reads that of the last event, ``none``
  no time.
- N is ``max_length`` (authors' code: eleven more positions for output). Without ``normalise`` the output is not
  normalised.
- The loss is a training setting, full softmax by default (authors' code: sampled, 128 negatives).
- No Stochastic Length (section 3.2) and no kernel for jagged rows: attention costs the square of the length.

Shapes: B batch, T time (of a query), S time (of what it looks at), D width, H heads, I items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.config import check_choices
from recpipe.data.batches import Batch
from recpipe.data.protocol import TIME_CHOICES
from recpipe.layers.inputs import STD
from recpipe.layers.side import Side
from recpipe.models.next_item import NextItem

EPS = 1e-6
BUCKETS, BUCKET_WIDTH = 129, 0.301  # of log(seconds), as the authors'; 68 years are in bucket 71
MASKED = -1e9  # bias at which SiLU and its slope are exactly zero; at -inf they are NaN


class HSTU(NextItem):
    """Causal network with pointwise attention and optional time biases."""

    @dataclass(frozen=True)
    class Config:
        """Settings of the layers and of attention biases.

        ``qk_dim``, ``v_dim``: widths of a head. ``dropout``: of the input and of each layer's gated output.
        ``positions``: add position embeddings. ``position_bias``: attention bias per distance in events. ``time_mode``:
        attention bias by the log-bucketed seconds from the key's event to the last event (``last_item``) or to the time
        of the request (``query``). ``normalise``: cosine similarity over ``temperature`` instead of the dot product.
        ``tied``: score items by the table that embeds them; otherwise by output weights of their own.
        """

        dim: int = 64
        layers: int = 2
        heads: int = 1
        qk_dim: int = 64
        v_dim: int = 64
        dropout: float = 0.2
        positions: bool = True
        position_bias: bool = True
        time_mode: str = "none"
        normalise: bool = False
        temperature: float = 0.05
        tied: bool = True

        def __post_init__(self) -> None:
            check_choices(self, time_mode=TIME_CHOICES)
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; it must be more than 0, such as 0.05")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.positions = nn.Embedding(max_length, config.dim) if config.positions else None
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions.weight, std=math.sqrt(1 / config.dim))
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config, max_length) for _ in range(config.layers))
        self.output_items: nn.Parameter | None = None
        if not config.tied:
            self.output_items = nn.Parameter(torch.empty(n_items + 1, config.dim).normal_(std=STD))

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        """Return hidden states (B, T, D) of embedded events.

        Raises ValueError for a ``time_mode`` without the times it reads.
        """
        x_BTD = x_BTD * math.sqrt(self.config.dim)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(batch.positions)
        x_BTD, buckets, T = self.dropout(x_BTD), self._buckets(batch), batch.items.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool, device=x_BTD.device).triu(1)
        if batch.segments is not None:
            mask = mask | (batch.segments[:, :, None] != batch.segments[:, None, :])
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask, buckets)
        return x_BTD

    def output_query(self, hidden: Tensor) -> Tensor:
        """Return hidden states (N, D) as they are or, if ``normalise``, of unit length over ``temperature``."""
        if not self.config.normalise:
            return hidden
        return F.normalize(hidden, dim=-1, eps=EPS) / self.config.temperature

    def output_table(self, table: Tensor) -> Tensor:
        """Return the output table (I + 1, D), with rows of unit length if ``normalise``."""
        table = table if self.output_items is None else self.output_items
        return F.normalize(table, dim=-1, eps=EPS) if self.config.normalise else table

    @property
    def scores_by_content(self) -> bool:
        """Whether item vectors are computed from content alone; False with ``tied: false``."""
        return super().scores_by_content and self.output_items is None

    def item_vectors(self) -> Tensor:
        """Return the table (I + 1, D) that scores items."""
        return super().item_vectors() if self.output_items is None else self.output_items

    def item_tables(self) -> dict[str, Tensor]:
        """Return the input and output tables of items (I + 1, D)."""
        tables = super().item_tables()
        return tables if self.output_items is None else tables | {"output": self.output_items}

    def _buckets(self, batch: Batch) -> Tensor | None:
        """Time bucket of every pair of query and key, (B, T, S)."""
        mode, times, query_times = self.config.time_mode, batch.timestamps, batch.query_times
        if mode == "none":
            return None
        if times is None:
            raise ValueError(f"time_mode is {mode} and these histories have no timestamps; set time_mode: none")
        if mode == "query" and query_times is None:
            fix = "use --params protocol.time=query for folds, set Sequences.query_times for other histories"
            raise ValueError(f"time_mode is query and these histories have no query times: {fix}")
        queries = times if mode == "last_item" or query_times is None else query_times
        seconds = (queries[:, :, None] - times[:, None, :]).abs_().to(torch.float32)
        return seconds.clamp_(min=1).log_().div_(BUCKET_WIDTH).clamp_(max=BUCKETS - 1).long()


class Layer(nn.Module):
    """Gated pointwise attention with a residual connection."""

    def __init__(self, config: HSTU.Config, max_length: int) -> None:
        super().__init__()
        self.heads, self.max_length = config.heads, max_length
        self.widths = [config.heads * width for width in (config.v_dim, config.v_dim, config.qk_dim, config.qk_dim)]
        self.uvqk = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.out = nn.Linear(self.widths[0], config.dim)
        lags, buckets = max_length * config.position_bias, BUCKETS * (config.time_mode != "none")
        self.by_lag = nn.Parameter(torch.empty(lags).normal_(std=0.02)) if lags else None
        self.by_bucket = nn.Parameter(torch.empty(buckets).normal_(std=0.02)) if buckets else None
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.uvqk.weight, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BTD: Tensor, mask: Tensor, buckets: Tensor | None) -> Tensor:
        """Return the layer's output (B, T, D).

        ``mask`` (T, S) or (B, T, S) is True where a query must not read; ``buckets`` (B, T, S) are time buckets.
        """
        B, T, D = x_BTD.shape
        u, v, q, k = F.silu(self.uvqk(F.layer_norm(x_BTD, (D,), eps=EPS))).split(self.widths, -1)
        v, q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (v, q, k))
        bias = torch.zeros_like(mask, dtype=self.out.weight.dtype)  # (T, S) or (B, T, S)
        if self.by_lag is not None:
            position = torch.arange(T, device=mask.device)
            bias = self.by_lag[(position[:, None] - position).clamp(min=0)]
        bias = bias.masked_fill(mask, MASKED)
        if buckets is not None and self.by_bucket is not None:
            bias = self.by_bucket[buckets].add_(bias)
        scores = (q @ k.transpose(-2, -1)).add_(bias if bias.ndim == 2 else bias[:, None])  # (B, H, T, S)
        mixed = (F.silu(scores) @ v).transpose(1, 2).reshape(B, T, -1) / self.max_length
        mixed = F.layer_norm(mixed, mixed.shape[-1:], eps=EPS)
        return x_BTD + self.out(self.dropout(u * mixed))
