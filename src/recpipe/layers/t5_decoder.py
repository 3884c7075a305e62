"""T5's decoder: teacher-forced, or one level of all beams at a time. Letters as in t5.py; t levels decoded so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from recpipe.layers.t5 import (
    EPS,
    AttentionMask,
    CrossAttention,
    FeedForward,
    RelativeBias,
    SelfAttention,
    T5Shape,
    attention_mask,
    with_heads,
)


@dataclass(frozen=True)
class Memory:
    """Encoded users as cross-attention reads them: keys and values of every layer, each (B, H, S, P).

    ``events_S``: the event that each token belongs to, for a decoder with ``recency``.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask_BS: Tensor | None = None
    events_S: Tensor | None = None


@dataclass
class KVCache:
    """Keys and values of the levels decoded so far, (B, H, K, t, P) per layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Levels decoded so far."""
        return self.layers[0][0].shape[3] if self.layers else 0

    def reorder(self, parents_BK: Tensor) -> None:
        """Let beam k continue what was beam ``parents[b, k]``."""
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

    def forward(
        self, x_BQD: Tensor, mask: AttentionMask, memory: tuple[Tensor, Tensor], cross_mask: AttentionMask
    ) -> Tensor:
        return self.feed(self.cross(self.attention(x_BQD, mask), *memory, cross_mask))

    def step(
        self,
        x_BKD: Tensor,
        bias: Tensor,
        past: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor],
        cross_mask: AttentionMask,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``forward`` for the last position of every beam; returns the extended keys and values too."""
        q, k, v = self.attention.project(x_BKD)  # (B, H, K, P)
        k, v = k[:, :, :, None], v[:, :, :, None]
        if past is not None:
            k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
        weights = ((q[:, :, :, None] @ k.mT).squeeze(3) + bias).softmax(-1)  # (B, H, K, t)
        mixed = (weights[:, :, :, None] @ v).squeeze(3).transpose(1, 2).flatten(2)
        x_BKD = self.attention.add(x_BKD, mixed)
        return self.feed(self.cross(x_BKD, *memory, cross_mask)), (k, v)


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
        """Compute keys and values of the encoder's output once per user; ``events_S`` as in ``Memory``."""
        return Memory(tuple(layer.cross.memory(encoded_BSD) for layer in self._layers()), mask_BS, events_S)

    def cache(self) -> KVCache:
        """An empty cache for a search."""
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
    ) -> Tensor:
        """Hidden states (B, Q, D) of embedded targets, shifted right, or of queries.

        ``cross`` bool, (Q, S) or (B, Q, S): which tokens of the memory each query may attend to. ``attention`` bool,
        (Q, Q) or (B, Q, Q): which queries, in addition to ``causal``. ``positions`` as in ``Encoder``. ``events_Q``,
        for ``recency``: the last event before each query's target, by default the last of the row.
        """
        places = torch.arange(x_BQD.shape[1], device=x_BQD.device)
        positions = places if positions is None else positions
        past = (places <= places[:, None])[None, None] if self.causal else None
        mask = attention_mask(self.relative(positions, positions), past, with_heads(attention))
        cross_mask = self._cross_mask(memory, x_BQD, with_heads(cross), events_Q)
        x_BQD = self.dropout(x_BQD)
        for layer, kv in zip(self.layers, memory.layers, strict=True):
            x_BQD = layer(x_BQD, mask, kv, cross_mask)
        return self.dropout(self.norm(x_BQD))

    def step(self, x_BKD: Tensor, memory: Memory, cache: KVCache, parents_BK: Tensor | None = None) -> Tensor:
        """Hidden states (B, K, D) of the next position of all beams, which is added to ``cache``.

        ``parents_BK``: the beam of the previous step that each one continues; None: the same one. Equal to the last
        position of ``forward`` over the whole beam, without dropout.
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
        self, memory: Memory, like: Tensor, cross: Tensor | None = None, events_Q: Tensor | None = None
    ) -> AttentionMask:
        events_S, mask_BS = memory.events_S, memory.mask_BS
        padding = None if mask_BS is None else mask_BS[:, None, None]
        if self.recency is None:
            return attention_mask(like.new_zeros(1, 1, 1, 1), padding, cross)
        if events_S is None or mask_BS is None:
            raise ValueError("a decoder with recency needs the events of its memory and its mask")
        if events_Q is None:
            events_Q, events_S = last_event(mask_BS, events_S)[:, None], events_S.expand(len(mask_BS), -1)
        return attention_mask(self.recency(events_Q, events_S), padding, cross)


def last_event(mask_BS: Tensor, events_S: Tensor) -> Tensor:
    """(B,) latest event of the tokens that are no padding."""
    return torch.where(mask_BS, events_S, events_S.min() - 1).amax(1)
