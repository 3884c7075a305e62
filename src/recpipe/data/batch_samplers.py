"""Batch samplers: which sequences form a training step or a scoring batch, padded by length or packed into rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recpipe.data.batches import Batch, DeviceSequences

MAX_PADDED_SIZE = 1 << 16  # positions of a part of a step, so that padding fits the memory of a GPU


@dataclass(frozen=True)
class Share:
    """Which parts of every step a process trains: those of ``rank`` among ``ranks``, in ``accumulate`` micro-batches.

    The users of a step are the same for all values; so a step has the same gradient however it is shared.
    """

    rank: int = 0
    ranks: int = 1
    accumulate: int = 1

    @property
    def cells(self) -> int:
        """Micro-batches of a step on all ranks."""
        return self.ranks * self.accumulate

    def of(self, places: np.ndarray) -> list[np.ndarray]:
        """Deal out the numbers ``places`` (n,), of decreasing cost; return this rank's, per micro-batch."""
        turn, cell = np.divmod(np.arange(len(places)), self.cells)
        cell = np.where(turn % 2, self.cells - 1 - cell, cell)  # to and fro, so that sums of costs are alike
        return [places[cell == micro * self.ranks + self.rank] for micro in range(self.accumulate)]


class TrainingBatches:
    """Steps of random users with about ``tokens`` events, each cut into parts of similar length to reduce padding.

    Iteration yields the micro-batches of ``share``, by default a step each, as lists of user rows (B,); with several
    ranks a list may be empty. The order depends on ``seed`` and ``epoch`` only, so a resumed run repeats it. More
    ``parts`` mean less padding and more kernel launches; there is at least one per micro-batch. Raises ValueError if a
    sequence exceeds ``tokens`` or no user has ``minimum`` events.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        tokens: int,
        seed: int,
        minimum: int = 1,
        steps: int | None = None,
        parts: int = 8,
        share: Share | None = None,
    ) -> None:
        longest = int(lengths.max(initial=0))
        if longest > tokens:
            raise ValueError(
                f"batch_tokens is {tokens}, less than one sequence of {longest} events; raise train.batch_tokens"
            )
        self.lengths, self.seed, self.epoch, self.parts = lengths, seed, 0, parts
        self.share = share or Share()
        self.rows = np.flatnonzero(lengths >= minimum)
        if len(self.rows) == 0:
            raise ValueError(
                f"no user has the {minimum} events that training needs; the longest sequence has {longest}"
            )
        self.steps = min(steps or int(np.ceil(lengths[self.rows].sum() / tokens)), len(self.rows))

    def __len__(self) -> int:
        return self.steps * self.share.accumulate

    def __iter__(self) -> Iterator[list[np.ndarray]]:
        for users in self.step_users():
            yield from self.micro_batches(users)

    def step_users(self) -> Iterator[np.ndarray]:
        """Yield the users (n,) of each step of the epoch, on all ranks together."""
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)
        events = np.cumsum(self.lengths[rows])
        ends = np.searchsorted(events, events[-1] * np.arange(1, self.steps + 1) / self.steps - 0.5) + 1
        place = np.arange(self.steps)  # no step is empty, however long a single row is
        ends = np.clip(np.maximum.accumulate(ends - place) + place, None, len(rows) - place[::-1])
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            yield rows[start:end]

    def micro_batches(self, users: np.ndarray) -> list[list[np.ndarray]]:
        """Return this rank's parts of a step, a list per micro-batch."""
        parts = self._parts(users)
        return [[parts[place] for place in places] for places in self.share.of(np.arange(len(parts)))]

    def gather(self, data: DeviceSequences, part: np.ndarray) -> Batch:
        """Gather a part of a step on the device."""
        return data.batch(part)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """Sort ``rows`` by length and cut them into parts with about the same number of events."""
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        events = np.cumsum(self.lengths[rows])
        parts = max(self.parts, -(-len(rows) * int(self.lengths[rows[0]]) // MAX_PADDED_SIZE))
        parts = -(-parts // self.share.cells) * self.share.cells
        part = np.minimum((events - 1) * parts // max(int(events[-1]), 1), parts - 1)
        return np.split(rows, np.flatnonzero(np.diff(part)) + 1)


@dataclass(frozen=True)
class PackedRows:
    """Positions of the users of a step in packed rows; arrays (n,), by row and in each from left to right."""

    users: np.ndarray
    row: np.ndarray  # 0, 1, …
    start: np.ndarray  # position of the first event in its row
    stop: np.ndarray  # position after the last event
    segment: np.ndarray  # 1, 2, … along a row

    @property
    def width(self) -> int:
        """Events of the fullest row."""
        return int(self.stop.max())

    def __len__(self) -> int:
        return int(self.row[-1]) + 1

    def select(self, rows: np.ndarray) -> PackedRows:
        """Select rows by ascending number."""
        place = np.searchsorted(rows, self.row)
        mask = rows[np.minimum(place, len(rows) - 1)] == self.row
        return PackedRows(self.users[mask], place[mask], self.start[mask], self.stop[mask], self.segment[mask])


class PackedBatches(TrainingBatches):
    """The steps of ``TrainingBatches`` with the same users, packed into rows of at most ``size`` events.

    A row contains all but the last event of its users; the next item of every event is stored beside it. Users are not
    split. ``lengths`` (U,) are events per user. Raises ValueError if the longest does not fit a row.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        size: int,
        tokens: int,
        seed: int,
        minimum: int = 2,
        steps: int | None = None,
        share: Share | None = None,
    ) -> None:
        super().__init__(lengths, tokens=tokens, seed=seed, minimum=max(minimum, 2), steps=steps, share=share)
        if (longest := int(lengths.max()) - 1) > size:
            raise ValueError(
                f"train.row is {size}, less than the {longest} events of one sequence; raise it, or leave it null"
            )
        self.size = size

    def micro_batches(self, users: np.ndarray) -> list[list[PackedRows]]:  # type: ignore[override]
        """Pack a step of ``users`` (n,) into rows, and return this rank's rows as one part per micro-batch."""
        packed = pack_rows(users, self.lengths[users] - 1, self.size)
        if self.share.cells == 1:
            return [[packed]]
        shares = self.share.of(np.arange(len(packed)))
        return [[packed.select(np.sort(rows))] if len(rows) else [] for rows in shares]

    def gather(self, data: DeviceSequences, part: PackedRows) -> Batch:  # type: ignore[override]
        """Assemble a part as a batch of packed rows (R, W) on the device of ``data``."""
        return data.pack(part.users, part.row, part.start, part.segment, shape=(len(part), part.width))


def length_buckets(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Sort ``rows`` (n,) by length, longest first, and cut them where the padded size would exceed ``tokens``.

    ``lengths`` (U,) are events per user; each bucket is an array (m,) of rows.
    """
    rows = rows[np.argsort(lengths[rows], kind="stable")][::-1]
    batches = []
    while len(rows):
        count = max(tokens // max(int(lengths[rows[0]]), 1), 1)
        batches.append(rows[:count].copy())
        rows = rows[count:]
    return batches


def pack_rows(users: np.ndarray, lengths: np.ndarray, size: int) -> PackedRows:
    """Pack ``users`` (n,) of ``lengths`` (n,), each 1 to ``size``, by first-fit decreasing, stable in their order."""
    length, row_counts = _first_fit(lengths, size)
    packed = np.empty(len(users), np.int64)
    packed[np.argsort(-length, kind="stable")] = users[np.argsort(-lengths, kind="stable")]
    row = np.repeat(np.arange(len(row_counts)), row_counts)
    first = np.repeat(np.cumsum(row_counts) - row_counts, row_counts)  # index of the first user of the row
    start = np.cumsum(length) - length
    start -= start[first]
    return PackedRows(packed, row, start, start + length, np.arange(len(users)) - first + 1)


def _first_fit(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths (n,) row after row, and the number of users per row.

    First-fit decreasing fills one row after the other with the longest length that still fits. It depends only on the
    counts of lengths, so the composition of a row is repeated as long as the counts allow: the loop runs at most twice
    per distinct length, whatever the number of users and rows.
    """
    counts = np.bincount(lengths, minlength=size + 1).tolist()
    remaining = np.unique(lengths).tolist()
    packed, row_counts = [], []
    while remaining:
        row = _fill_row(remaining, counts, size)
        copies = min(counts[length] // count for length, count in row)
        row_lengths = np.repeat(*np.array(row).T)
        packed.append(np.tile(row_lengths, copies))
        row_counts += [len(row_lengths)] * copies
        for length, count in row:
            counts[length] -= count * copies
            if not counts[length]:
                remaining.remove(length)
    return np.concatenate(packed), np.array(row_counts)


def _fill_row(remaining: list[int], counts: list[int], room: int) -> list[tuple[int, int]]:
    """Fill one row: (length, count) pairs from the ascending ``remaining`` lengths and their ``counts``."""
    row: list[tuple[int, int]] = []
    longest = room
    while (index := bisect_right(remaining, min(room, longest)) - 1) >= 0:
        length = remaining[index]
        count = min(counts[length], room // length)
        row.append((length, count))
        room, longest = room - count * length, length - 1
    return row
