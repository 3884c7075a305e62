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
        return Batch(items, lengths, times)


class LengthBuckets:
    """Batches of users of like length whose padded size B × T stays within a token budget, in a new order each epoch.

    Iterating yields row numbers (B,). The order depends on ``seed`` and ``epoch`` only, so a resumed run repeats it.
    ``rank`` and ``world_size`` share the batches out among processes, an equal number to each.
    """

    POOL = 50  # batches per pool: rows are sorted by length inside a random pool, which keeps batches random

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
        self.lengths, self.tokens, self.seed, self.epoch = lengths, tokens, seed, 0
        self.rows = np.flatnonzero(lengths >= minimum)
        if len(self.rows) == 0:
            raise ValueError(
                f"no user has the {minimum} events that training needs; the longest sequence has {longest}"
            )
        self.rank, self.world_size = rank, world_size
        self._planned: tuple[int, list[np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self._plan())

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self._plan()

    def _plan(self) -> list[np.ndarray]:
        if self._planned is None or self._planned[0] != self.epoch:
            self._planned = (self.epoch, self._draw())
        return self._planned[1]

    def _draw(self) -> list[np.ndarray]:
        rng = np.random.default_rng([self.seed, self.epoch])
        rows = rng.permutation(self.rows)
        pool = max(int(self.POOL * self.tokens / max(self.lengths[rows].mean(), 1)), 1)
        batches: list[np.ndarray] = []
        for start in range(0, len(rows), pool):
            batches += in_buckets(self.lengths, rows[start : start + pool], self.tokens)
        batches = [batches[i] for i in rng.permutation(len(batches))]
        share = max(len(batches) // self.world_size, 1)
        return (
            [batches[(self.rank + i * self.world_size) % len(batches)] for i in range(share)]
            if self.world_size > 1
            else batches
        )


def in_buckets(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Sorts ``rows`` by length and cuts them where the padded size would exceed ``tokens``."""
    rows = rows[np.argsort(lengths[rows], kind="stable")][::-1]
    batches, start = [], 0
    while start < len(rows):
        count = max(tokens // max(int(lengths[rows[start]]), 1), 1)
        batches.append(rows[start : start + count].copy())
        start += count
    return batches
