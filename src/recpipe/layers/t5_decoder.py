"""T5's decoder: teacher-forced, or one level of all beams at a time. Letters as in t5.py; t levels decoded so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recpipe.layers.dropout import Dropout
from recpipe.layers.t5 import (
    EPS,
    CrossAttention,
    FeedForward,
    Reach,
    Relative,
    SelfAttention,
    T5Shape,
    batched,
    both,
    headed,
    reach,
)


@dataclass(frozen=True)
class Memory:
    """What the decoder knows of encoded users: keys and values of every layer, each (B, H, S, P), once per user.

    ``events_S``: the event that each place belongs to, for a decoder with ``recency``.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask_BS: Tensor | None = None
    events_S: Tensor | None = None


@dataclass
class Cache:
    """Keys and values of a beam search's own past, (B, H, K, t, P) per layer."""

    layers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Levels decoded so far."""
        return self.layers[0][0].shape[3] if self.layers else 0

    def follow(self, parents_BK: Tensor) -> None:
        """Beam k goes on from what was beam ``parents[b, k]``."""
        self.layers = [(_followed(k, parents_BK), _followed(v, parents_BK)) for k, v in self.layers]


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, shape: T5Shape) -> None:
        super().__init__()
        self.attention, self.cross, self.feed = (
            SelfAttention(shape),
            CrossAttention(shape),
            FeedForward(shape),
        )

    def forward(self, x_BQD: Tensor, own: Reach, memory: tuple[Tensor, Tensor], cross: Reach) -> Tensor:
        return self.feed(self.cross(self.attention(x_BQD, own), *memory, cross))

    def step(
        self,
        x_BKD: Tensor,
        own: Tensor,
        past: tuple[Tensor, Tensor] | None,
        memory: tuple[Tensor, Tensor],
        cross: Reach,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As ``forward`` for the last position of every beam, and the cache with it."""
        q, k, v = self.attention.project(x_BKD)  # (B, H, K, P)
        k, v = k[:, :, :, None], v[:, :, :, None]
        if past is not None:
            k, v = torch.cat([past[0], k], 3), torch.cat([past[1], v], 3)
        weights = ((q[:, :, :, None] @ k.mT).squeeze(3) + own).softmax(-1)  # (B, H, K, t)
        mixed = (weights[:, :, :, None] @ v).squeeze(3).transpose(1, 2).flatten(2)
        x_BKD = self.attention.add(x_BKD, mixed)
        return self.feed(self.cross(x_BKD, *memory, cross)), (k, v)


class Decoder(nn.Module):
    """``causal``: a query sees itself and those before it; else all see each other, with two-sided distances.

    ``recency``, which T5 has not: cross-attention has a bias by how many events before the target a place lies. A
    query of several that share one causal encoding cannot tell otherwise which event is the latest it sees.
    """

    def __init__(self, shape: T5Shape, causal: bool = True, recency: bool = False) -> None:
        super().__init__()
        self.shape, self.causal = shape, causal
        self.relative = Relative(shape, bidirectional=not causal)
        self.recency = Relative(shape, bidirectional=False) if recency else None
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.decoder_layers))
        self.norm = nn.RMSNorm(shape.dim, EPS)
        self.dropout = Dropout(shape.dropout)

    def memory(
        self, encoded_BSD: Tensor, mask_BS: Tensor | None = None, events_S: Tensor | None = None
    ) -> Memory:
        """What ``forward`` and ``step`` read of the encoder, computed once; ``events_S`` as of ``Memory``."""
        return Memory(tuple(layer.cross.memory(encoded_BSD) for layer in self._layers()), mask_BS, events_S)

    def cache(self) -> Cache:
        """An empty one, for a search."""
        return Cache()

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
        """(B, Q, D) of embedded targets, shifted right, or of queries.

        ``cross`` bool, (Q, S) or (B, Q, S): what of the memory each query sees. ``attention`` bool, (Q, Q) or
        (B, Q, Q): which of the queries it sees, of those that ``causal`` lets it see. ``positions`` integers, (Q,) or
        (B, Q), from which distances are taken: the places by default. ``events_Q``, for ``recency``: the event after
        which each asks, by default the row's last. Queries that see nothing mix nothing in.
        """
        places = torch.arange(x_BQD.shape[1], device=x_BQD.device)
        positions = places if positions is None else positions
        past = (places <= places[:, None])[None, None] if self.causal else None
        own = reach(both(past, headed(attention)), batched(self.relative(positions, positions)))
        crossing = self._crossing(memory, x_BQD, headed(cross), events_Q)
        x_BQD = self.dropout(x_BQD)
        for layer, kv in zip(self.layers, memory.layers, strict=True):
            x_BQD = layer(x_BQD, own, kv, crossing)
        return self.dropout(self.norm(x_BQD))

    def step(self, x_BKD: Tensor, memory: Memory, cache: Cache, parents_BK: Tensor | None = None) -> Tensor:
        """(B, K, D): the next position of all beams, which is added to ``cache``; B * K rows share B rows of memory.

        ``parents_BK``: which beam of the last step each one goes on from; the same one if None. Equal to the last
        position of ``forward`` over the whole beam, without dropout.
        """
        if parents_BK is not None and cache.length:
            cache.follow(parents_BK)
        places = torch.arange(cache.length + 1, device=x_BKD.device)
        own = self.relative(places[-1:], places)[:, 0][None, :, None]  # (1, H, 1, t)
        crossing = self._crossing(memory, x_BKD)
        kept = []
        for number, (layer, kv) in enumerate(zip(self._layers(), memory.layers, strict=True)):
            past = cache.layers[number] if cache.length else None
            x_BKD, present = layer.step(x_BKD, own, past, kv, crossing)
            kept.append(present)
        cache.layers = kept
        return self.norm(x_BKD)

    def _layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.layers))

    def _crossing(
        self, memory: Memory, like: Tensor, cross: Tensor | None = None, events_Q: Tensor | None = None
    ) -> Reach:
        mask = None if memory.mask_BS is None else memory.mask_BS[:, None, None]
        return reach(both(mask, cross), self._recent(memory, like, events_Q))

    def _recent(self, memory: Memory, like: Tensor, events_Q: Tensor | None) -> Tensor:
        """What cross-attention adds, broadcast to (B, H, Q, S)."""
        if self.recency is None:
            return like.new_zeros(1, 1, 1, 1)
        events_S, mask_BS = memory.events_S, memory.mask_BS
        if events_S is None or mask_BS is None:
            raise ValueError("a decoder with recency needs the events of its memory and its mask")
        if events_Q is not None:
            return batched(self.recency(events_Q, events_S))
        return self.recency(last_event(mask_BS, events_S)[:, None], events_S.expand(len(mask_BS), -1))


def last_event(mask_BS: Tensor, events_S: Tensor) -> Tensor:
    """(B,) the latest of the real places' events."""
    return torch.where(mask_BS, events_S, events_S.min() - 1).amax(1)


class Head(nn.Module):
    """Hidden states to logits. ``tied``: with the table of the embedded tokens, after T5's scale of D ** -0.5.

    An untied table starts at std D ** -0.5, as in T5 1.1's own code (transformers has 1, and losses in the hundreds).
    """

    def __init__(self, dim: int, size: int, *, tied: bool = True) -> None:
        super().__init__()
        self.weight = None if tied else nn.Parameter(torch.empty(size, dim).normal_(std=dim**-0.5))

    def forward(self, hidden: Tensor, tokens_VD: Tensor, rows: slice = slice(None)) -> Tensor:
        """(..., V) logits of hidden states (..., D) for some ``rows`` of the vocabulary, such as those of a level."""
        if self.weight is None:
            return F.linear(hidden * hidden.shape[-1] ** -0.5, tokens_VD[rows])
        return F.linear(hidden, self.weight[rows])


def _followed(kept: Tensor, parents_BK: Tensor) -> Tensor:
    return kept[torch.arange(len(kept), device=kept.device)[:, None], :, parents_BK].transpose(1, 2)
