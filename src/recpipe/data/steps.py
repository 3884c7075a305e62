"""Which rows a step of training, or a batch of scoring, is made of."""

from __future__ import annotations

from collections.abc import Iterator

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


def in_buckets(lengths: np.ndarray, rows: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Sorts ``rows`` by length and cuts them where the padded size would exceed ``tokens``."""
    rows = rows[np.argsort(lengths[rows], kind="stable")][::-1]
    batches, start = [], 0
    while start < len(rows):
        count = max(tokens // max(int(lengths[rows[start]]), 1), 1)
        batches.append(rows[start : start + count].copy())
        start += count
    return batches
