"""Histories of many users on disk, read in batches that end at user boundaries. U users, N events.

Three Parquet files, all in the order of the users: users (``user_id``, number of events and of candidates, profiles as
``user.<column>``), events (``item`` and what else there is of an event), candidates (``item``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.ids import Ids
from recpipe.data.sequence_files import PROFILE
from recpipe.data.sequences import Sequences

USERS, EVENTS, CANDIDATES = "users.parquet", "events.parquet", "candidates.parquet"
N_EVENTS, N_CANDIDATES = "events", "candidates"  # columns of the users
VALUES = {"timestamp": "timestamps", "rating": "ratings", "weight": "weights"}  # columns of events, fields of Sequences
EVENTS_AT_ONCE = 1 << 20
ROWS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class HistoryBatch:
    """Histories of consecutive users, and the candidates that some of them are restricted to."""

    sequences: Sequences
    has_candidates: np.ndarray  # (U,) bool; users without may get any item
    candidate_offsets: np.ndarray  # (U + 1,) int64
    candidate_items: np.ndarray  # (n,) int64, 1..I

    def __len__(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True)
class UserRange:
    """Consecutive users of stored histories, with the places of their first event and candidate."""

    first_user: int
    n_users: int
    first_event: int
    first_candidate: int


@dataclass(frozen=True)
class StoredHistories:
    """Histories in the files of ``folder``. unknown_*: what is left out, as the model does not know its items."""

    folder: Path
    n_users: int
    n_events: int
    unknown_events: int = 0
    unknown_candidates: int = 0

    def batches(self, users: int, *, events: int = EVENTS_AT_ONCE) -> Iterator[HistoryBatch]:
        """Yield batches of at most ``users`` users, and of at most ``events`` events unless a single user has more."""
        event_rows, candidate_rows = _Rows(self.folder / EVENTS), _Rows(self.folder / CANDIDATES)
        with pq.ParquetFile(self.folder / USERS) as file:
            for record in file.iter_batches(batch_size=users):
                table = pa.Table.from_batches([record])
                for start, stop in _event_bounds(table[N_EVENTS].to_numpy(), events):
                    yield _batch(table.slice(start, stop - start), event_rows, candidate_rows)

    def ranges(self, users: int, *, events: int = EVENTS_AT_ONCE) -> Iterator[UserRange]:
        """Yield the users of every batch of ``batches``, without their histories."""
        first_user = first_event = first_candidate = 0
        with pq.ParquetFile(self.folder / USERS) as file:
            names = [name for name in (N_EVENTS, N_CANDIDATES) if name in file.schema_arrow.names]
            for record in file.iter_batches(batch_size=users, columns=names):
                counts = [record[name].fill_null(0).to_numpy() for name in names]
                for start, stop in _event_bounds(counts[0], events):
                    yield UserRange(first_user, stop - start, first_event, first_candidate)
                    first_user += stop - start
                    first_event += int(counts[0][start:stop].sum())
                    first_candidate += int(counts[1][start:stop].sum()) if len(counts) > 1 else 0

    def read(self, users: UserRange) -> HistoryBatch:
        """Read the histories of some users."""
        table = _Rows(self.folder / USERS, users.first_user).table(users.n_users)
        events = _Rows(self.folder / EVENTS, users.first_event)
        return _batch(table, events, _Rows(self.folder / CANDIDATES, users.first_candidate))

    def user_ids_of(self, users: UserRange) -> Ids:
        """Read the ids of some users."""
        return Ids(_Rows(self.folder / USERS, users.first_user).table(users.n_users)["user_id"])

    def user_ids(self) -> Iterator[list[str]]:
        """Yield the ids of all users in order, in parts."""
        with pq.ParquetFile(self.folder / USERS) as file:
            for record in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=["user_id"]):
                yield record["user_id"].to_pylist()


class _Rows:
    """Rows of a Parquet file from ``first`` on, taken in portions of any size; without a file there are none."""

    def __init__(self, path: Path, first: int = 0) -> None:
        self._batches = self._read(path, first)
        self._rest: pa.Table | None = next(self._batches, None)

    @staticmethod
    def _read(path: Path, first: int) -> Iterator[pa.Table]:
        if path.is_file():
            with pq.ParquetFile(path) as file:
                yield file.schema_arrow.empty_table()
                ends = np.cumsum([file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)])
                groups = [n for n, end in enumerate(ends) if end > first]
                skip = first - (int(ends[groups[0] - 1]) if groups and groups[0] else 0)
                for record in file.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups):
                    yield pa.Table.from_batches([record]).slice(skip)
                    skip = max(skip - len(record), 0)

    def take(self, n: int) -> dict[str, np.ndarray]:
        """Take the next ``n`` rows as arrays by column."""
        if self._rest is None:
            return {"item": np.zeros(0, np.int32)}
        table = self.table(n)
        return {name: table[name].to_numpy() for name in table.column_names}

    def table(self, n: int) -> pa.Table:
        """Take the next ``n`` rows of a file that exists."""
        assert self._rest is not None
        parts, length = [self._rest], len(self._rest)
        while length < n:
            parts.append(next(self._batches))
            length += len(parts[-1])
        table = pa.concat_tables(parts)
        self._rest = table.slice(n)
        return table.slice(0, n)


def _event_bounds(counts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of consecutive users with at most ``limit`` events, or of a single user with more."""
    ends = np.cumsum(counts)
    start = 0
    while start < len(counts):
        before = ends[start - 1] if start else 0
        stop = max(int(np.searchsorted(ends, before + limit, side="right")), start + 1)
        yield start, stop
        start = stop


def _batch(users: pa.Table, event_rows: _Rows, candidate_rows: _Rows) -> HistoryBatch:
    offsets = _offsets(users[N_EVENTS].to_numpy())
    events = event_rows.take(int(offsets[-1]))
    counts = users[N_CANDIDATES] if N_CANDIDATES in users.column_names else pa.chunked_array([pa.nulls(len(users))])
    candidate_offsets = _offsets(counts.cast(pa.int64()).fill_null(0).to_numpy())
    profiles = [name for name in users.column_names if name.startswith(PROFILE)]
    values: dict[str, Any] = {field: events[name] for name, field in VALUES.items() if name in events}
    sequences = Sequences(
        Ids(users["user_id"]),
        events["item"],
        values.pop("timestamps", None),
        offsets,
        profiles={name.removeprefix(PROFILE): users[name].combine_chunks() for name in profiles},
        **values,
    )
    return HistoryBatch(
        sequences,
        counts.is_valid().to_numpy(),
        candidate_offsets,
        candidate_rows.take(int(candidate_offsets[-1]))["item"].astype(np.int64),
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
