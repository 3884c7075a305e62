"""T5's encoder and decoder in plain torch: Raffel et al., Exploring the Limits of Transfer Learning with a Unified
Text-to-Text Transformer, JMLR 2020.

B batch, T time of the encoder, S time of what is looked at, Q queries of the decoder, K beams, D width, H heads,
P width of a head, V tokens.

RMSNorm before each block, no biases, no division by sqrt(P) (the initial weights of q have it), ReLU feed-forward, one
table of relative positions per stack that all its layers share. Embeddings and heads are the model's: ``Head`` is the
one with T5's scale. As parts of one batch are free to look at each other or not, one encoding serves all targets of a
sequence, tokens of an item can share a position, and queries can be decoded in parallel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from recpipe.layers.dropout import Dropout

EPS = 1e-6


@dataclass(frozen=True)
class T5Shape:
    """Sizes as of TIGER; ``layers`` of the encoder. Distances from ``max_distance`` on share a bucket."""

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
        for name in ("dim", "heads", "head_dim", "feed_forward", "layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it needs at least 1")
        if self.buckets < 4 or self.buckets % 4:
            raise ValueError(f"buckets is {self.buckets}; it must be a multiple of 4")
        if self.max_distance <= self.buckets // 2:
            raise ValueError(f"max_distance is {self.max_distance}; it must be above {self.buckets // 2}")

    @property
    def inner(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim


class Reach(NamedTuple):
    """What attention adds to its scores, and which rows have anything to look at (the others give 0)."""

    bias: Tensor  # broadcast to (B, H, T, S)
    alive: Tensor | None = None  # broadcast to (B, H, T, 1)


def reach(allowed: Tensor | None, bias: Tensor) -> Reach:
    """``allowed`` bool, broadcast to (B, H, T, S) as ``bias`` is."""
    if allowed is None:
        return Reach(bias)
    alive = allowed.any(-1, keepdim=True)
    return Reach(bias.masked_fill(~allowed & alive, -torch.inf), alive)


def attend(q: Tensor, k: Tensor, v: Tensor, reach: Reach, dropout: nn.Module) -> Tensor:
    """(B, T, H * P) of q (B, H, T, P), k and v (B, H, S, P); ``dropout``, a ``Dropout``, of weights."""
    if q.device.type == "cpu":  # a fused kernel there has no dropout, and none of it is faster for few places
        mixed = dropout((q @ k.mT).add_(reach.bias).softmax(-1)) @ v
    else:
        mixed = fused(q, k, v, reach, dropout)
    if reach.alive is not None:
        mixed = mixed * reach.alive
    return mixed.transpose(1, 2).flatten(2)


def fused(q: Tensor, k: Tensor, v: Tensor, reach: Reach, dropout: nn.Module) -> Tensor:
    """(B, H, T, P) by torch's own attention, which keeps no (B, H, T, S) of weights for the way back.

    Not by cuDNN's: with it a step of TIGER took 156 ms on an H100, by plain products 46 (torch 2.11, LOG.md).
    """
    bias = reach.bias.expand(len(q), q.shape[1], q.shape[2], k.shape[2])
    p = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), dropout_p=p, scale=1.0)


class Relative(nn.Module):
    """The bias of a stack's self-attention by distance: exact up to half of the buckets, then logarithmic."""

    def __init__(self, shape: T5Shape, *, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional, self.max_distance = bidirectional, shape.max_distance
        self.table = nn.Embedding(shape.buckets, shape.heads)
        nn.init.normal_(self.table.weight, std=shape.dim**-0.5)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(..., H, Q, S) of integer positions (..., Q) and (..., S)."""
        return self.table(self.bucket(keys[..., None, :] - queries[..., None])).movedim(-1, -3)

    def bucket(self, distance: Tensor) -> Tensor:
        """The row of the table for positions of keys less those of queries; one-sided: the future counts as 0."""
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
    """Normalises, mixes, and adds to its input."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.qkv = nn.Linear(shape.dim, 3 * shape.inner, bias=False)
        self.out = nn.Linear(shape.inner, shape.dim, bias=False)
        self.dropout = Dropout(shape.dropout)
        _initialise(self.qkv, std=shape.dim**-0.5)
        _initialise(self.out, std=shape.inner**-0.5)
        with torch.no_grad():
            self.qkv.weight[: shape.inner] *= shape.head_dim**-0.5

    def forward(self, x_BTD: Tensor, reach: Reach) -> Tensor:
        q, k, v = self.project(x_BTD)
        return self.add(x_BTD, attend(q, k, v, reach, self.dropout))

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, each (B, H, T, P)."""
        split = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        return q, k, v

    def add(self, x_BTD: Tensor, mixed: Tensor) -> Tensor:
        """What was mixed, as (B, T, H * P), into the stream."""
        return x_BTD + self.dropout(self.out(mixed))


class CrossAttention(nn.Module):
    """The same, with keys and values of the encoder."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.q = nn.Linear(shape.dim, shape.inner, bias=False)
        self.kv = nn.Linear(shape.dim, 2 * shape.inner, bias=False)
        self.out = nn.Linear(shape.inner, shape.dim, bias=False)
        self.dropout = Dropout(shape.dropout)
        _initialise(self.q, std=(shape.dim * shape.head_dim) ** -0.5)
        _initialise(self.kv, std=shape.dim**-0.5)
        _initialise(self.out, std=shape.inner**-0.5)

    def memory(self, encoded_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (B, H, S, P)."""
        k, v = self.kv(encoded_BSD).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return k, v

    def forward(self, x_BQD: Tensor, k: Tensor, v: Tensor, reach: Reach) -> Tensor:
        q = self.q(self.norm(x_BQD)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return x_BQD + self.dropout(self.out(attend(q, k, v, reach, self.dropout)))


class FeedForward(nn.Module):
    """The same, for every position alone."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.up = nn.Linear(shape.dim, shape.feed_forward, bias=False)
        self.down = nn.Linear(shape.feed_forward, shape.dim, bias=False)
        self.dropout = Dropout(shape.dropout)
        _initialise(self.up, std=shape.dim**-0.5)
        _initialise(self.down, std=shape.feed_forward**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.dropout(self.down(self.dropout(F.relu(self.up(self.norm(x_BTD))))))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.attention, self.feed = SelfAttention(shape), FeedForward(shape)

    def forward(self, x_BTD: Tensor, reach: Reach) -> Tensor:
        return self.feed(self.attention(x_BTD, reach))


class Encoder(nn.Module):
    """Bidirectional, unless ``attention`` says otherwise."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.shape = shape
        self.relative = Relative(shape, bidirectional=True)
        self.layers = nn.ModuleList(EncoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.dropout = Dropout(shape.dropout)

    def forward(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor | None = None,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) of embedded tokens.

        ``mask_BT``: what is not padding. ``attention`` bool, (T, T) or (B, T, T): which token (row) may look at which
        (column). ``positions`` integers, (T,) or (B, T), from which distances are taken: the places by default.
        ``bias``, broadcast to (B, H, T, T), is added to that of the distances. A token that may look at nothing mixes
        nothing in.
        """
        if positions is None:
            positions = torch.arange(x_BTD.shape[1], device=x_BTD.device)
        allowed = None if mask_BT is None else mask_BT[:, None, None]
        distances = batched(self.relative(positions, positions))
        looks = reach(both(allowed, headed(attention)), distances if bias is None else distances + bias)
        x_BTD = self.dropout(x_BTD)
        for layer in self.layers:
            x_BTD = layer(x_BTD, looks)
        return self.dropout(self.norm(x_BTD))


def both(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def headed(attention: Tensor | None) -> Tensor | None:
    """(T, S) or (B, T, S) as (…, 1, T, S)."""
    return None if attention is None else attention[..., None, :, :]


def batched(bias: Tensor) -> Tensor:
    return bias if bias.ndim == 4 else bias[None]


def _initialise(linear: nn.Linear, *, std: float) -> None:
    nn.init.normal_(linear.weight, std=std)
