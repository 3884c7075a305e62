"""Causal attention that keeps to a user's own events, padded or packed, with the kernel that the device has.

B batch, T time, H heads, D width of a head.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.data.batches import Batch
from recpipe.layers.dropout import Dropout

NARROWEST = 16  # heads that the kernels of FlexAttention can multiply

Mask = Any
"""None: causal and no more; a tensor (B, 1, T, T) that is added to scores; or FlexAttention's BlockMask."""


def causal_mask(batch: Batch, like: Tensor) -> Mask:
    """What ``attend`` needs to know of ``batch``, made once for all layers; of the type and device of ``like``."""
    segments = batch.segments
    if segments is None:  # padding comes after what is read
        return None
    if like.device.type == "cuda":
        return block_mask(segments)
    T = segments.shape[1]
    allowed = (segments[:, :, None] == segments[:, None, :]).tril_()[:, None]
    return torch.where(allowed, 0.0, -torch.inf).to(like.dtype).view(-1, 1, T, T)


def block_mask(segments: Tensor) -> Mask:
    """The same for FlexAttention, which skips blocks of 128 x 128 that no pair of a user's events is in."""
    from torch.nn.attention.flex_attention import create_block_mask

    def same_user(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (segments[b, q] == segments[b, k]) & (q >= k)

    B, T = segments.shape
    return create_block_mask(same_user, B, None, T, T, device=str(segments.device))


@lru_cache
def flex(kind: str) -> Any:
    """FlexAttention for a kind of device, compiled on a GPU: without that it makes the whole matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if kind == "cuda" else flex_attention


def flexed(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """(B, H, T, D) by FlexAttention, whose kernels take no head narrower than ``NARROWEST``: zeros make it wider."""
    D = q.shape[-1]
    if D < NARROWEST:
        q, k, v = (F.pad(x, (0, NARROWEST - D)) for x in (q, k, v))
    return flex(q.device.type)(q, k, v, block_mask=mask, scale=1 / math.sqrt(D))[..., :D]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: Dropout | None = None) -> Tensor:
    """(B, H, T, D) of (B, H, T, D). Raises ValueError for dropout on attention weights with FlexAttention."""
    p = dropout.p if dropout is not None and dropout.training else 0.0
    if mask is not None and not isinstance(mask, Tensor):
        if p > 0:
            raise ValueError("attention_dropout and packed rows do not go together on a GPU; set it to 0")
        return flexed(q, k, v, mask)
    if p > 0 and dropout is not None and q.device.type == "cpu":  # no fused kernel for it, and slower masks
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if mask is None:
            T = q.shape[-2]
            scores = scores.masked_fill_(torch.ones(T, T, dtype=torch.bool).triu(1), -torch.inf)
        else:
            scores = scores + mask
        return dropout(scores.softmax(-1)) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=p)
