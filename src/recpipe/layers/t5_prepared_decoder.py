"""T5's decoder for beams on a CPU: fewer and larger products. Letters as in t5.py; M = B * K rows, R real tokens,
t positions decoded so far.

Cross-attention of a head is x Wq (y Wk)' = x (y Wk Wq')' for encoded tokens y: the memory holds y Wk Wq' and y Wv Wo,
so that a step has two products per user, (K, D) x (D, H * S) and (K, H * S) x (H * S, D), instead of two per head and
two projections. Nothing is re-ordered for new beams: they find their past by the rows of their ancestors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.layers.t5 import CrossAttention, Encoder
from recpipe.layers.t5_decoder import Decoder, DecoderLayer, last_event
from recpipe.layers.t5_prepared import (
    PreparedAttention,
    PreparedEncoder,
    PreparedFeedForward,
    Product,
    scale_of,
    unit,
)

USERS = 4  # in a part of the memory


def prepared(
    encoder: Encoder, decoder: Decoder, dtype: torch.dtype | None = None
) -> tuple[Encoder | PreparedEncoder, Decoder | PreparedDecoder]:
    """The two for inference with the weights they have now, on a CPU; elsewhere they are fast as they are."""
    if encoder.norm.weight.device.type != "cpu":
        return encoder, decoder
    return PreparedEncoder(encoder, dtype), PreparedDecoder(decoder, dtype)


@dataclass(frozen=True)
class Part:
    """What the beams of some users see of them: per layer y Wk Wq' and y Wv Wo, and what is added to scores."""

    layers: list[tuple[Tensor, Tensor]]  # both (b, H * S, D), heads one after the other
    bias: Tensor | None  # (b, 1, H * S)


@dataclass(frozen=True)
class PreparedMemory:
    """Users in parts of a few, each as long as its longest: in cache, with little padding if lengths are sorted."""

    parts: list[Part]


class RowCache:
    """Keys and values (rows, H * P) of all positions of all beams, and for each beam which rows are its past."""

    def __init__(self, layers: int) -> None:
        self.keys = [_Rows() for _ in range(layers)]
        self.values = [_Rows() for _ in range(layers)]
        self.past = torch.empty(0, 0, dtype=torch.int64)  # (M, t)

    def advance(self, B: int, K: int, parents_BK: Tensor | None) -> Tensor:
        """(M, t + 1) the rows of every beam's past, and last the one it is about to add."""
        M, t = self.past.shape
        own = torch.arange(B * K)[:, None]
        if t:
            if parents_BK is None:
                parents_BK = torch.arange(K).expand(B, K)
            first = torch.arange(0, M, M // B)[:, None]
            own = torch.cat([self.past[(parents_BK + first).flatten()], own + self.keys[0].used], 1)
        self.past = own
        return own


class _Rows:
    """A matrix that grows by rows, with room for some steps."""

    def __init__(self) -> None:
        self.room, self.used = torch.empty(0), 0

    def add(self, rows: Tensor) -> Tensor:
        """All rows so far."""
        before, self.used = self.used, self.used + len(rows)
        if self.used > len(self.room):
            room = rows.new_empty(before + 4 * len(rows), rows.shape[1])
            if before:
                room[:before] = self.room[:before]
            self.room = room
        self.room[before : self.used] = rows
        return self.room[: self.used]


class PreparedDecoder:
    """What ``Decoder`` gives step by step, with the weights it had when this was made, in ``dtype``."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype | None = None) -> None:
        self.shape, self.relative, self.recency = decoder.shape, decoder.relative, decoder.recency
        self.heads = torch.arange(decoder.shape.heads)[:, None]
        self.biases: dict[int, Tensor] = {}
        self.dtype = dtype or decoder.norm.weight.dtype
        self.scale = scale_of(decoder.norm.weight, self.dtype)
        layers = cast(list[DecoderLayer], list(decoder.layers))
        self.layers = [
            (PreparedAttention(layer.attention, dtype), PreparedFeedForward(layer.feed, dtype))
            for layer in layers
        ]
        self.crossing = [_joined(layer.cross, dtype) for layer in layers]

    def cache(self) -> RowCache:
        """An empty one."""
        return RowCache(len(self.layers))

    @torch.no_grad()
    def memory(self, encoded_BSD: Tensor, mask_BS: Tensor, events_S: Tensor | None = None) -> PreparedMemory:
        """Of encoded users, whose padding is on the right; who has nothing but padding mixes nothing in.

        ``events_S``: as of ``Memory``.
        """
        real = mask_BS.sum(1)
        y_RD = encoded_BSD[mask_BS].to(self.dtype)
        y_RD = torch.cat([y_RD, y_RD.new_zeros(1, y_RD.shape[1])])  # what padding stands for
        D = self.shape.dim
        made = [(keys(y_RD).view(-1, D), values(y_RD).view(-1, D)) for keys, values in self.crossing]
        parts, start = [], 0
        for lengths in real.split(USERS):
            stop = start + int(lengths.sum())
            parts.append(self._part(made, lengths, start, stop, events_S))
            start = stop
        return PreparedMemory(parts)

    def _part(
        self,
        made: list[tuple[Tensor, Tensor]],
        lengths: Tensor,
        start: int,
        stop: int,
        events_S: Tensor | None,
    ) -> Part:
        """Of the users whose tokens are rows ``start`` to ``stop`` of what was made."""
        B, H, S = len(lengths), self.shape.heads, max(int(lengths.max()), 1)
        places = torch.arange(S)
        real = places < lengths[:, None]
        row = (start + lengths.cumsum(0) - lengths)[:, None] + places
        row = torch.where(real, row, len(made[0][0]) // H - 1)
        rows = (row[:, None] * H + torch.arange(H)[:, None]).flatten()
        layers = [
            (keys.index_select(0, rows).view(B, H * S, -1), values.index_select(0, rows).view(B, H * S, -1))
            for keys, values in made
        ]
        if self.recency is None and bool(real.all()):
            return Part(layers, None)
        bias = torch.zeros(B, 1, S, dtype=self.dtype)
        if self.recency is not None:
            if events_S is None:
                raise ValueError("a decoder with recency needs the events of its memory")
            last = last_event(real, events_S[:S])[:, None]
            bias = self.recency(last, events_S[:S].expand(B, -1))[:, :, 0].to(self.dtype)
        bias = bias.masked_fill(~real[:, None], -torch.inf)
        bias[lengths == 0] = 0  # whose values are all 0
        return Part(layers, bias.expand(B, H, S).reshape(B, 1, H * S))

    @torch.no_grad()
    def step(
        self, x_BKD: Tensor, memory: PreparedMemory, cache: RowCache, parents_BK: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) as of ``Decoder.step``."""
        B, K, D = x_BKD.shape
        H, M = self.shape.heads, B * K
        rows = cache.advance(B, K, parents_BK)  # (M, t + 1)
        rows = (rows[:, None] * H + self.heads).flatten(0, 1)  # (M * H, t + 1) of (rows * H, P)
        bias = self._bias(rows.shape[1]).repeat(M, 1)
        x = x_BKD.reshape(M, D).to(self.dtype)
        for layer, (attend, feed) in enumerate(self.layers):
            q, k, v = attend.qkv(unit(x)).chunk(3, 1)
            keys, values = cache.keys[layer].add(k), cache.values[layer].add(v)
            x = attend.out.add(x, self._mixed(q, keys, values, rows, bias))
            x = feed(self._cross(x.view(B, K, D), memory, layer).view(M, D))
        return (unit(x) * self.scale).view(B, K, D)

    def _bias(self, t: int) -> Tensor:
        """(H, t) what the last of t positions adds for those up to it."""
        if t not in self.biases:
            places = torch.arange(t)
            self.biases[t] = self.relative(places[-1:], places)[:, 0].to(self.dtype)
        return self.biases[t]

    def _mixed(self, q: Tensor, keys: Tensor, values: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
        """(M, H * P): every beam over its own past, which takes no product but sums of a few rows."""
        if rows.shape[1] == 1:
            return values
        P = self.shape.head_dim
        past = F.embedding(rows, keys.view(-1, P))
        weights = past.mul_(q.reshape(-1, 1, P)).sum(-1).add_(bias).softmax(-1)
        mixed = F.embedding_bag(rows, values.view(-1, P), mode="sum", per_sample_weights=weights)
        return mixed.view(len(q), -1)

    def _cross(self, x_BKD: Tensor, memory: PreparedMemory, layer: int) -> Tensor:
        """x + what the memory has for it: all heads, and all beams of a user, in one product."""
        n = unit(x_BKD)
        added = torch.empty_like(x_BKD)
        each = zip(memory.parts, x_BKD.split(USERS), n.split(USERS), added.split(USERS), strict=True)
        for part, x, asks, to in each:
            keys, values = part.layers[layer]
            scores = (
                torch.bmm(asks, keys.mT) if part.bias is None else torch.baddbmm(part.bias, asks, keys.mT)
            )
            weights = scores.unflatten(-1, (self.shape.heads, -1)).softmax(-1).flatten(2)
            torch.baddbmm(x, weights, values, out=to)
        return added


def _joined(layer: CrossAttention, dtype: torch.dtype | None) -> tuple[Product, Product]:
    """Of encoded tokens to what ``PreparedMemory`` holds of them, heads side by side: (R, H * D) each."""
    H = layer.heads
    q = (layer.q.weight * (layer.norm.weight * math.sqrt(len(layer.norm.weight)))).unflatten(0, (H, -1))
    k, v = layer.kv.weight.unflatten(0, (2, H, -1))  # (H, P, D)
    out = layer.out.weight.unflatten(1, (H, -1))  # (D, H, P)
    keys = torch.einsum("hpd,hpe->hde", q, k)
    values = torch.einsum("dhp,hpe->hde", out, v)
    return Product(keys.flatten(0, 1), dtype=dtype), Product(values.flatten(0, 1), dtype=dtype)
