"""CPU fast path of T5's encoder: packed weights, norms folded into them, no work on padding.

Letters as in layers/t5.py; M rows, R tokens that are no padding. Gains: see code_transformer.py; without packed weights
its 4.2 ms per user are 6.9.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.layers.t5 import EPS, Encoder, EncoderLayer, FeedForward, SelfAttention, attention_mask, with_heads

ROWS = 256  # typical rows of a product, by which oneDNN chooses a layout


class FastLinear:
    """x -> x W' for x (M, D), fused with the operations before and after it."""

    def __init__(self, weight: Tensor, *, norm: Tensor | None = None) -> None:
        """``norm``: the scale of the RMSNorm before it, for inputs normalised by ``normalise``."""
        weight = (weight.detach() if norm is None else weight.detach() * norm_scale(norm)).contiguous()
        self.packed = _packed(weight)
        self.weight = weight if self.packed is None else None  # one of the two

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        if self.weight is not None:
            return F.linear(x, self.weight).relu_() if relu else F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "relu" if relu else "none", [], "")

    def add(self, residual: Tensor, x: Tensor) -> Tensor:
        """``residual`` + x W'."""
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
    """RMSNorm without its scale and without the factor sqrt(D), in three passes."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, _smallest_norm(x.shape[-1], x.dtype, x.device))


def norm_scale(norm: Tensor) -> Tensor:
    """The factor that ``normalise`` leaves out."""
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
        """(B, T, D) as from ``Encoder``, 0 in the padding. Raises ValueError for padding on the left."""
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
    """(R, D) tokens that are no padding."""
    return x_BTD.flatten(0, 1) if bool(mask_BT.all()) else x_BTD[mask_BT]
