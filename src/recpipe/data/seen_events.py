"""Record of the events that a model was trained on, per user, by which later events of a longer log are new.

U users, N events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences

COLUMNS = ("events", "last_timestamp", "events_at_last")


@dataclass(frozen=True)
class SeenEvents:
    """Number of training events of every user, the time of the last one, and how many of them have this time.

    An event of a longer log is new if it is later than the last one, or of the same time and behind as many as the
    model has seen. Without timestamps it is new behind the first ``events``. Earlier events that were not in the log
    before, such as those of an item that a k-core has taken in since, are not new.
    """

    users: Ids  # (U,)
    events: np.ndarray  # (U,) int64
    last_timestamp: np.ndarray | None  # (U,) int64 seconds
    events_at_last: np.ndarray | None  # (U,) int64

    @classmethod
    def of(cls, sequences: Sequences) -> SeenEvents:
        """Record ``sequences``, without users who have no event."""
        rows = np.flatnonzero(sequences.lengths > 0)
        users, lengths, times = sequences.users[rows], sequences.lengths[rows], sequences.timestamps
        if times is None:
            return cls(users, lengths, None, None)
        last = times[sequences.offsets[1:][rows] - 1]
        of_all = np.zeros(len(sequences), np.int64)
        of_all[rows] = last
        return cls(users, lengths, last, _counts(sequences, np.equal, of_all)[rows])

    def first_new(self, sequences: Sequences) -> np.ndarray:
        """Return the position (U,) of the first new event of every user of ``sequences``, the length if there is none.

        Raises ValueError where only one of the two has timestamps.
        """
        if (sequences.timestamps is None) != (self.last_timestamp is None):
            raise ValueError(
                "the model was trained on a log with timestamps and this one has none, or the other way round; train "
                "it again: `kedro run --pipelines=train`"
            )
        rows = sequences.users.index_in(self.users)
        known = rows >= 0
        if sequences.timestamps is None or self.last_timestamp is None or self.events_at_last is None:
            by_count: np.ndarray = np.minimum(np.where(known, self.events[rows], 0), sequences.lengths)
            return by_count
        if not len(self.users):
            return np.zeros(len(sequences), np.int64)
        before, equal = (_counts(sequences, test, self.last_timestamp[rows]) for test in (np.less, np.equal))
        first: np.ndarray = np.where(known, before + np.minimum(equal, self.events_at_last[rows]), 0)
        return first

    def to_table(self) -> pa.Table:
        """Convert to a table with a row per user."""
        columns = {"user_id": self.users.array}
        values = ((name, getattr(self, name)) for name in COLUMNS)
        return pa.table(columns | {name: pa.array(value) for name, value in values if value is not None})

    @classmethod
    def from_table(cls, table: pa.Table) -> SeenEvents:
        """Invert ``to_table``."""
        users = Ids(table["user_id"])
        last, count = (table[name].to_numpy() if name in table.column_names else None for name in COLUMNS[1:])
        return cls(users, table["events"].to_numpy(), last, count)


def _counts(sequences: Sequences, test: np.ufunc, moments: np.ndarray) -> np.ndarray:
    """Count the events of every user whose time passes ``test`` against the user's moment (U,)."""
    counts, start = np.zeros(len(sequences), np.int64), 0
    for part in sequences.parts():
        stop = start + len(part)
        mask = test(part.timestamps, np.repeat(moments[start:stop], part.lengths))
        counts[start:stop] = np.diff(np.concatenate([[0], np.cumsum(mask)])[part.offsets])
        start = stop
    return counts
