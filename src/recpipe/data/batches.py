"""Batches, assembled on the device by indexing flat sequences. B batch, T time, N events, M values of a feature."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recpipe.data.sequences import Sequences
from recpipe.data.windows import Windows

log = logging.getLogger(__name__)

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

    def to(self, device: torch.device) -> Batch:
        """Move all tensors to a device."""
        if self.items.device == device and self.lengths.device == device:
            return self
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        tensors: dict[str, Any] = {name: x.to(device) for name, x in fields.items() if isinstance(x, Tensor)}
        return replace(self, **tensors, features={name: x.to(device) for name, x in self.features.items()})

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
    """Windows of sequences, the last ``window`` events of each, from which batches are gathered on a device.

    On the CPU the flat arrays are views of those of the sequences, memory-mapped or not. They move to a GPU unless they
    take more than half of its free memory: then batches are gathered in host memory and moved.
    """

    def __init__(
        self,
        sequences: Sequences | Windows,
        *,
        window: int,
        device: torch.device | str,
        features: Features | None = None,
    ) -> None:
        """``features`` are of the sequences: ``user.*`` (U, M) of their users, ``event.*`` (N, M) of their events."""
        windows = Windows.of(sequences).last(window)
        events = windows.sequences
        self.lengths, self.device = windows.lengths, torch.device(device)
        self.n_targets = windows.target_counts()  # (W,)
        names = ("items", "timestamps", "weights", "is_target")
        columns = {name: _view(values) for name in names if (values := getattr(events, name)) is not None}
        features_of = {name: _view(value) for name, value in (features or {}).items()}
        self._home = _storage([*columns.values(), *features_of.values()], self.device)

        def store(values: np.ndarray | None) -> Tensor | None:
            return None if values is None else _view(values).to(self._home)

        self._items = columns["items"].to(self._home)
        self._times, self._weights, self._is_target = (
            columns[name].to(self._home) if name in columns else None for name in names[1:]
        )
        self._features = {name: value.to(self._home) for name, value in features_of.items()}
        self._user, self._start, self._lengths = (
            _view(values).to(self._home) for values in (windows.user, windows.start, self.lengths)
        )
        self._context, self._query_times = store(windows.context), store(events.query_times)

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: np.ndarray) -> Batch:
        """Gather the windows ``rows`` (B,), padded to the longest of them."""
        index = torch.from_numpy(rows).to(self._home)
        lengths, user = self._lengths[index], self._user[index]
        place = torch.arange(int(self.lengths[rows].max(initial=0)), device=self._home)
        mask = place < lengths[:, None]
        flat = torch.where(mask, self._start[index][:, None] + place, 0)
        times = None if self._times is None else torch.where(mask, self._times[flat], 0)
        query_times = None
        if self._query_times is not None and times is not None:
            is_last = place == lengths[:, None] - 1
            query_times = torch.where(is_last, self._query_times[user][:, None], times.roll(-1, 1)) * mask
        features = {}
        for name, values in self._features.items():
            if name.startswith("user."):
                features[name] = values[user][:, None]
            elif len(values) == 0:
                features[name] = values.new_zeros(*flat.shape, values.shape[1])
            else:
                features[name] = torch.where(mask[..., None], values[flat], 0)
        items = torch.where(mask, self._items[flat].long(), 0) if len(self._items) else flat
        n_targets = int(self.n_targets[rows].sum())
        context = None if self._context is None else self._context[index]
        weights = None
        if self._weights is not None:
            weights = torch.where(mask, self._weights[flat], 0) if len(self._weights) else flat.float()
        batch = Batch(items, lengths, times, n_targets, features, query_times, context=context, weights=weights)
        if self._is_target is not None:
            batch = replace(batch, is_target=mask & self._is_target[flat] if len(self._items) else mask)
        return batch.to(self.device)

    def pack(
        self, windows: np.ndarray, row: np.ndarray, start: np.ndarray, segment: np.ndarray, *, shape: tuple[int, int]
    ) -> Batch:
        """Pack all but the last event of the windows (n,) into rows (B, T), each at ``start`` of its ``row``.

        ``segments`` are None where every row has one window from its first position on.
        """
        count = self.lengths[windows] - 1
        ends, total = np.cumsum(count), int(count.sum())
        row_lengths = np.zeros(shape[0], np.int64)
        np.maximum.at(row_lengths, row, start + count)
        table = np.stack([windows, row * shape[1] + start, ends - count, segment, count])
        window, first, before, part, repeats = torch.from_numpy(table).to(self._home)
        owner = torch.repeat_interleave(repeats, output_size=total)
        place = torch.arange(total, device=self._home) - before[owner]
        target = first[owner] + place
        window = window[owner]
        user, source = self._user[window], self._start[window] + place
        next_items = self._items[source + 1].long()
        if self._context is not None:
            next_items = torch.where(place + 1 >= self._context[window], next_items, 0)
        if self._is_target is not None:
            next_items = torch.where(self._is_target[source + 1], next_items, 0)

        def scatter(values: Tensor) -> Tensor:
            empty = values.new_zeros(shape[0] * shape[1], *values.shape[1:])
            return empty.index_copy_(0, target, values).view(*shape, *values.shape[1:])

        several = len(windows) > shape[0]
        batch = Batch(
            scatter(self._items[source].long()),
            torch.from_numpy(row_lengths),
            None if self._times is None else scatter(self._times[source]),
            int(self.n_targets[windows].sum()),
            {name: scatter(x[user if name.startswith("user.") else source]) for name, x in self._features.items()},
            segments=scatter(part[owner]) if several else None,
            segment_positions=scatter(place) if several else None,
            query_times=None if self._times is None else scatter(self._times[source + 1]),
            next_items=scatter(next_items),
            next_weights=None if self._weights is None else scatter(self._weights[source + 1]),
        )
        return batch.to(self.device)


def _view(values: np.ndarray) -> Tensor:
    """View an array as a tensor, which nothing may write to: arrays of a file are read-only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(values)


def _storage(tensors: Sequence[Tensor], device: torch.device) -> torch.device:
    """Return the device that holds ``tensors``: the CPU where they exceed half of a GPU's free memory."""
    if device.type != "cuda":
        return device
    size, free = sum(tensor.nbytes for tensor in tensors), torch.cuda.mem_get_info(device)[0]
    if size <= free / 2:
        return device
    log.info("sequences of %.1f GiB stay in host memory: %s has %.1f GiB free", size / 2**30, device, free / 2**30)
    return torch.device("cpu")
