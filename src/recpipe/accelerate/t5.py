"""CPU fast path of T5: packed weights, norms folded into them, no work on padding, fewer and larger products.

Cross-attention of a head is x Wq (y Wk)' = x (y Wk Wq')' for encoded tokens y. The memory holds y Wk Wq' and y Wv Wo,
so that a step has two products per user, (K, D) x (D, H * S) and (K, H * S) x (H * S, D), instead of two per head and
two projections. New beams do not reorder keys and values: they read their past by the rows of their ancestors. Gains:
see code_transformer.py; without packed weights the 4.2 ms per user are 6.9.

Letters as in layers/t5.py; M rows, in the decoder B * K, R tokens that are no padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.layers.t5 import (
    EPS,
    CrossAttention,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    attention_mask,
    last_event,
    with_heads,
)

ROWS = 256  # typical rows of a product, by which oneDNN chooses a layout
USERS = 4  # in a part of the memory


class FastLinear:
    """Linear map x -> x W' for x (M, D), fused with the operations before and after it."""

    def __init__(self, weight: Tensor, *, norm: Tensor | None = None) -> None:
        """``norm``: the scale of the RMSNorm before it, for inputs normalised by ``normalise``."""
        weight = (weight.detach() if norm is None else weight.detach() * norm_scale(norm)).contiguous()
        self.packed = _packed(weight)
        self.weight = weight if self.packed is None else None  # one of the two

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        """Return x W' (M, n) of x (M, D), with ReLU if ``relu``."""
        if self.weight is not None:
            return F.linear(x, self.weight).relu_() if relu else F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "relu" if relu else "none", [], "")

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return ``residual`` (M, D) + x W'."""
        if self.weight is not None:
            return residual + F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.packed, None, "add")


def _packed(weight: Tensor) -> Tensor | None:
    """Convert to oneDNN's layout; None where that is not available, for torch's own product."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (AttributeError, RuntimeError):
        return None


@lru_cache
def _smallest_norm(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(math.sqrt(width * EPS), dtype=dtype, device=device)


def normalise(x: Tensor) -> Tensor:
    """Scale the rows of x (..., D) as RMSNorm without its weight and without the factor sqrt(D), in three passes."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, _smallest_norm(x.shape[-1], x.dtype, x.device))


def norm_scale(norm: Tensor) -> Tensor:
    """Return the factor (D,) that ``normalise`` leaves out."""
    return norm.detach() * math.sqrt(len(norm))


class FastAttention:
    """Projections of self-attention."""

    def __init__(self, layer: SelfAttention) -> None:
        self.qkv = FastLinear(layer.qkv.weight, norm=layer.norm.weight)
        self.out = FastLinear(layer.out.weight)


class FastFeedForward:
    """Feed-forward network with residual connection, for x (M, D)."""

    def __init__(self, layer: FeedForward) -> None:
        self.up = FastLinear(layer.up.weight, norm=layer.norm.weight)
        self.down = FastLinear(layer.down.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the residual stream (M, D) with the feed-forward branch added."""
        return self.down.add(x, self.up(normalise(x), relu=True))


class FastEncoder:
    """``Encoder`` in evaluation, with the weights at the time of construction."""

    def __init__(self, encoder: Encoder) -> None:
        self.shape, self.relative = encoder.shape, encoder.relative
        self.scale = norm_scale(encoder.norm.weight)
        self.distances = torch.empty(encoder.shape.heads, 0, 0)
        self.layers = [
            (FastAttention(layer.attention), FastFeedForward(layer.feed))
            for layer in cast(list[EncoderLayer], list(encoder.layers))
        ]

    @torch.no_grad()
    def __call__(self, x_BTD: Tensor, mask_BT: Tensor, *, attention: Tensor | None = None) -> Tensor:
        """Return encoded tokens (B, T, D) as ``Encoder``, 0 in the padding.

        Raises ValueError for padding on the left.
        """
        if bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
            raise ValueError("the padding is not on the right of every row")
        padding = None if attention is None else mask_BT[:, None, None]
        bias, alive = attention_mask(self._distance_bias(mask_BT.shape[1]), padding, with_heads(attention))
        lengths = mask_BT.sum(1).tolist()
        x_RD = without_padding(x_BTD, mask_BT)
        for attend, feed in self.layers:
            mixed = self._attend(attend.qkv(normalise(x_RD)), lengths, bias)
            if alive is not None:
                mixed = mixed * alive[:, 0].expand(*mask_BT.shape, 1)[mask_BT]
            x_RD = feed(attend.out.add(x_RD, mixed))
        x_RD = normalise(x_RD) * self.scale
        if len(x_RD) == mask_BT.numel():
            return x_RD.view(x_BTD.shape)
        encoded = x_BTD.new_zeros(x_BTD.shape)
        encoded[mask_BT] = x_RD
        return encoded

    def _distance_bias(self, T: int) -> Tensor:
        """(H, T, T) by distance; computed for the longest rows so far, of which shorter ones read a part."""
        distances = self.distances  # read once: another thread may replace it
        if distances.shape[1] < T:
            places = torch.arange(T)
            self.distances = distances = self.relative(places, places).contiguous()
        return distances[:, :T, :T]

    def _attend(self, qkv: Tensor, lengths: list[int], bias: Tensor) -> Tensor:
        """(R, H * P), one user at a time: without padding, and small enough for the cache."""
        H, P = self.shape.heads, self.shape.head_dim
        mixed = qkv.new_empty(len(qkv), H, P)
        biases = bias.expand(len(lengths), -1, -1, -1)
        for part, output, user_bias in zip(qkv.split(lengths), mixed.split(lengths), biases, strict=True):
            q, k, v = part.view(-1, 3, H, P).permute(1, 2, 0, 3)
            weights = torch.baddbmm(user_bias[:, : len(part), : len(part)], q, k.mT).softmax(-1)
            output.copy_(torch.bmm(weights, v).transpose(0, 1))
        return mixed.flatten(1)


def without_padding(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Return the tokens (R, D) that are no padding."""
    return x_BTD.flatten(0, 1) if bool(mask_BT.all()) else x_BTD[mask_BT]


@dataclass(frozen=True)
class MemoryPart:
    """Memory of ``USERS`` users, as long as the longest: in cache, with little padding if lengths are sorted."""

    users: int
    layers: list[tuple[Tensor, Tensor]]  # y Wk Wq' and y Wv Wo, both (b, H * S, D), heads one after the other
    bias: Tensor | None  # (b, 1, H * S) of cross-attention


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
        """Return rows (B, K, t) of every new position's past, its own the last; ``parents`` as in ``Decoder.step``."""
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
        """Return all rows so far; a new buffer has room for three times as many more."""
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
        """Return an empty cache for a search."""
        return RowCache(len(self.layers))

    @torch.no_grad()
    def memory(self, encoded_BSD: Tensor, mask_BS: Tensor, events_S: Tensor | None = None) -> list[MemoryPart]:
        """Return the memory of encoded users (B, S, D) with padding on the right; users of padding only give zeros.

        Raises ValueError for ``recency`` without the events of the memory.
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
        """Return hidden states (B, K, D) as ``Decoder.step``."""
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
        """Return x + cross-attention: all heads, and all beams of a user, in one product."""
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
