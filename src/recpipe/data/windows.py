"""Windows of sequences: rows of consecutive events as positions in the flat arrays, without a copy.

U users, N events, W windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from recpipe.data.sequences import Sequences, row_ranges


@dataclass(frozen=True)
class Windows:
    """Rows of events: those of window w are ``sequences.items[start[w]:stop[w]]``."""

    sequences: Sequences
    user: np.ndarray  # (W,) int64, row of the sequences
    start: np.ndarray  # (W,) int64
    stop: np.ndarray  # (W,) int64
    context: np.ndarray | None = None  # (W,) int64, number of first events that are inputs only, not targets

    @classmethod
    def of(cls, sequences: Sequences | Windows) -> Windows:
        """Make a window of all events of each user."""
        if isinstance(sequences, Windows):
            return sequences
        offsets = sequences.offsets
        return cls(sequences, np.arange(len(sequences)), offsets[:-1], offsets[1:], sequences.context)

    @classmethod
    def cut(cls, sequences: Sequences, n: int, stride: int | None = None) -> Windows:
        """Cut every user from the end into windows of at most ``n + 1`` events, ``stride`` (default n) apart.

        Every event except a user's first is a target once, after at most ``n`` events of input: the last ``stride``
        events of a window are its targets, those before are ``context``. A short stride gives longer inputs, at up to
        n / stride times the cost. Events that are ``context`` stay so.
        """
        stride = n if stride is None else min(stride, n)
        lengths = sequences.lengths
        count = np.maximum(-(-(lengths - 1) // stride), 1)
        user = np.repeat(np.arange(len(sequences)), count)
        nth = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
        stop = lengths[user] - nth * stride
        start = np.maximum(stop - n - 1, 0)
        context = None if stride == n else np.maximum(stop - start - stride, 1)
        if sequences.context is not None:
            earlier = np.clip(sequences.context[user] - start, 0, None)
            context = earlier if context is None else np.maximum(context, earlier)
        first = sequences.offsets[user]
        return cls(sequences, user, first + start, first + stop, context)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """Number of events per window (W,)."""
        lengths: np.ndarray = self.stop - self.start
        return lengths

    def select(self, rows: np.ndarray) -> Windows:
        """Select the windows ``rows`` (n,)."""
        context = None if self.context is None else self.context[rows]
        return Windows(self.sequences, self.user[rows], self.start[rows], self.stop[rows], context)

    def last(self, n: int) -> Windows:
        """Cut every window to its last ``n`` events."""
        start = np.maximum(self.start, self.stop - n)
        context = None if self.context is None else np.clip(self.context - (start - self.start), 0, None)
        return replace(self, start=start, context=context)

    def with_weights(self, weights: np.ndarray | None) -> Windows:
        """Replace the weights (N,) of the events of the sequences."""
        return replace(self, sequences=replace(self.sequences, weights=weights))

    def copy(self) -> Sequences:
        """Copy the events: a row per window."""
        first = self.sequences.offsets[self.user]
        rows = replace(self.sequences, context=None).select(self.user, self.start - first, self.stop - first)
        return replace(rows, context=self.context)

    def events(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield all events as (window, position in the flat arrays), both (n,) int64, in order and in chunks."""
        return _positions(self.start, self.stop)

    def targets(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the training targets as ``events`` does, both (n,).

        They are the events of ``is_target``, or all but the first event or the context of each window.
        """
        first = self.start + (1 if self.context is None else np.maximum(self.context, 1))
        for window, place in _positions(np.minimum(first, self.stop), self.stop):
            if self.sequences.is_target is None:
                yield window, place
            else:
                mask = self.sequences.is_target[place]
                yield window[mask], place[mask]

    def target_counts(self) -> np.ndarray:
        """Count the training targets of every window (W,) int64."""
        if self.sequences.is_target is None:
            context = 1 if self.context is None else np.maximum(self.context, 1)
            n_targets: np.ndarray = np.maximum(self.lengths - context, 0)
            return n_targets
        counts = np.zeros(len(self), np.int64)
        for window, _ in self.targets():
            counts += np.bincount(window, minlength=len(self))
        return counts


def _positions(start: np.ndarray, stop: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (row, position) of the ranges [start, stop), both (W,), in chunks of whole ranges."""
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    for row, until in row_ranges(offsets):
        owner = np.repeat(np.arange(row, until), np.diff(offsets[row : until + 1]))
        yield owner, np.arange(len(owner)) + (start - offsets[:-1])[owner] + offsets[row]
