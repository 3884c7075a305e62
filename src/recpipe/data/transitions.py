"""Transitions of training sequences: pairs of consecutive items of a user. Shapes: I items, P distinct pairs, N pairs.

A test target is memorised where the training data have the transition from the last item of the history to it;
otherwise it needs generalisation. Ding et al. 2026 (arXiv 2603.19809), with transitions of one step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recpipe.data.sequences import Fold, Sequences

ITEM_BITS = 32  # of a key: the first item stands above the bits of the second


def last_items(histories: Sequences) -> np.ndarray:
    """Return the last item of each history (U,) int64, 0 for an empty one."""
    last, lengths = np.zeros(len(histories), np.int64), histories.lengths
    last[lengths > 0] = histories.items[histories.offsets[1:][lengths > 0] - 1]
    return last


def consecutive_items(train: Sequences) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """Yield the transitions of some users at a time: first and second items, both (N,), and weights of the second.

    Weights are None where events have none.
    """
    for part in train.parts():
        ends = part.offsets[(part.offsets > 0) & (part.offsets < len(part.items))]
        is_pair = np.ones(max(len(part.items) - 1, 0), bool)
        is_pair[ends - 1] = False  # from one user to the next
        weights = None if part.weights is None else part.weights[1:][is_pair]
        yield part.items[:-1][is_pair], part.items[1:][is_pair], weights


def transition_seen(train: Sequences, fold: Fold) -> np.ndarray:
    """Mark the targets (N,) that follow the last item of their history somewhere in ``train``.

    Targets of users without history are not marked. Memory is for the targets and one part of ``train`` at a time.
    """
    before = np.repeat(last_items(fold.histories), fold.targets.lengths)
    keys, inverse = np.unique(_keys(before, fold.targets.items), return_inverse=True)
    seen = np.zeros(len(keys), bool)
    for part in _parts(train):
        seen |= Transitions(part).contains_keys(keys)
    return np.asarray(seen[inverse], bool)


@dataclass(frozen=True)
class Transitions:
    """All distinct transitions of training sequences, for look-ups."""

    keys: np.ndarray  # (P,) int64, sorted

    @classmethod
    def of(cls, train: Sequences) -> Transitions:
        """Collect the transitions; 8 bytes for each distinct one, and about as much again while parts are merged."""
        keys, pending = np.zeros(0, np.int64), [np.zeros(0, np.int64)]
        for part in _parts(train):
            pending.append(part)
            if sum(map(len, pending)) > len(keys):  # so that a key is merged a logarithmic number of times
                keys, pending = _sorted_distinct(np.concatenate([keys, *pending])), []
        return cls(_sorted_distinct(np.concatenate([keys, *pending])))

    def __len__(self) -> int:
        return len(self.keys)

    def contains(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return a mask of the pairs (first, second), of any equal shape, that are transitions."""
        return self.contains_keys(_keys(first, second))

    def contains_keys(self, keys: np.ndarray) -> np.ndarray:
        """Return a mask of the ``keys``, of any shape, that are transitions."""
        if not len(self):
            return np.zeros(keys.shape, bool)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self) - 1)
        return np.asarray(self.keys[place] == keys)

    def successors(self, items: np.ndarray) -> np.ndarray:
        """Count the distinct items that follow each of ``items`` (n,)."""
        first = np.asarray(items, np.int64)
        start, stop = (np.searchsorted(self.keys, each << ITEM_BITS) for each in (first, first + 1))
        return np.asarray(stop - start, np.int64)


def _keys(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.asarray(first, np.int64) << ITEM_BITS | np.asarray(second, np.int64)


def _parts(train: Sequences) -> Iterator[np.ndarray]:
    """Yield the sorted distinct keys of the transitions of some users at a time."""
    for first, second, _ in consecutive_items(train):
        yield _sorted_distinct(_keys(first, second))


def _sorted_distinct(keys: np.ndarray) -> np.ndarray:
    """Sort ``keys`` (n,) in place and return the distinct ones, much faster than the hash table of np.unique."""
    keys.sort()
    is_first = np.ones(len(keys), bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:])
    return keys[is_first]
