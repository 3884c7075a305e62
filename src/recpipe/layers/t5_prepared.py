"""T5's encoder for inference on a CPU: weights in the layout that multiplies fastest, no work on padding.

Letters as in t5.py; M rows, R real tokens.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.layers.t5 import (
    EPS,
    Encoder,
    EncoderLayer,
    FeedForward,
    SelfAttention,
    batched,
    both,
    headed,
    reach,
)

ROWS = 256  # about what a product gets; oneDNN chooses its layout by it


class Product:
    """x -> x W' for x (M, D), with what comes before and after it in the same pass."""

    def __init__(
        self, weight: Tensor, *, norm: Tensor | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """``norm``: the scale of the RMSNorm before it, for inputs that ``unit`` made."""
        weight = weight.detach()
        if norm is not None:
            weight = weight * (norm.detach() * math.sqrt(len(norm)))
        weight = weight.to(dtype or weight.dtype).contiguous()
        self.packed = _packed(weight)
        self.weight = weight if self.packed is None else None  # one of the two

    def __call__(self, x: Tensor, *, relu: bool = False) -> Tensor:
        if self.weight is not None:
            y = F.linear(x, self.weight)
            return y.relu_() if relu else y
        after = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, after, [], "")

    def add(self, to: Tensor, x: Tensor) -> Tensor:
        """``to`` + x W'."""
        if self.weight is not None:
            return to + F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise.binary(x, to, self.packed, None, "add")


def _packed(weight: Tensor) -> Tensor | None:
    """The weight in oneDNN's layout; None where there is none, and then torch multiplies as ever."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
    except (AttributeError, RuntimeError):
        return None


@lru_cache
def _least(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(math.sqrt(width * EPS), dtype=dtype, device=device)


def unit(x: Tensor) -> Tensor:
    """RMSNorm without its scale and without sqrt(D), in three passes."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, _least(x.shape[-1], x.dtype, x.device))


class PreparedAttention:
    """The products of self-attention."""

    def __init__(self, layer: SelfAttention, dtype: torch.dtype | None) -> None:
        self.qkv = Product(layer.qkv.weight, norm=layer.norm.weight, dtype=dtype)
        self.out = Product(layer.out.weight, dtype=dtype)


class PreparedFeedForward:
    """x + its feed-forward, for x (M, D)."""

    def __init__(self, layer: FeedForward, dtype: torch.dtype | None) -> None:
        self.up = Product(layer.up.weight, norm=layer.norm.weight, dtype=dtype)
        self.down = Product(layer.down.weight, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return self.down.add(x, self.up(unit(x), relu=True))


class PreparedEncoder:
    """What ``Encoder`` gives in evaluation, with the weights it had when this was made, in ``dtype``."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype | None = None) -> None:
        self.shape, self.relative = encoder.shape, encoder.relative
        self.dtype = dtype or encoder.norm.weight.dtype
        self.scale, self.near = (
            scale_of(encoder.norm.weight, self.dtype),
            torch.empty(encoder.shape.heads, 0, 0),
        )
        self.layers = [
            (PreparedAttention(layer.attention, dtype), PreparedFeedForward(layer.feed, dtype))
            for layer in cast(list[EncoderLayer], list(encoder.layers))
        ]

    @torch.no_grad()
    def __call__(
        self,
        x_BTD: Tensor,
        mask_BT: Tensor,
        *,
        attention: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, T, D) as of ``Encoder``, 0 in the padding, which has to be on the right: ValueError if not."""
        if bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
            raise ValueError("the padding is not on the right of every row")
        bias = self._near(mask_BT.shape[1]) if positions is None else self.relative(positions, positions)
        allowed = None if attention is None else both(mask_BT[:, None, None], headed(attention))
        looks = reach(allowed, batched(bias))
        bias, alive = looks.bias.to(self.dtype), looks.alive
        lengths = mask_BT.sum(1).tolist()
        x_RD = unpadded(x_BTD, mask_BT).to(self.dtype)
        for attend, feed in self.layers:
            mixed = self._mixed(attend.qkv(unit(x_RD)), lengths, bias)
            if alive is not None:
                mixed = mixed * alive[:, 0].expand(*mask_BT.shape, 1)[mask_BT]
            x_RD = feed(attend.out.add(x_RD, mixed))
        x_RD = unit(x_RD) * self.scale
        if len(x_RD) == mask_BT.numel():
            return x_RD.view(x_BTD.shape)
        encoded = x_BTD.new_zeros(x_BTD.shape, dtype=self.dtype)
        encoded[mask_BT] = x_RD
        return encoded

    def _near(self, T: int) -> Tensor:
        """(H, T, T) by distance: of the longest rows so far, as it is the same for shorter ones."""
        near = self.near  # other threads may replace it
        if near.shape[1] < T:
            places = torch.arange(T)
            self.near = near = self.relative(places, places).contiguous()
        return near[:, :T, :T]

    def _mixed(self, qkv: Tensor, lengths: list[int], bias: Tensor) -> Tensor:
        """(R, H * P), user by user: of their own length and of a size that stays in cache."""
        H, P = self.shape.heads, self.shape.head_dim
        mixed = qkv.new_empty(len(qkv), H, P)
        each = zip(
            qkv.split(lengths), mixed.split(lengths), bias.expand(len(lengths), -1, -1, -1), strict=True
        )
        for own, to, looks in each:
            T = len(own)
            q, k, v = own.view(T, 3, H, P).permute(1, 2, 0, 3)
            weights = torch.baddbmm(looks[:, :T, :T], q, k.mT).softmax(-1)
            to.copy_(torch.bmm(weights, v).transpose(0, 1))
        return mixed.flatten(1)


def unpadded(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """(R, D) the places that are no padding."""
    return x_BTD.flatten(0, 1) if bool(mask_BT.all()) else x_BTD[mask_BT]


def scale_of(norm: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of RMSNorm after ``unit``."""
    return (norm.detach() * math.sqrt(len(norm))).to(dtype)
