"""HSTU: Zhai et al., Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations, ICML 2024 (sections 3.1 and 3.2; sizes and the time buckets as in the authors' public experiments).

B batch, T time (of a query), S time (of what it looks at), D width, H heads, I items.

A layer, with n = LN(x) and no feed-forward after it:
    u, v, q, k = SiLU(n W)
    y = (u * LN(A v)) W_o + b + x,  A = SiLU(q k' + position bias + time bias) / N where S <= T, else 0

Deviations: the query's time is a setting. The paper has what is here ``query``, the time of the event to be predicted,
which no model without it can be compared with; ``last_item`` has that of the last event read, ``none`` no time bias.
N is ``max_length`` (theirs adds eleven places for output). The loss is the trainer's (full softmax by default; theirs
is sampled, of 128). Lags before 0 have no bias, since none is read. Dropout is on what the gate lets through and on the
input, as theirs; without ``normalise`` nothing is normalised at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.data.protocol import TIME_CHOICES
from recpipe.layers.dropout import Dropout
from recpipe.layers.side import Side
from recpipe.models.recommender import NextItem

EPS = 1e-6
BUCKETS, BUCKET_WIDTH = 129, 0.301  # of the logarithm of seconds, as theirs; 68 years are in bucket 71
NEVER = -1e9  # as a bias: SiLU and its slope are exactly zero there, as they are not at -inf


class HSTU(NextItem):
    """Predicts the next item at every position from the events up to it, and from when they happened."""

    @dataclass(frozen=True)
    class Config:
        """``qk_dim`` and ``v_dim`` are the widths of a head.

        ``positions``: learned embeddings of places are added to the items; ``position_bias``: attention has a bias for
        every distance. ``time_mode``: attention has a bias by the logarithm of the seconds between what is looked at
        and, ``last_item``, the last event read or, ``query``, the moment of the question; ``none``: no such bias.
        ``normalise``: hidden states and items have length 1, and scores, then cosines, are divided by
        ``temperature``. ``dropout``: of the input and of what each layer adds.
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

        def __post_init__(self) -> None:
            if self.time_mode not in TIME_CHOICES:
                raise ValueError(f"time_mode is {self.time_mode!r}; allowed: {', '.join(TIME_CHOICES)}")
            if not self.temperature > 0:
                raise ValueError(f"temperature is {self.temperature}; it must be more than 0, such as 0.05")

    config: Config

    def __init__(self, config: Config, *, n_items: int, max_length: int, side: Side | None = None) -> None:
        super().__init__(config, n_items=n_items, max_length=max_length, side=side)
        self.positions = nn.Embedding(max_length, config.dim) if config.positions else None
        if self.positions is not None:
            nn.init.trunc_normal_(self.positions.weight, std=math.sqrt(1 / config.dim))
        self.dropout = Dropout(config.dropout)
        self.layers = nn.ModuleList(Layer(config, max_length) for _ in range(config.layers))

    def encode(self, x_BTD: Tensor, batch: Batch) -> Tensor:
        x_BTD = x_BTD * math.sqrt(self.config.dim)
        if self.positions is not None:
            x_BTD = x_BTD + self.positions(batch.positions)
        x_BTD, buckets = self.dropout(x_BTD), self._buckets(batch)
        hidden = ~readable(batch)
        for layer in self.layers:
            x_BTD = layer(x_BTD, hidden, buckets)
        return x_BTD

    def output(self, hidden: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.normalise:
            return hidden, table
        hidden, table = (F.normalize(values, dim=-1, eps=EPS) for values in (hidden, table))
        return hidden / self.config.temperature, table

    def _buckets(self, batch: Batch) -> Tensor | None:
        """(B, T, S) which time bias a query has for what it looks at."""
        mode, times, asked = self.config.time_mode, batch.timestamps, batch.query_times
        if mode == "none":
            return None
        if times is None:
            raise ValueError(
                f"time_mode is {mode} and these histories have no timestamps; set time_mode: none"
            )
        if mode == "query" and asked is None:
            raise ValueError(
                "time_mode is query and nothing says when the question is asked: folds do under "
                "--params protocol.time=query, and other histories need Sequences.query_times"
            )
        return time_buckets(times if mode == "last_item" or asked is None else asked, times)


def readable(batch: Batch) -> Tensor:
    """Whether a query may look at a place: (T, S), or (B, T, S) where sequences are packed. What is not later, of the
    same sequence; padding comes after every event.
    """
    T = batch.items.shape[1]
    past = torch.ones(T, T, dtype=torch.bool, device=batch.items.device).tril()
    if batch.segments is None:
        return past
    return past & (batch.segments[:, :, None] == batch.segments[:, None, :])


def time_buckets(asked_BT: Tensor, times_BS: Tensor) -> Tensor:
    """(B, T, S) int64 in 0..BUCKETS - 1, of the distances in seconds."""
    seconds = (asked_BT[:, :, None] - times_BS[:, None, :]).abs_().to(torch.float32)
    return seconds.clamp_(min=1).log_().div_(BUCKET_WIDTH).clamp_(max=BUCKETS - 1).long()


class Layer(nn.Module):
    """Attention without a softmax, gated, added to its input."""

    def __init__(self, config: HSTU.Config, max_length: int) -> None:
        super().__init__()
        self.heads, self.max_length = config.heads, max_length
        self.widths = [
            config.heads * width for width in (config.v_dim, config.v_dim, config.qk_dim, config.qk_dim)
        ]
        self.uvqk = nn.Linear(config.dim, sum(self.widths), bias=False)
        self.out = nn.Linear(self.widths[0], config.dim)
        self.by_lag = (
            nn.Parameter(torch.empty(max_length).normal_(std=0.02)) if config.position_bias else None
        )
        timed = config.time_mode != "none"
        self.by_bucket = nn.Parameter(torch.empty(BUCKETS).normal_(std=0.02)) if timed else None
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.uvqk.weight, std=0.02)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x_BTD: Tensor, hidden: Tensor, buckets: Tensor | None) -> Tensor:
        """``hidden``, True where nothing is read, (T, S) or (B, T, S); ``buckets`` (B, T, S)."""
        B, T, D = x_BTD.shape
        n_BTD = F.layer_norm(x_BTD, (D,), eps=EPS)
        u, v, q, k = F.silu(self.uvqk(n_BTD)).split(self.widths, -1)
        v, q, k = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (v, q, k))
        bias = self._bias(hidden, buckets)
        scores = (q @ k.transpose(-2, -1)).add_(bias if bias.ndim == 2 else bias[:, None])  # (B, H, T, S)
        mixed = (F.silu(scores) @ v).transpose(1, 2).reshape(B, T, -1) / self.max_length
        mixed = F.layer_norm(mixed, mixed.shape[-1:], eps=EPS)
        return x_BTD + self.out(self.dropout(u * mixed))

    def _bias(self, hidden: Tensor, buckets: Tensor | None) -> Tensor:
        """(T, S) or (B, T, S), for all heads; what may not be read is taken out here, where it costs least."""
        T = hidden.shape[-1]
        if self.by_lag is None:
            bias = torch.zeros_like(hidden, dtype=self.out.weight.dtype)
        else:
            place = torch.arange(T, device=hidden.device)
            bias = self.by_lag[(place[:, None] - place).clamp(min=0)]
        bias = bias.masked_fill(hidden, NEVER)
        return bias if buckets is None or self.by_bucket is None else self.by_bucket[buckets].add_(bias)
