"""CPU fast path of T5's decoder in beam search: fewer and larger products.

Letters as in layers/t5.py; M = B * K rows, R tokens that are no padding, t positions decoded so far.

Cross-attention of a head is x Wq (y Wk)' = x (y Wk Wq')' for encoded tokens y. The memory holds y Wk Wq' and y Wv Wo,
so that a step has two products per user, (K, D) x (D, H * S) and (K, H * S) x (H * S, D), instead of two per head and
two projections. New beams do not reorder keys and values: they read their past by the rows of their ancestors. Gains:
see code_transformer.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from recpipe.accelerate.t5_encoder import (
    FastAttention,
    FastFeedForward,
    FastLinear,
    norm_scale,
    normalise,
    without_padding,
)
from recpipe.layers.t5 import CrossAttention
from recpipe.layers.t5_decoder import Decoder, DecoderLayer, last_event

USERS = 4  # in a part of the memory


@dataclass(frozen=True)
class MemoryPart:
    """Memory of ``USERS`` users: per layer y Wk Wq' and y Wv Wo, and the bias of cross-attention.

    As long as the longest of them: in cache, with little padding if lengths are sorted.
    """

    users: int
    layers: list[tuple[Tensor, Tensor]]  # both (b, H * S, D), heads one after the other
    bias: Tensor | None  # (b, 1, H * S)


class Past(NamedTuple):
    """Past of M new positions and H heads, t rows each, in a table (rows * 2 * H, P) of keys and values."""

    keys: Tensor  # (M * H * t,)
    values: Tensor  # (M * H * t,)
    first: Tensor  # (M * H,) where the rows of each begin
    bias: Tensor  # (M * H, t) bias of self-attention


class RowCache:
    """Keys and values (rows, 2 * H * P) of all positions of all beams, and the rows of each beam's past."""

    def __init__(self, layers: int) -> None:
        self.layers = [_GrowingMatrix() for _ in range(layers)]
        self.past: Tensor | None = None  # (B, K, t)

    def advance(self, B: int, K: int, parents_BK: Tensor | None) -> Tensor:
        """(B, K, t): the rows of every new position's past, its own the last; ``parents`` as in ``Decoder.step``."""
        first = self.layers[0].used
        rows = torch.arange(first, first + B * K).view(B, K, 1)
        if (past := self.past) is not None:
            if parents_BK is not None:
                past = past.gather(1, parents_BK[..., None].expand(-1, -1, past.shape[2]))
            rows = torch.cat([past, rows], 2)
        self.past = rows
        return rows


class _GrowingMatrix:
    def __init__(self) -> None:
        self.buffer, self.used = torch.empty(0), 0

    def add(self, rows: Tensor) -> Tensor:
        """All rows so far; a new buffer has room for three times as many more."""
        before, self.used = self.used, self.used + len(rows)
        if self.used > len(self.buffer):
            smaller, self.buffer = self.buffer, rows.new_empty(self.used + 3 * len(rows), rows.shape[1])
            if before:
                self.buffer[:before] = smaller[:before]
        self.buffer[before : self.used] = rows
        return self.buffer[: self.used]


class FastDecoder:
    """``Decoder.step`` with the weights at the time of construction."""

    def __init__(self, decoder: Decoder) -> None:
        self.shape, self.relative, self.recency = decoder.shape, decoder.relative, decoder.recency
        self.heads = torch.arange(decoder.shape.heads)[:, None]
        self.biases: dict[int, Tensor] = {}  # (H, t) of the last of t positions
        self.scale = norm_scale(decoder.norm.weight)
        layers = cast(list[DecoderLayer], list(decoder.layers))
        self.layers = [(FastAttention(layer.attention), FastFeedForward(layer.feed)) for layer in layers]
        self.cross = [_folded_cross_attention(layer.cross) for layer in layers]

    def cache(self) -> RowCache:
        """An empty cache for a search."""
        return RowCache(len(self.layers))

    @torch.no_grad()
    def memory(self, encoded_BSD: Tensor, mask_BS: Tensor, events_S: Tensor | None = None) -> list[MemoryPart]:
        """Memory of encoded users, with padding on the right; users that are all padding give zeros.

        ``events_S`` as in ``Memory``.
        """
        H, D = self.shape.heads, self.shape.dim
        y_RD = without_padding(encoded_BSD, mask_BS)
        y_RD = torch.cat([y_RD, y_RD.new_zeros(1, D)])  # a row for the padding
        parts, rows, first = [], [], 0
        for lengths in mask_BS.sum(1).split(USERS):
            places = torch.arange(max(int(lengths.max()), 1))
            real_BS = places < lengths[:, None]
            tokens_BS = torch.where(real_BS, (first + lengths.cumsum(0) - lengths)[:, None] + places, len(y_RD) - 1)
            keys = (tokens_BS[:, None] * (2 * H) + self.heads).flatten()
            rows.append((keys, keys + H))
            parts.append(MemoryPart(len(lengths), [], self._memory_bias(real_BS, events_S)))
            first += int(lengths.sum())
        for project in self.cross:
            projected = project(y_RD).view(-1, D)  # (R * 2 * H, D)
            for part, (keys, values) in zip(parts, rows, strict=True):
                k, v = (projected.index_select(0, places).view(part.users, -1, D) for places in (keys, values))
                part.layers.append((k, v))
        return parts

    def _memory_bias(self, real_BS: Tensor, events_S: Tensor | None) -> Tensor | None:
        """Bias of cross-attention (B, 1, H * S) for ``real`` tokens; None for zeros."""
        (B, S), H = real_BS.shape, self.shape.heads
        if self.recency is None and bool(real_BS.all()):
            return None
        bias = torch.zeros(B, 1, S, dtype=self.scale.dtype)
        if self.recency is not None:
            if events_S is None:
                raise ValueError("a decoder with recency needs the events of its memory")
            last = last_event(real_BS, events_S[:S])[:, None]
            bias = self.recency(last, events_S[:S].expand(B, -1))[:, :, 0]
        bias = bias.masked_fill(~real_BS[:, None], -torch.inf)
        bias[~real_BS.any(1)] = 0  # the values of these users are all 0
        return bias.expand(B, H, S).reshape(B, 1, H * S)

    @torch.no_grad()
    def step(
        self, x_BKD: Tensor, memory: list[MemoryPart], cache: RowCache, parents_BK: Tensor | None = None
    ) -> Tensor:
        """(B, K, D) as from ``Decoder.step``."""
        B, K, D = x_BKD.shape
        past = self._past(cache.advance(B, K, parents_BK))
        x, inner = x_BKD.reshape(B * K, D), self.shape.inner
        for layer, (attend, feed) in enumerate(self.layers):
            qkv = attend.qkv(normalise(x))
            kv = cache.layers[layer].add(qkv[:, inner:])
            mixed = qkv[:, 2 * inner :] if past is None else self._attend(qkv[:, :inner], kv, past)
            x = attend.out.add(x, mixed)
            x = feed(self._cross_attend(x.view(B, K, D), memory, layer).view(B * K, D))
        return (normalise(x) * self.scale).view(B, K, D)

    def _past(self, rows_BKt: Tensor) -> Past | None:
        """The past of all new positions; None at the first level."""
        t, H = rows_BKt.shape[2], self.shape.heads
        if t == 1:
            return None
        if t not in self.biases:
            places = torch.arange(t)
            self.biases[t] = self.relative(places[-1:], places)[:, 0]
        keys = (rows_BKt[:, :, None] * (2 * H) + self.heads).flatten()
        bias = self.biases[t].repeat(rows_BKt.shape[0] * rows_BKt.shape[1], 1)
        return Past(keys, keys + H, torch.arange(0, len(keys), t), bias)

    def _attend(self, q: Tensor, kv: Tensor, past: Past) -> Tensor:
        """(M, H * P): every beam over its own past, by sums of a few rows instead of a product."""
        P = self.shape.head_dim
        table = kv.view(-1, P)
        keys = table.index_select(0, past.keys).view(*past.bias.shape, P)
        weights = keys.mul_(q.reshape(-1, 1, P)).sum(-1).add_(past.bias).softmax(-1)
        mixed = torch.embedding_bag(table, past.values, past.first, per_sample_weights=weights.flatten())[0]
        return mixed.view(len(q), -1)

    def _cross_attend(self, x_BKD: Tensor, memory: list[MemoryPart], layer: int) -> Tensor:
        """x + cross-attention: all heads, and all beams of a user, in one product."""
        outputs = []
        for part, x, q in zip(memory, x_BKD.split(USERS), normalise(x_BKD).split(USERS), strict=True):
            keys, values = part.layers[layer]
            scores = torch.bmm(q, keys.mT) if part.bias is None else torch.baddbmm(part.bias, q, keys.mT)
            weights = scores.unflatten(-1, (self.shape.heads, -1)).softmax(-1).flatten(2)
            outputs.append(torch.baddbmm(x, weights, values))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _folded_cross_attention(layer: CrossAttention) -> FastLinear:
    """Projection of encoded tokens to the memory, heads side by side: (R, 2 * H * D)."""
    H = layer.heads
    q = (layer.q.weight * norm_scale(layer.norm.weight)).unflatten(0, (H, -1))
    k, v = layer.kv.weight.unflatten(0, (2, H, -1))  # (H, P, D)
    out = layer.out.weight.unflatten(1, (H, -1))  # (D, H, P)
    keys = torch.einsum("hpd,hpe->hde", q, k)
    values = torch.einsum("dhp,hpe->hde", out, v)
    return FastLinear(torch.cat([keys, values]).flatten(0, 1))
