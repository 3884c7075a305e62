"""T5's decoder for beams on a CPU: fewer and larger products. Letters as in t5.py; M = B * K rows, R real tokens,
t positions decoded so far.

Cross-attention of a head is x Wq (y Wk)' = x (y Wk Wq')' for encoded tokens y: the memory holds y Wk Wq' and y Wv Wo,
so that a step has two products per user, (K, D) x (D, H * S) and (K, H * S) x (H * S, D), instead of two per head and
two projections. Nothing is re-ordered for new beams: they find their past by the rows of their ancestors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

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
    unpadded,
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

    users: int
    layers: list[tuple[Tensor, Tensor]]  # both (b, H * S, D), heads one after the other
    bias: Tensor | None  # (b, 1, H * S)


@dataclass(frozen=True)
class PreparedMemory:
    """Users in parts of a few, each as long as its longest: in cache, with little padding if lengths are sorted."""

    parts: list[Part]


class Past(NamedTuple):
    """Of M new positions and H heads, up to t rows each: in a table (rows * 2 * H, P) of keys and values."""

    keys: Tensor  # (M * H * t,)
    values: Tensor  # (M * H * t,)
    first: Tensor  # (M * H,) where those of each begin
    bias: Tensor  # (M * H, t) what is added to scores, -inf for rows that are not of its past


class RowCache:
    """Keys and values (rows, 2 * H * P) of all positions of all beams, and for each beam which rows are its past."""

    def __init__(self, layers: int) -> None:
        self.layers = [_Rows() for _ in range(layers)]
        self.past: Tensor | None = None  # (B, K, t)

    def advance(self, B: int, counts: Sequence[int], parents: Sequence[Tensor | None]) -> list[Tensor]:
        """(B, N, t) for each N of ``counts``: the rows of every new position's past, and last itself; t grows by one
        from each to the next. ``parents``: as of ``PreparedDecoder.ahead``; None: beams go on from themselves.
        """
        before, found = self.past, []
        total, start = sum(counts), self.layers[0].used
        for N, parent in zip(counts, parents, strict=True):
            own = (torch.arange(start, start + N) + total * torch.arange(B)[:, None])[..., None]
            if before is not None:
                if parent is not None:
                    before = before.gather(1, parent[..., None].expand(-1, -1, before.shape[2]))
                own = torch.cat([before, own], 2)
            before, start = own, start + N
            found.append(own)
        self.past = before
        return found


class _Rows:
    """A matrix that grows by rows."""

    def __init__(self) -> None:
        self.room, self.used = torch.empty(0), 0

    def add(self, rows: Tensor, more: int) -> Tensor:
        """All rows so far, with room for ``more`` times as many when a new one is made."""
        before, self.used = self.used, self.used + len(rows)
        if self.used > len(self.room):
            room = rows.new_empty(self.used + more * len(rows), rows.shape[1])
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
        y_RD = unpadded(encoded_BSD, mask_BS).to(self.dtype)
        y_RD = torch.cat([y_RD, y_RD.new_zeros(1, y_RD.shape[1])])  # what padding stands for
        parts, start = [], 0
        for lengths in mask_BS.sum(1).split(USERS):
            parts.append(
                (
                    self._rows(lengths, start, len(y_RD) - 1),
                    Part(len(lengths), [], self._looks(lengths, events_S)),
                )
            )
            start += int(lengths.sum())
        for joined in self.crossing:
            made = joined(y_RD).view(-1, self.shape.dim)  # (R * 2 * H, D)
            for (keys, values), part in parts:
                k, v = (
                    made.index_select(0, rows).view(part.users, -1, self.shape.dim) for rows in (keys, values)
                )
                part.layers.append((k, v))
        return PreparedMemory([part for _, part in parts])

    def _rows(self, lengths: Tensor, start: int, padding: int) -> tuple[Tensor, Tensor]:
        """(B * H * S,) each: which rows of (R * 2 * H, D) are keys and values of users, from token ``start`` on."""
        H, places = self.shape.heads, torch.arange(max(int(lengths.max()), 1))
        row = (start + lengths.cumsum(0) - lengths)[:, None] + places
        row = torch.where(places < lengths[:, None], row, padding)
        keys = (row[:, None] * (2 * H) + self.heads).flatten()
        return keys, keys + H

    def _looks(self, lengths: Tensor, events_S: Tensor | None) -> Tensor | None:
        """(B, 1, H * S) what is added to scores, None for nothing."""
        B, H, S = len(lengths), self.shape.heads, max(int(lengths.max()), 1)
        real = torch.arange(S) < lengths[:, None]
        if self.recency is None and bool(real.all()):
            return None
        bias = torch.zeros(B, 1, S, dtype=self.dtype)
        if self.recency is not None:
            if events_S is None:
                raise ValueError("a decoder with recency needs the events of its memory")
            last = last_event(real, events_S[:S])[:, None]
            bias = self.recency(last, events_S[:S].expand(B, -1))[:, :, 0].to(self.dtype)
        bias = bias.masked_fill(~real[:, None], -torch.inf)
        bias[lengths == 0] = 0  # whose values are all 0
        return bias.expand(B, H, S).reshape(B, 1, H * S)

    @torch.no_grad()
    def step(
        self, x_BKD: Tensor, memory: PreparedMemory, cache: RowCache, parents_BK: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) as of ``Decoder.step``."""
        return self._passed(x_BKD, memory, cache, [x_BKD.shape[1]], [parents_BK])

    @torch.no_grad()
    def ahead(
        self, x: Sequence[Tensor], memory: PreparedMemory, cache: RowCache, parents: Sequence[Tensor]
    ) -> Tensor:
        """(B, N, D) of several positions, each (B, N_i, D), side by side: as of ``step`` for one after the other.

        ``parents[0]`` are beams of the last step, ``parents[i]`` places of ``x[i - 1]``.
        """
        return self._passed(torch.cat([*x], 1), memory, cache, [each.shape[1] for each in x], parents)

    def _passed(
        self,
        x_BND: Tensor,
        memory: PreparedMemory,
        cache: RowCache,
        counts: Sequence[int],
        parents: Sequence[Tensor | None],
    ) -> Tensor:
        B, N, D = x_BND.shape
        past = self._past(cache.advance(B, counts, parents))
        x, inner = x_BND.reshape(B * N, D).to(self.dtype), self.shape.inner
        for layer, (attend, feed) in enumerate(self.layers):
            qkv = attend.qkv(unit(x))
            kv = cache.layers[layer].add(qkv[:, inner:], 3 if len(counts) == 1 else 0)  # ahead is the last
            x = attend.out.add(
                x, qkv[:, 2 * inner :] if past is None else self._mixed(qkv[:, :inner], kv, past)
            )
            x = feed(self._cross(x.view(B, N, D), memory, layer).view(B * N, D))
        return (unit(x) * self.scale).view(B, N, D)

    def _past(self, rows: list[Tensor]) -> Past | None:
        """None for positions that have none."""
        t, H = rows[-1].shape[2], self.shape.heads
        if t == 1:
            return None
        short = [(0, t - each.shape[2]) for each in rows]
        past = torch.cat([F.pad(each, pad) for each, pad in zip(rows, short, strict=True)], 1)  # (B, N, t)
        bias = [
            F.pad(self._bias(each.shape[2]), pad, value=-torch.inf).expand(each.shape[1], -1, -1)
            for each, pad in zip(rows, short, strict=True)
        ]
        keys = (past[:, :, None] * (2 * H) + self.heads).flatten()
        first = torch.arange(0, len(keys), t)
        return Past(keys, keys + H, first, torch.cat(bias).repeat(len(past), 1, 1).flatten(0, 1))

    def _bias(self, t: int) -> Tensor:
        """(H, t) what the last of t positions adds for those up to it."""
        if t not in self.biases:
            places = torch.arange(t)
            self.biases[t] = self.relative(places[-1:], places)[:, 0].to(self.dtype)
        return self.biases[t]

    def _mixed(self, q: Tensor, kv: Tensor, past: Past) -> Tensor:
        """(M, H * P): every beam over its own past, which takes no product but sums of a few rows."""
        P = self.shape.head_dim
        table = kv.view(-1, P)
        keys = table.index_select(0, past.keys).view(*past.bias.shape, P)
        weights = keys.mul_(q.reshape(-1, 1, P)).sum(-1).add_(past.bias).softmax(-1)
        mixed = torch.embedding_bag(table, past.values, past.first, per_sample_weights=weights.flatten())[0]
        return mixed.view(len(q), -1)

    def _cross(self, x_BKD: Tensor, memory: PreparedMemory, layer: int) -> Tensor:
        """x + what the memory has for it: all heads, and all beams of a user, in one product."""
        n = unit(x_BKD)
        if len(memory.parts) == 1:
            return self._added(x_BKD, n, memory.parts[0], layer)
        each = zip(memory.parts, x_BKD.split(USERS), n.split(USERS), strict=True)
        return torch.cat([self._added(x, asks, part, layer) for part, x, asks in each])

    def _added(self, x: Tensor, asks: Tensor, part: Part, layer: int) -> Tensor:
        keys, values = part.layers[layer]
        scores = torch.bmm(asks, keys.mT) if part.bias is None else torch.baddbmm(part.bias, asks, keys.mT)
        weights = scores.unflatten(-1, (self.shape.heads, -1)).softmax(-1).flatten(2)
        return torch.baddbmm(x, weights, values)


def _joined(layer: CrossAttention, dtype: torch.dtype | None) -> Product:
    """Of encoded tokens to what ``PreparedMemory`` holds of them, heads side by side: (R, 2 * H * D)."""
    H = layer.heads
    q = (layer.q.weight * (layer.norm.weight * math.sqrt(len(layer.norm.weight)))).unflatten(0, (H, -1))
    k, v = layer.kv.weight.unflatten(0, (2, H, -1))  # (H, P, D)
    out = layer.out.weight.unflatten(1, (H, -1))  # (D, H, P)
    keys = torch.einsum("hpd,hpe->hde", q, k)
    values = torch.einsum("dhp,hpe->hde", out, v)
    return Product(torch.cat([keys, values]).flatten(0, 1), dtype=dtype)
