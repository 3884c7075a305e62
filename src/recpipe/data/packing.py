"""Packed training: users one after the other in rows of equal size, so that hardly any place is padding.

A row holds the events that are read, all but each user's last; the item that follows stands beside each of them.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from recpipe.data.batches import Batch, DeviceSequences, TrainingBatches


@dataclass(frozen=True)
class Rows:
    """Where the users of a step stand; arrays (n,), in the order of the rows and in each from left to right."""

    users: np.ndarray
    row: np.ndarray  # 0, 1, …
    start: np.ndarray  # place of the first event in its row
    segment: np.ndarray  # 1, 2, … along a row
    width: int  # of the fullest row

    def __len__(self) -> int:
        return int(self.row[-1]) + 1


class PackedBatches(TrainingBatches):
    """The steps of ``TrainingBatches``, the same users in each, laid into rows of at most ``size`` events.

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

    def _parts(self, rows: np.ndarray) -> list[Rows]:  # type: ignore[override]
        return [laid(rows, self.lengths[rows] - 1, self.size)]

    def gather(self, data: DeviceSequences, part: Rows) -> Batch:  # type: ignore[override]
        return data.packed(part.users, part.row, part.start, part.segment, shape=(len(part), part.width))


def laid(users: np.ndarray, lengths: np.ndarray, size: int) -> Rows:
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
    return Rows(chosen, row, start, np.arange(len(users)) - first + 1, int((start + length).max()))


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
