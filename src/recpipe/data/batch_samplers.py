"""Batch samplers: which sequences make up a training step or a scoring batch, padded by length or packed into rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recpipe.data.batches import Batch, DeviceSequences

PLACES = 1 << 16  # of a part of a step: what is padded must not outgrow the memory of a GPU


class TrainingBatches:
    """Random users in every step, about ``tokens`` events together, cut into parts of like length to pad little.

    Iterating yields one step as a list of row arrays (B,): the loss of a step is over all its parts, so that a step
    is a random sample of users whatever their lengths. The order depends on ``seed`` and ``epoch`` only, so a
    resumed run repeats it. ``rank`` and ``world_size`` share the steps among processes, an equal number to each.
    ``steps`` of an epoch are as many as ``tokens`` ask for, or as given; ``parts`` of a step spare padding and cost
    launches.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        tokens: int,
        seed: int,
        minimum: int = 1,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
        parts: int = 8,
    ) -> None:
        longest = int(lengths.max(initial=0))
        if longest > tokens:
            raise ValueError(
                f"batch_tokens is {tokens}, less than one sequence of {longest} events; raise train.batch_tokens"
            )
        self.lengths, self.seed, self.epoch, self.parts = lengths, seed, 0, parts
        self.rows = np.flatnonzero(lengths >= minimum)
        if len(self.rows) == 0:
            raise ValueError(
                f"no user has the {minimum} events that training needs; the longest sequence has {longest}"
            )
        self.rank, self.world_size = rank, world_size
        wanted = steps or int(np.ceil(lengths[self.rows].sum() / tokens))
        self.steps = min(wanted, len(self.rows))

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

    def gather(self, data: DeviceSequences, part: np.ndarray) -> Batch:
        """One part of a step, on the device."""
        return data.batch(part)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        """``rows`` by length, cut into parts of about equally many events."""
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        events = np.cumsum(self.lengths[rows])
        longest = int(self.lengths[rows[0]])
        parts = max(self.parts, -(-len(rows) * longest // PLACES))
        part = np.minimum((events - 1) * parts // max(int(events[-1]), 1), parts - 1)
        return np.split(rows, np.flatnonzero(np.diff(part)) + 1)


def length_buckets(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Sorts ``rows`` by length and cuts them where the padded size would exceed ``tokens``."""
    rows = rows[np.argsort(lengths[rows], kind="stable")][::-1]
    batches, start = [], 0
    while start < len(rows):
        count = max(tokens // max(int(lengths[rows[start]]), 1), 1)
        batches.append(rows[start : start + count].copy())
        start += count
    return batches


@dataclass(frozen=True)
class PackedRows:
    """Where the users of a step stand; arrays (n,), in the order of the rows and in each from left to right."""

    users: np.ndarray
    row: np.ndarray  # 0, 1, …
    start: np.ndarray  # place of the first event in its row
    segment: np.ndarray  # 1, 2, … along a row
    width: int  # of the fullest row

    def __len__(self) -> int:
        return int(self.row[-1]) + 1


class PackedBatches(TrainingBatches):
    """The steps of ``TrainingBatches``, the same users in each, pack_rows into rows of at most ``size`` events.

    Users are never split. Raises ValueError where the longest does not fit a row.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        size: int,
        tokens: int,
        seed: int,
        minimum: int = 2,
        rank: int = 0,
        world_size: int = 1,
        steps: int | None = None,
    ) -> None:
        super().__init__(
            lengths,
            tokens=tokens,
            seed=seed,
            minimum=max(minimum, 2),
            rank=rank,
            world_size=world_size,
            steps=steps,
        )
        if (longest := int(lengths.max()) - 1) > size:
            raise ValueError(
                f"train.row is {size}, less than the {longest} events of one sequence; raise it, or leave it null"
            )
        self.size = size

    def _parts(self, rows: np.ndarray) -> list[PackedRows]:  # type: ignore[override]
        return [pack_rows(rows, self.lengths[rows] - 1, self.size)]

    def gather(self, data: DeviceSequences, part: PackedRows) -> Batch:  # type: ignore[override]
        return data.pack(part.users, part.row, part.start, part.segment, shape=(len(part), part.width))


def pack_rows(users: np.ndarray, lengths: np.ndarray, size: int) -> PackedRows:
    """``users`` (n,) of ``lengths`` (n,), each 1 to ``size``, in rows by first fit, the longest first.

    Users of one length take their places in the order in which they are given.
    """
    length, in_row = _places(lengths, size)
    chosen = np.empty(len(users), np.int64)
    chosen[np.argsort(-length, kind="stable")] = users[np.argsort(-lengths, kind="stable")]
    row = np.repeat(np.arange(len(in_row)), in_row)
    first = np.repeat(np.cumsum(in_row) - in_row, in_row)  # place in these arrays where the row begins
    start = np.cumsum(length) - length
    start -= start[first]
    return PackedRows(chosen, row, start, np.arange(len(users)) - first + 1, int((start + length).max()))


def _places(lengths: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The lengths (n,) row after row, and how many each row has.

    First fit with the longest first fills one row after the other with the longest that still fits. Only counts of
    lengths matter to that, so every mix is found once and used for as long as it lasts: the loop is over mixes, at
    most two for every length that occurs, whatever the number of users and rows.
    """
    counts = np.bincount(lengths, minlength=size + 1).tolist()
    there = np.unique(lengths).tolist()
    found, in_row = [], []
    while there:
        mix = _mix(there, counts, size)
        copies = min(counts[length] // taken for length, taken in mix)
        one = np.repeat(*np.array(mix).T)
        found.append(np.tile(one, copies))
        in_row += [len(one)] * copies
        for length, taken in mix:
            counts[length] -= taken * copies
            if not counts[length]:
                there.remove(length)
    return np.concatenate(found), np.array(in_row)


def _mix(there: list[int], counts: list[int], room: int) -> list[tuple[int, int]]:
    """One row as (length, how many), of the lengths ``there`` is something left of, ascending."""
    mix: list[tuple[int, int]] = []
    longest = room
    while (place := bisect_right(there, min(room, longest)) - 1) >= 0:
        length = there[place]
        taken = min(counts[length], room // length)
        mix.append((length, taken))
        room, longest = room - taken * length, length - 1
    return mix
