"""Batches assembled on the device by indexing flat values. B batch, T time, N events.

Which rows a step of training, or a batch of scoring, is made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from recpipe.data.sequences import Sequences


@dataclass(frozen=True)
class Batch:
    """Right-padded events, oldest first; a causal model needs no mask, since padding comes after what it reads.

    Packed (``segments`` given), a row holds several users one after the other, and what is causal must also keep to
    its segment. M values of a feature.
    """

    items: Tensor  # (B, T) int64, 0 is padding
    lengths: Tensor  # (B,) int64, each >= 0
    timestamps: Tensor | None  # (B, T) int64 seconds, 0 at padding
    targets: int = 0  # events with a predecessor in their sequence: the weight of this part in a step's loss
    features: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # "event.*" (B, T, M), "user.*" (B, 1 or T, M)
    # (B, T) int64 seconds, 0 at padding: when the question after each event is asked, where that may be known. It is
    # the time of the event that follows, and after the last one that of the question itself.
    query_times: Tensor | None = None
    segments: Tensor | None = None  # (B, T) int64, 1, 2, … along a row, 0 at padding
    segment_positions: Tensor | None = None  # (B, T) int64, place in the own segment
    context: Tensor | None = None  # (B,) int64: first events of a row that are no targets, at least 1
    next_items: Tensor | None = (
        None  # (B, T) int64, what is to be predicted where users' last events are not in rows
    )

    @property
    def mask(self) -> Tensor:
        """True where there is an event (B, T)."""
        return torch.arange(self.items.shape[1], device=self.items.device) < self.lengths[:, None]

    @property
    def positions(self) -> Tensor:
        """Places of events in their sequences: (T,), or (B, T) where packed."""
        return (
            torch.arange(self.items.shape[1], device=self.items.device)
            if self.segment_positions is None
            else self.segment_positions
        )

    @property
    def starts(self) -> Tensor:
        """True at the first event of a sequence, (T,) or (B, T)."""
        return self.positions == 0

    def append_event(self, items: Tensor, window: int) -> Batch:
        """The same with one event (B,) more in every row, 0 for none; beyond ``window`` the first one falls out.

        What is not known of it is missing, and it happens when the last one did. Not where packed.
        """
        long = self.pad(1)
        rows, place = torch.arange(len(items), device=items.device), self.lengths
        before = (place - 1).clamp(min=0)
        long.items[rows, place] = items
        if long.timestamps is not None:
            long.timestamps[rows, place] = torch.where(items > 0, long.timestamps[rows, before], 0)
        lengths = place + (items > 0)
        over, width = lengths > window, min(long.items.shape[1], window)

        def kept(values: Tensor) -> Tensor:
            late = over.view(-1, *[1] * (values.dim() - 1))
            return torch.where(late, values[:, -width:], values[:, :width])

        return replace(
            long,
            items=kept(long.items),
            lengths=lengths.clamp(max=window),
            timestamps=None if long.timestamps is None else kept(long.timestamps),
            features={
                name: kept(value) if name.startswith("event.") else value
                for name, value in long.features.items()
            },
        )

    def pad(self, n: int) -> Batch:
        """The same with ``n`` more places of padding in every row; not where packed."""
        return replace(
            self,
            items=_padded(self.items, n),
            timestamps=None if self.timestamps is None else _padded(self.timestamps, n),
            query_times=None if self.query_times is None else _padded(self.query_times, n),
            features={
                name: _padded(value, n) if name.startswith("event.") else value
                for name, value in self.features.items()
            },
        )

    def inputs_and_targets(self) -> tuple[Batch, Tensor]:
        """All events but the last, and for each the item that follows (B, T - 1), 0 where none does.

        They are ``asked`` at the time of that item, 0 where there is none.
        """
        if self.next_items is not None:
            return self, self.next_items
        width = self.items.shape[1]
        targets = self.items[:, 1:]
        if self.context is not None:
            place = torch.arange(1, width, device=targets.device)
            targets = torch.where(place >= self.context[:, None], targets, 0)
        if self.segments is not None:
            targets = torch.where(self.segments[:, 1:] == self.segments[:, :-1], targets, 0)
        inputs = replace(
            self,
            items=self.items[:, :-1],
            lengths=self.lengths.clamp(max=width - 1),
            timestamps=None if self.timestamps is None else self.timestamps[:, :-1],
            query_times=None
            if self.timestamps is None
            else torch.where(targets > 0, self.timestamps[:, 1:], 0),
            features={
                name: value[:, :-1] if value.shape[1] == width else value  # those of users have one place
                for name, value in self.features.items()
            },
            context=None,
            segments=None if self.segments is None else self.segments[:, :-1],
            segment_positions=None if self.segment_positions is None else self.segment_positions[:, :-1],
        )
        return inputs, targets


def _padded(values: Tensor, n: int) -> Tensor:
    """``n`` zeros behind every row of (B, T) or (B, T, M)."""
    return torch.cat([values, values.new_zeros(len(values), n, *values.shape[2:])], 1)


class DeviceSequences:
    """Flat sequences held on ``device``; ``batch`` gathers rows from them there.

    ``window`` keeps each user's last events only (what training and scoring look at). ``features`` by name: of users
    (U, M) under ``user.*``, of events (N, M) under ``event.*``.
    """

    def __init__(
        self,
        sequences: Sequences,
        *,
        window: int,
        device: torch.device | str,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.lengths = np.minimum(sequences.lengths, window)
        self.device = torch.device(device)
        context = np.ones_like(self.lengths) if sequences.context is None else sequences.context
        self.targets = np.maximum(self.lengths - np.maximum(context, 1), 0)  # (U,) of each row
        self._context = None if sequences.context is None else torch.from_numpy(context.copy()).to(device)
        self._stop = torch.from_numpy(sequences.offsets[1:].copy()).to(device)
        self._lengths = torch.from_numpy(self.lengths).to(device)
        self._items = torch.from_numpy(sequences.items.astype(np.int64)).to(device)
        times, asked = sequences.timestamps, sequences.query_times
        self._times = None if times is None else torch.from_numpy(times.copy()).to(device)
        self._asked = None if asked is None else torch.from_numpy(asked.copy()).to(device)
        self._features = {
            name: torch.from_numpy(value).to(device) for name, value in (features or {}).items()
        }

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """The users ``rows`` (B,), padded to the longest of them."""
        width = int(self.lengths[rows].max(initial=0))
        index = torch.from_numpy(rows).to(self.device)
        lengths = self._lengths[index]
        place = torch.arange(width, device=self.device)
        real = place < lengths[:, None]
        flat = torch.where(real, (self._stop[index] - lengths)[:, None] + place, 0)
        items = torch.where(real, self._items[flat], 0) if len(self._items) else flat
        times = None if self._times is None else torch.where(real, self._times[flat], 0)
        return Batch(
            items,
            lengths,
            times,
            int(self.targets[rows].sum()),
            {name: self._feature(name, index, flat, real) for name in self._features},
            self._asked_after(index, times, real),
            context=None if self._context is None else self._context[index],
        )

    def _asked_after(self, index: Tensor, times: Tensor | None, real: Tensor) -> Tensor | None:
        """(B, T): after each event the time of the next, after the last that of the question; 0 at padding."""
        if self._asked is None or times is None:
            return None
        last = torch.arange(real.shape[1], device=self.device) == self._lengths[index][:, None] - 1
        return torch.where(last, self._asked[index][:, None], times.roll(-1, 1)) * real

    def pack(
        self,
        users: np.ndarray,
        row: np.ndarray,
        start: np.ndarray,
        segment: np.ndarray,
        *,
        shape: tuple[int, int],
    ) -> Batch:
        """All but the last event of every user of ``users`` (n,), from place ``start`` of ``row`` on, (B, T) ``shape``.

        Rows that hold one user each, all from their first place, come without segments: they need no more than padding.
        """
        count, whole = self.lengths[users] - 1, int((self.lengths[users] - 1).sum())
        ends = np.cumsum(count)
        used = np.zeros(shape[0], np.int64)
        np.maximum.at(used, row, start + count)
        about = np.stack([users, row * shape[1] + start, ends - count, segment, count])
        user, to, before, part, repeats = torch.from_numpy(about).to(self.device)
        owner = torch.repeat_interleave(repeats, output_size=whole)
        place = torch.arange(whole, device=self.device) - before[owner]
        to = to[owner] + place
        user = user[owner]
        source = self._stop[user] - self._lengths[user] + place

        def scatter(values: Tensor) -> Tensor:
            empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
            return empty.index_copy_(0, to, values).view(*shape, *values.shape[1:])

        several = len(users) > shape[0]
        return Batch(
            scatter(self._items[source]),
            torch.from_numpy(used).to(self.device),
            None if self._times is None else scatter(self._times[source]),
            int(self.targets[users].sum()),
            {
                name: scatter(values[user] if name.startswith("user.") else values[source])
                for name, values in self._features.items()
            },
            segments=scatter(part[owner]) if several else None,
            segment_positions=scatter(place) if several else None,
            query_times=None if self._times is None else scatter(self._times[source + 1]),
            next_items=scatter(self._following(source, user, place)),
        )

    def _following(self, source: Tensor, user: Tensor, place: Tensor) -> Tensor:
        """The item after each event, 0 where it is context."""
        following = self._items[source + 1]
        if self._context is None:
            return following
        return torch.where(place + 1 >= self._context[user], following, 0)

    def _feature(self, name: str, index: Tensor, flat: Tensor, real: Tensor) -> Tensor:
        """(B, 1, M) of users, or (B, T, M) of events, 0 at padding."""
        values = self._features[name]
        if name.startswith("user."):
            return values[index][:, None]
        shape = (*flat.shape, values.shape[1])
        return torch.where(real[..., None], values[flat], 0) if len(values) else values.new_zeros(shape)
