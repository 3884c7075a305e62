"""Batches, assembled on the device by indexing flat sequences. B batch, T time, N events, M values of a feature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recpipe.data.sequences import Sequences

Features = Mapping[str, np.ndarray]  # by name: "user.*" (U, M), "event.*" (N, M)


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences, oldest event first; causal models need no mask, since padding comes last.

    With ``segments``, rows are packed: each contains several sequences, and models must not look across segments.
    """

    items: Tensor  # (B, T) int64, 0 is padding
    lengths: Tensor  # (B,) int64, each >= 0
    timestamps: Tensor | None  # (B, T) int64 seconds, 0 at padding
    n_targets: int = 0  # number of targets in the batch, its weight in the loss of a step
    features: Mapping[str, Tensor] = field(default_factory=dict)  # "event.*" (B, T, M), "user.*" (B, 1 or T, M)
    # (B, T) int64 seconds, 0 at padding: time of the next event, after the last event that of the query
    query_times: Tensor | None = None
    segments: Tensor | None = None  # (B, T) int64, 1, 2, … along a row, 0 at padding
    segment_positions: Tensor | None = None  # (B, T) int64, position in the segment
    context: Tensor | None = None  # (B,) int64, number of first events that are no targets, at least 1
    next_items: Tensor | None = None  # (B, T) int64, targets of packed rows, which lack the last events
    weights: Tensor | None = None  # (B, T) float32 of events, 0 at padding
    next_weights: Tensor | None = None  # (B, T) float32 of the next event, of inputs
    is_target: Tensor | None = None  # (B, T) bool, events that may be targets by their type; None: all

    @property
    def mask(self) -> Tensor:
        """True where there is an event (B, T)."""
        return torch.arange(self.items.shape[1], device=self.items.device) < self.lengths[:, None]

    @property
    def positions(self) -> Tensor:
        """Positions of events in their sequences: (T,), or (B, T) for packed rows."""
        if self.segment_positions is not None:
            return self.segment_positions
        return torch.arange(self.items.shape[1], device=self.items.device)

    @property
    def starts(self) -> Tensor:
        """True at the first event of a sequence, (T,) or (B, T)."""
        return self.positions == 0

    def append_event(self, items: Tensor, window: int) -> Batch:
        """Append an event (B,) to every row, 0 for none; beyond ``window`` the first event is dropped.

        The event has the time of the last one, which the query now follows, the weight 1 and no features. Not for
        packed rows.
        """
        longer, place = self.pad(1), self.lengths
        rows = torch.arange(len(items), device=items.device)
        longer.items[rows, place] = items
        last = (place - 1).clamp(min=0)
        if longer.timestamps is not None:
            longer.timestamps[rows, place] = torch.where(items > 0, longer.timestamps[rows, last], 0)
            if longer.query_times is not None:
                query, follows = longer.query_times[rows, last], (items > 0) & (place > 0)
                longer.query_times[rows, last] = torch.where(follows, longer.timestamps[rows, place], query)
                longer.query_times[rows, place] = torch.where(items > 0, query, 0)
        if longer.weights is not None:
            longer.weights[rows, place] = (items > 0).float()
        lengths = place + (items > 0)
        over, width = lengths > window, min(longer.items.shape[1], window)

        def cut(values: Tensor) -> Tensor:
            return torch.where(over.view(-1, *[1] * (values.dim() - 1)), values[:, -width:], values[:, :width])

        return replace(longer._map_events(cut), lengths=lengths.clamp(max=window))

    def pad(self, n: int) -> Batch:
        """Append ``n`` positions of padding to every row. Not for packed rows."""
        return self._map_events(lambda values: F.pad(values, (0, 0) * (values.dim() - 2) + (0, n)))

    def _map_events(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Apply a function to all tensors (B, T) and (B, T, M) of an unpacked batch."""
        columns = {name: getattr(self, name) for name in ("items", "timestamps", "query_times", "weights", "is_target")}
        events: dict[str, Any] = {name: function(values) for name, values in columns.items() if values is not None}
        features = {name: function(x) if name.startswith("event.") else x for name, x in self.features.items()}
        return replace(self, **events, features=features)

    def inputs_and_targets(self) -> tuple[Batch, Tensor]:
        """Return all events but the last, and the next item of each (B, T - 1), 0 where there is none.

        Query times of the inputs are the times of their targets, 0 without a target; ``next_weights`` their weights.
        """
        if self.next_items is not None:
            return self, self.next_items
        width, targets, times = self.items.shape[1], self.items[:, 1:], self.timestamps
        if self.context is not None:
            place = torch.arange(1, width, device=targets.device)
            targets = torch.where(place >= self.context[:, None], targets, 0)
        if self.is_target is not None:
            targets = torch.where(self.is_target[:, 1:], targets, 0)
        inputs = replace(
            self._map_events(lambda values: values[:, :-1]),
            lengths=self.lengths.clamp(max=width - 1),
            query_times=None if times is None else torch.where(targets > 0, times[:, 1:], 0),
            context=None,
            next_weights=None if self.weights is None else self.weights[:, 1:],
        )
        return inputs, targets

    def target_weights(self, mask: Tensor) -> Tensor | None:
        """Return the weights (N,) of the targets where ``mask`` (B, T) is True; None if all count alike. Of inputs."""
        return None if self.next_weights is None else self.next_weights[mask]

    def context_items(self, targets: Tensor) -> Tensor:
        """Return the events of inputs (B, T) that are not among their ``targets`` (B, T), such as first events (C,)."""
        follows_target = F.pad(targets[:, :-1] > 0, (1, 0))
        return self.items[self.mask & (self.starts | ~follows_target)]


class DeviceSequences:
    """Flat sequences on a device, the last ``window`` events per user, from which batches are gathered."""

    def __init__(
        self, sequences: Sequences, *, window: int, device: torch.device | str, features: Features | None = None
    ) -> None:
        def to_device(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values.copy()).to(device)

        self.lengths, self.device = np.minimum(sequences.lengths, window), torch.device(device)
        context = np.ones_like(self.lengths) if sequences.context is None else sequences.context
        self.n_targets = np.maximum(self.lengths - np.maximum(context, 1), 0)  # (U,)
        if sequences.is_target is not None:
            last = sequences.last(window)
            self.n_targets = np.diff(np.concatenate([[0], np.cumsum(last.target_mask())])[last.offsets])
        self._stop = torch.from_numpy(sequences.offsets[1:].copy()).to(device)
        self._lengths = torch.from_numpy(self.lengths).to(device)
        self._items = torch.from_numpy(sequences.items.astype(np.int64)).to(device)
        self._context = to_device(sequences.context)
        self._times = to_device(sequences.timestamps)
        self._query_times = to_device(sequences.query_times)
        self._weights = to_device(sequences.weights)
        self._is_target = to_device(sequences.is_target)
        self._features = {name: torch.from_numpy(value).to(device) for name, value in (features or {}).items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """Gather the users ``rows`` (B,), padded to the longest of them."""
        index = torch.from_numpy(rows).to(self.device)
        lengths = self._lengths[index]
        place = torch.arange(int(self.lengths[rows].max(initial=0)), device=self.device)
        mask = place < lengths[:, None]
        flat = torch.where(mask, (self._stop[index] - lengths)[:, None] + place, 0)
        times = None if self._times is None else torch.where(mask, self._times[flat], 0)
        query_times = None
        if self._query_times is not None and times is not None:
            is_last = place == lengths[:, None] - 1
            query_times = torch.where(is_last, self._query_times[index][:, None], times.roll(-1, 1)) * mask
        features = {}
        for name, values in self._features.items():
            if name.startswith("user."):
                features[name] = values[index][:, None]
            elif len(values) == 0:
                features[name] = values.new_zeros(*flat.shape, values.shape[1])
            else:
                features[name] = torch.where(mask[..., None], values[flat], 0)
        items = torch.where(mask, self._items[flat], 0) if len(self._items) else flat
        n_targets = int(self.n_targets[rows].sum())
        context = None if self._context is None else self._context[index]
        weights = None
        if self._weights is not None:
            weights = torch.where(mask, self._weights[flat], 0) if len(self._weights) else flat.float()
        batch = Batch(items, lengths, times, n_targets, features, query_times, context=context, weights=weights)
        if self._is_target is None:
            return batch
        return replace(batch, is_target=mask & self._is_target[flat] if len(self._items) else mask)

    def pack(
        self, users: np.ndarray, row: np.ndarray, start: np.ndarray, segment: np.ndarray, *, shape: tuple[int, int]
    ) -> Batch:
        """Pack all but the last event of the users (n,) into rows (B, T), each user at ``start`` of its ``row``.

        ``segments`` are None where every row has one user from its first position on.
        """
        count = self.lengths[users] - 1
        ends, total = np.cumsum(count), int(count.sum())
        row_lengths = np.zeros(shape[0], np.int64)
        np.maximum.at(row_lengths, row, start + count)
        table = np.stack([users, row * shape[1] + start, ends - count, segment, count])
        user, first, before, part, repeats = torch.from_numpy(table).to(self.device)
        owner = torch.repeat_interleave(repeats, output_size=total)
        place = torch.arange(total, device=self.device) - before[owner]
        target = first[owner] + place
        user = user[owner]
        source = self._stop[user] - self._lengths[user] + place
        next_items = self._items[source + 1]
        if self._context is not None:
            next_items = torch.where(place + 1 >= self._context[user], next_items, 0)
        if self._is_target is not None:
            next_items = torch.where(self._is_target[source + 1], next_items, 0)

        def scatter(values: Tensor) -> Tensor:
            empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
            return empty.index_copy_(0, target, values).view(*shape, *values.shape[1:])

        several = len(users) > shape[0]
        return Batch(
            scatter(self._items[source]),
            torch.from_numpy(row_lengths).to(self.device),
            None if self._times is None else scatter(self._times[source]),
            int(self.n_targets[users].sum()),
            {name: scatter(x[user if name.startswith("user.") else source]) for name, x in self._features.items()},
            segments=scatter(part[owner]) if several else None,
            segment_positions=scatter(place) if several else None,
            query_times=None if self._times is None else scatter(self._times[source + 1]),
            next_items=scatter(next_items),
            next_weights=None if self._weights is None else scatter(self._weights[source + 1]),
        )
