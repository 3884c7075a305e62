"""Causal self-attention within users, for padded and packed rows. B batch, T time, H heads, D width of a head."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.data.batches import Batch

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Mask: TypeAlias = "Tensor | BlockMask | None"
"""None: causal only. Tensor (B, 1, T, T): added to scores. BlockMask: of FlexAttention."""

MIN_FLEX_WIDTH = 16  # of a head, in FlexAttention's kernels


def causal_mask(batch: Batch, like: Tensor) -> Mask:
    """Return the mask of rows (B, T) for ``attend``, shared by all layers, with type and device of ``like``.

    See ``Mask``: None for padded rows, a bias (B, 1, T, T) or a block mask for packed ones.
    """
    segments = batch.segments
    if segments is None:  # padding comes after all events, so causality suffices
        return None
    if like.device.type == "cuda":
        return block_mask(segments)
    allowed = (segments[:, :, None] == segments[:, None, :]).tril_()[:, None]
    return torch.where(allowed, 0.0, -torch.inf).to(like.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask = None, dropout: nn.Dropout | None = None) -> Tensor:
    """Return causal attention under ``mask``, all (B, H, T, D). Raises ValueError for dropout with FlexAttention."""
    p = dropout.p if dropout is not None and dropout.training else 0.0
    if mask is not None and not isinstance(mask, Tensor):
        if p > 0:
            raise ValueError("attention_dropout and packed rows do not go together on a GPU; set it to 0")
        return flex_attend(q, k, v, mask)
    if p > 0 and dropout is not None and q.device.type == "cpu":  # torch has no fused kernel for this on a CPU
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        scores = scores.masked_fill_(future, -torch.inf) if mask is None else scores + mask
        return dropout(scores.softmax(-1)) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=p)


def block_mask(segments: Tensor) -> BlockMask:
    """Return FlexAttention's mask for ``segments`` (B, T); it skips blocks of 128 x 128 without an allowed pair."""
    from torch.nn.attention.flex_attention import create_block_mask

    def same_user(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (segments[b, q] == segments[b, k]) & (q >= k)

    B, T = segments.shape
    return create_block_mask(same_user, B, None, T, T, device=str(segments.device))


def flex_attend(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask) -> Tensor:
    """Return attention (B, H, T, D) by FlexAttention; narrow heads are padded to ``MIN_FLEX_WIDTH``."""
    D = q.shape[-1]
    if D < MIN_FLEX_WIDTH:
        q, k, v = (F.pad(x, (0, MIN_FLEX_WIDTH - D)) for x in (q, k, v))
    return _flex_attention(q.device.type)(q, k, v, block_mask=mask, scale=1 / math.sqrt(D))[..., :D]


@lru_cache
def _flex_attention(device_type: str) -> Any:
    """FlexAttention, compiled on a GPU: uncompiled it builds the whole score matrix."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if device_type == "cuda" else flex_attention


def init_normal(module: nn.Module) -> None:
    """Initialise Linear and Embedding weights from N(0, 0.02²) and biases with zero, as in GPT-2."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
