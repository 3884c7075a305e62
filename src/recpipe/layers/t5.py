"""T5 encoder and decoder, with masks for several targets per history and decoding of all beams level by level.

Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer, JMLR 2020 (arXiv
1910.10683).

RMSNorm before each block, no biases, no division by sqrt(P) (the initial weights of q have it), ReLU feed-forward, one
table of relative positions per stack, shared by its layers. Embeddings and output heads belong to the model. An
attention mask per batch allows one encoding for all targets of a sequence, tokens of an item that share a position, and
queries decoded in parallel. The decoder runs teacher-forced, or one level of all beams at a time.

B batch, T queries of attention, S keys, Q queries of the decoder, K beams, t levels decoded so far, D width, H heads, P
width of a head, V tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from recpipe.config import check_at_least

EPS = 1e-6
KeysValues: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class T5Shape:
    """Sizes of encoder and decoder; the defaults are TIGER's. Distances from ``max_distance`` on share a bucket."""

    dim: int = 128
    heads: int = 6
    head_dim: int = 64
    feed_forward: int = 1024
    layers: int = 4
    decoder_layers: int = 4
    buckets: int = 32
    max_distance: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_at_least(1, self, "dim", "heads", "head_dim", "feed_forward", "layers", "decoder_layers")
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets is {self.buckets}; it must be a multiple of 4")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance is {self.max_distance}; it must be above {self.buckets // 2}")

    @property
    def inner(self) -> int:
        """Width of all heads together, H * P."""
        return self.heads * self.head_dim


class AttentionMask(NamedTuple):
    """Bias of attention scores, -inf where attention is not allowed, and a mask of rows with anything allowed."""

    bias: Tensor  # broadcast to (B, H, T, S)
    alive: Tensor | None = None  # broadcast to (B, H, T, 1); other rows give 0


def attention_mask(bias: Tensor, *masks: Tensor | None) -> AttentionMask:
    """Combine ``bias`` and bool ``masks``, all broadcast to (B, H, T, S); None allows everything."""
    if not (present := [mask for mask in masks if mask is not None]):
        return AttentionMask(bias)
    allowed = reduce(torch.bitwise_and, present)
    alive = allowed.any(-1, keepdim=True)
    return AttentionMask(bias.masked_fill(~allowed & alive, -torch.inf), alive)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: nn.Module) -> Tensor:
    """Return attention (B, T, H * P) of q (B, H, T, P), k and v (B, H, S, P), with ``dropout`` of its weights."""
    if q.device.type == "cpu":  # where the fused kernel has no dropout, and is no faster for short sequences
        mixed = dropout((q @ k.mT).add_(mask.bias).softmax(-1)) @ v
    else:
        mixed = fused_attention(q, k, v, mask, dropout)
    if mask.alive is not None:
        mixed = mixed * mask.alive
    return mixed.transpose(1, 2).flatten(2)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: nn.Module) -> Tensor:
    """Return attention (B, H, T, P) by torch's fused kernel, which stores no weights (B, H, T, S) for gradients."""
    # not by cuDNN's kernel: with it a step of TIGER took 156 ms on an H100, with plain products 46 (torch 2.11)
    bias = mask.bias.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    p = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=p, scale=1.0)


class RelativeBias(nn.Module):
    """Attention bias by distance: one bucket per distance up to half of the buckets, then logarithmic buckets."""

    def __init__(self, shape: T5Shape, *, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional, self.max_distance = bidirectional, shape.max_distance
        self.table = nn.Embedding(shape.buckets, shape.heads)
        nn.init.normal_(self.table.weight, std=shape.dim**-0.5)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Return the bias (..., H, Q, S) of integer positions (..., Q) and (..., S)."""
        return self.table(self.bucket(keys[..., None, :] - queries[..., None])).movedim(-1, -3)

    def bucket(self, distance: Tensor) -> Tensor:
        """Return the bucket (...) of each distance (...), key - query; one-sided: later keys count as distance 0."""
        buckets, first = self.table.num_embeddings, torch.zeros_like(distance)
        if self.bidirectional:
            buckets //= 2
            first, distance = (distance > 0) * buckets, distance.abs()
        else:
            distance = (-distance).clamp(min=0)
        exact = buckets // 2
        steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.max_distance / exact)
        far = (exact + (steps * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(distance < exact, distance, far)


class SelfAttention(nn.Module):
    """Pre-norm self-attention with residual connection."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.qkv = nn.Linear(shape.dim, 3 * shape.inner, bias=False)
        self.out = nn.Linear(shape.inner, shape.dim, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.normal_(self.qkv.weight, std=shape.dim**-0.5)
        nn.init.normal_(self.out.weight, std=shape.inner**-0.5)
        with torch.no_grad():
            self.qkv.weight[: shape.inner] *= shape.head_dim**-0.5

    def forward(self, x_BTD: Tensor, mask: AttentionMask) -> Tensor:
        """Return the residual stream (B, T, D) with the attention branch added."""
        q, k, v = self.project(x_BTD)
        return self.add(x_BTD, attend(q, k, v, mask, self.dropout))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, T, P)."""
        q, k, v = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def add(self, x_BTD: Tensor, mixed: Tensor) -> Tensor:
        """Project the heads' output (B, T, H * P) and add it to the residual stream."""
        return x_BTD + self.dropout(self.out(mixed))


class CrossAttention(nn.Module):
    """Pre-norm cross-attention to the encoder's output, with residual connection."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.q = nn.Linear(shape.dim, shape.inner, bias=False)
        self.kv = nn.Linear(shape.dim, 2 * shape.inner, bias=False)
        self.out = nn.Linear(shape.inner, shape.dim, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.normal_(self.q.weight, std=(shape.dim * shape.head_dim) ** -0.5)
        nn.init.normal_(self.kv.weight, std=shape.dim**-0.5)
        nn.init.normal_(self.out.weight, std=shape.inner**-0.5)

    def memory(self, encoded_BSD: Tensor) -> KeysValues:
        """Return keys and values of encoded tokens, each (B, H, S, P)."""
        k, v = self.kv(encoded_BSD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x_BQD: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
        """Return the residual stream (B, Q, D) with the attention to keys ``k`` and values ``v`` (B, H, S, P) added."""
        q = self.q(self.norm(x_BQD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x_BQD + self.dropout(self.out(attend(q, k, v, mask, self.dropout)))


class FeedForward(nn.Module):
    """Pre-norm feed-forward network with residual connection."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.up = nn.Linear(shape.dim, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.dim, bias=False)
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.normal_(self.up.weight, std=shape.dim**-0.5)
        nn.init.normal_(self.down.weight, std=shape.feed_forward**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the residual stream (B, T, D) with the feed-forward branch added."""
        return x_BTD + self.dropout(self.down(self.dropout(F.relu(self.up(self.norm(x_BTD))))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.attention, self.feed = SelfAttention(shape), FeedForward(shape)

    def forward(self, x_BTD: Tensor, mask: AttentionMask) -> Tensor:
        """Return the layer's output (B, T, D) of ``x_BTD`` under ``mask``."""
        return self.feed(self.attention(x_BTD, mask))


class Encoder(nn.Module):
    """Stack of encoder layers; bidirectional, unless ``attention`` restricts it."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.relative = RelativeBias(shape, bidirectional=True)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.dropout = nn.Dropout(shape.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Encode embedded tokens (B, T, D).

        ``mask_BT`` is False in the padding. ``attention`` bool, (T, T) or (B, T, T): which token (row) may attend to
        which (column); a token that may attend to none gets zeros. ``positions`` integers, (T,) or (B, T), by default
        0 .. T - 1, from which distances are computed. ``bias``, broadcast to (B, H, T, T), is added to theirs.
        """
        positions = torch.arange(x_BTD.shape[1], device=x_BTD.device) if positions is None else positions
        distances = self.relative(positions, positions)
        padding = None if mask_BT is None else mask_BT[:, None, None]
        mask = attention_mask(distances if bias is None else distances + bias, padding, with_heads(attention))
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, mask)
        return self.dropout(self.norm(x_BTD))


@dataclass(frozen=True)
class Memory:
    """Encoded users as cross-attention reads them: keys and values of every layer, each (B, H, S, P)."""

    layers: tuple[KeysValues, ...]
    mask_BS: Tensor | None = None
    events_S: Tensor | None = None  # of each token, for a decoder with ``recency``


@dataclass
class KVCache:
    """Keys and values of the levels decoded so far, (B, H, K, t, P) per layer."""

    layers: list[KeysValues] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Levels decoded so far."""
        return self.layers[0][0].shape[3] if self.layers else 0

    def reorder(self, parents_BK: Tensor) -> None:
        """Let beam k continue what was beam ``parents[b, k]``; ``parents_BK`` (B, K)."""
        users = torch.arange(len(parents_BK), device=parents_BK.device)[:, None]
        self.layers = [
            (k[users, :, parents_BK].transpose(1, 2), v[users, :, parents_BK].transpose(1, 2)) for k, v in self.layers
        ]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.attention, self.cross = SelfAttention(shape), CrossAttention(shape)
        self.feed = FeedForward(shape)

    def forward(self, x_BQD: Tensor, mask: AttentionMask, memory: KeysValues, cross_mask: AttentionMask) -> Tensor:
        """Return the layer's output (B, Q, D) of ``x_BQD`` under the masks of self- and cross-attention."""
        return self.feed(self.cross(self.attention(x_BQD, mask), *memory, cross_mask))

    def step(
        self, x_BKD: Tensor, bias: Tensor, past: KeysValues | None, memory: KeysValues, cross_mask: AttentionMask
    ) -> tuple[Tensor, KeysValues]:
        """Return ``forward`` (B, K, D) for the last position of every beam, and the extended keys and values."""
        q, k, v = self.attention.project(x_BKD)  # (B, H, K, P)
        k, v = k[:, :, :, None], v[:, :, :, None]
        if past is not None:
            k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
        weights = ((q[:, :, :, None] @ k.mT).squeeze(3) + bias).softmax(-1)  # (B, H, K, t)
        mixed = (weights[:, :, :, None] @ v).squeeze(3).transpose(1, 2).flatten(2)
        return self.feed(self.cross(self.attention.add(x_BKD, mixed), *memory, cross_mask)), (k, v)


class Decoder(nn.Module):
    """Stack of decoder layers.

    ``causal``: a query attends to itself and to those before it; otherwise to all, with two-sided distances.
    ``recency``, which T5 has not: cross-attention has a bias by how many events before the target a token lies, so that
    queries of several targets that share one causal encoding can tell which event is the latest they may see.
    """

    def __init__(self, shape: T5Shape, causal: bool = True, recency: bool = False) -> None:
        super().__init__()
        self.shape, self.causal = shape, causal
        self.relative = RelativeBias(shape, bidirectional=not causal)
        self.recency = RelativeBias(shape, bidirectional=False) if recency else None
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.dropout = nn.Dropout(shape.dropout)

    def memory(self, encoded_BSD: Tensor, mask_BS: Tensor | None = None, events_S: Tensor | None = None) -> Memory:
        """Compute keys and values (B, H, S, P) of encoded tokens (B, S, D) once; ``events_S`` as in ``Memory``."""
        return Memory(tuple(layer.cross.memory(encoded_BSD) for layer in self._layers()), mask_BS, events_S)

    def cache(self) -> KVCache:
        """Return an empty cache for a search."""
        return KVCache()

    def forward(
        self,
        x_BQD: Tensor,
        memory: Memory,
        *,
        cross: Tensor | None = None,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        events_Q: Tensor | None = None,
        cross_bias: Tensor | None = None,
    ) -> Tensor:
        """Return hidden states (B, Q, D) of embedded targets, shifted right, or of queries.

        ``cross`` bool, (Q, S) or (B, Q, S): which tokens of the memory each query may attend to. ``attention`` bool,
        (Q, Q) or (B, Q, Q): which queries, in addition to ``causal``. ``positions`` as in ``Encoder``. ``events_Q``,
        for ``recency``: the last event before each query's target, by default the last of the row. ``cross_bias``,
        broadcast to (B, H, Q, S), is added to the scores of cross-attention. Raises ValueError for ``recency`` with a
        memory without events or mask.
        """
        places = torch.arange(x_BQD.shape[1], device=x_BQD.device)
        positions = places if positions is None else positions
        past = (places <= places[:, None])[None, None] if self.causal else None
        mask = attention_mask(self.relative(positions, positions), past, with_heads(attention))
        cross_mask = self._cross_mask(memory, x_BQD, with_heads(cross), events_Q, cross_bias)
        x_BQD = self.dropout(x_BQD)
        for layer, kv in zip(self.layers, memory.layers, strict=True):
            x_BQD = layer(x_BQD, mask, kv, cross_mask)
        return self.dropout(self.norm(x_BQD))

    def step(self, x_BKD: Tensor, memory: Memory, cache: KVCache, parents_BK: Tensor | None = None) -> Tensor:
        """Return ``forward`` (B, K, D) without dropout for the next position of all beams, which is added to ``cache``.

        ``parents_BK``: the beam of the previous step that each one continues; None: the same one.
        """
        if parents_BK is not None and cache.length:
            cache.reorder(parents_BK)
        places = torch.arange(cache.length + 1, device=x_BKD.device)
        bias = self.relative(places[-1:], places)[:, 0][None, :, None]  # (1, H, 1, t)
        cross_mask = self._cross_mask(memory, x_BKD)
        extended = []
        for number, (layer, kv) in enumerate(zip(self._layers(), memory.layers, strict=True)):
            past = cache.layers[number] if cache.length else None
            x_BKD, present = layer.step(x_BKD, bias, past, kv, cross_mask)
            extended.append(present)
        cache.layers = extended
        return self.norm(x_BKD)

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def _cross_mask(
        self,
        memory: Memory,
        like: Tensor,
        cross: Tensor | None = None,
        events_Q: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> AttentionMask:
        events_S, mask_BS = memory.events_S, memory.mask_BS
        padding = None if mask_BS is None else mask_BS[:, None, None]
        bias = like.new_zeros(1, 1, 1, 1) if bias is None else bias
        if self.recency is None:
            return attention_mask(bias, padding, cross)
        if events_S is None or mask_BS is None:
            raise ValueError("a decoder with recency needs the events of its memory and its mask")
        if events_Q is None:
            events_Q, events_S = last_event(mask_BS, events_S)[:, None], events_S.expand(len(mask_BS), -1)
        return attention_mask(self.recency(events_Q, events_S) + bias, padding, cross)


def last_event(mask_BS: Tensor, events_S: Tensor) -> Tensor:
    """Return the latest event (B,) of the tokens that are no padding."""
    return torch.where(mask_BS, events_S, events_S.min() - 1).amax(1)


def with_heads(attention: Tensor | None) -> Tensor | None:
    """Return a mask (T, S) or (B, T, S) with a dimension for heads, (..., 1, T, S)."""
    return None if attention is None else attention[..., None, :, :]
