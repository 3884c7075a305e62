"""Batches assembled on the device by indexing flat values. B batch, T time, N events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recpipe.data.sequences import Sequences


@dataclass(frozen=True)
class Batch:
    """Right-padded events, oldest first; a causal model needs no mask, since padding comes after what it reads."""

    items: Tensor  # (B, T) int64, 0 is padding
    lengths: Tensor  # (B,) int64, each >= 0
    timestamps: Tensor | None  # (B, T) int64 seconds, 0 at padding
    targets: int = 0  # events with a predecessor in their row: the weight of this part in a step's loss

    @property
    def mask(self) -> Tensor:
        """True where there is an event (B, T)."""
        return torch.arange(self.items.shape[1], device=self.items.device) < self.lengths[:, None]


class DeviceSequences:
    """Flat sequences held on ``device``; ``batch`` gathers rows from them there.

    ``window`` keeps each user's last events only (what training and scoring look at).
    """

    def __init__(self, sequences: Sequences, *, window: int, device: torch.device | str) -> None:
        self.lengths = np.minimum(sequences.lengths, window)
        self.device = torch.device(device)
        self._stop = torch.from_numpy(sequences.offsets[1:].copy()).to(device)
        self._lengths = torch.from_numpy(self.lengths).to(device)
        self._items = torch.from_numpy(sequences.items.astype(np.int64)).to(device)
        times = sequences.timestamps
        self._times = None if times is None else torch.from_numpy(times.copy()).to(device)

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
        return Batch(items, lengths, times, int((self.lengths[rows] - 1).clip(0).sum()))


class TrainingBatches:
    """Random users in every step, about ``tokens`` events together, cut into parts of like length to pad little.

    Iterating yields one step as a list of row arrays (B,): the loss of a step is over all its parts, so that a step
    is a random sample of users whatever their lengths. The order depends on ``seed`` and ``epoch`` only, so a
    resumed run repeats it. ``rank`` and ``world_size`` share the steps among processes, an equal number to each.
    """

    PARTS = 8

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        tokens: int,
        seed: int,
        minimum: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        longest = int(lengths.max(initial=0))
        if longest > tokens:
            raise ValueError(
                f"batch_tokens is {tokens}, less than one sequence of {longest} events; raise train.batch_tokens"
            )
        self.lengths, self.seed, self.epoch = lengths, seed, 0
        self.rows = np.flatnonzero(lengths >= minimum)
        if len(self.rows) == 0:
            raise ValueError(
                f"no user has the {minimum} events that training needs; the longest sequence has {longest}"
            )
        self.rank, self.world_size = rank, world_size
        self.steps = min(int(np.ceil(lengths[self.rows].sum() / tokens)), len(self.rows))

    def __len__(self) -> int:
        """Steps of an epoch for this process."""
        return max(self.steps // self.world_size, 1)

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        events = np.cumsum(self.lengths[rows])
        ends = np.searchsorted(events, events[-1] * np.arange(1, self.steps + 1) / self.steps - 0.5) + 1
        place = np.arange(self.steps)  # no step is empty, however long a single row is
        ends = np.clip(np.maximum.accumulate(ends - place) + place, None, len(rows) - place[::-1])
        starts = np.concatenate([[0], ends[:-1]])
        for i in range(len(self)):
            step = (self.rank + i * self.world_size) % self.steps
            yield self._parts(rows[starts[step] : ends[step]])

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """``rows`` by length, cut into parts of about equally many events."""
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        events = np.cumsum(self.lengths[rows])
        part = np.minimum((events - 1) * self.PARTS // max(int(events[-1]), 1), self.PARTS - 1)
        return np.split(rows, np.flatnonzero(np.diff(part)) + 1)


def in_buckets(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Sorts ``rows`` by length and cuts them where the padded size would exceed ``tokens``."""
    rows = rows[np.argsort(lengths[rows], kind="stable")][::-1]
    batches, start = [], 0
    while start < len(rows):
        count = max(tokens // max(int(lengths[rows[start]]), 1), 1)
        batches.append(rows[start : start + count].copy())
        start += count
    return batches
