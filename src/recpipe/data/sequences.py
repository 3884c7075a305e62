"""Interactions as per-user sequences, stored as flat values and offsets. U users, N events, I items."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.data.features import align_rows
from recpipe.data.ids import Ids
from recpipe.data.protocol import Protocol
from recpipe.data.sequence_files import (
    HINT,
    PROFILE,
    TARGETS,
    SourceFile,
    list_column,
    list_offsets,
    list_values,
    read_batch,
    write_batch,
)

EVENTS_AT_ONCE = 1 << 22  # of chunks: what is computed per event takes a bounded amount of memory
EVENT_COLUMNS = ("timestamps", "ratings", "weights", "is_target")  # fields of Sequences per event, besides items


@dataclass(frozen=True)
class Vocabulary:
    """The catalogue: item index i (1-based; 0 is padding) has the external id ``ids[i - 1]``."""

    ids: np.ndarray  # (I,) of str

    def __len__(self) -> int:
        return len(self.ids)

    def encode(self, ids: list[str] | np.ndarray) -> np.ndarray:
        """Convert external ids (n,) to int32 indices (n,), 0 for unknown ids."""
        index = pa.compute.index_in(pa.array(ids, pa.string()), value_set=pa.array(self.ids, pa.string()))
        place: np.ndarray = index.fill_null(-1).to_numpy(zero_copy_only=False)
        return (place + 1).astype(np.int32)

    def write(self, path: Path) -> None:
        """Write a Parquet file with the column ``item_id``."""
        with atomic_file(path) as temporary:
            pq.write_table(pa.table({"item_id": pa.array(self.ids, pa.string())}), temporary, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Vocabulary:
        """Read a file of ``write``."""
        return cls(np.array(pq.read_table(verified(path, HINT))["item_id"].to_pylist(), dtype=object))


@dataclass(frozen=True)
class Sequences:
    """Events of all users in time order; those of user u are ``items[offsets[u]:offsets[u + 1]]``.

    Arrays of a file are read-only views of it. ``users`` may be given as an array or list of str.
    """

    users: Ids  # (U,) external ids
    items: np.ndarray  # (N,) int32, 1-based
    timestamps: np.ndarray | None  # (N,) int64 seconds, None where the source has only an order
    offsets: np.ndarray  # (U + 1,) int64
    ratings: np.ndarray | None = None  # (N,) float32, NaN where missing
    profiles: Mapping[str, pa.Array] = field(default_factory=dict)  # user columns, each (U,)
    query_times: np.ndarray | None = None  # (U,) int64 seconds, time of the query where the protocol allows it
    context: np.ndarray | None = None  # (U,) int64, number of first events that are inputs only, not targets
    weights: np.ndarray | None = None  # (N,) float32, at least 0: how much an event counts in training
    is_target: np.ndarray | None = None  # (N,) bool, events of a type in protocol.target_events; None: all
    file: SourceFile | None = field(default=None, init=False, repr=False, compare=False)  # that has the same content

    def __post_init__(self) -> None:
        if not isinstance(self.users, Ids):
            object.__setattr__(self, "users", Ids(self.users))

    def __len__(self) -> int:
        return len(self.users)

    @property
    def lengths(self) -> np.ndarray:
        """Number of events per user (U,)."""
        return np.diff(self.offsets)

    def row(self, user: int) -> np.ndarray:
        """Return the item indices (n,) of one user, oldest first."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]

    def slice(self, start: int, stop: int) -> Sequences:
        """View the consecutive users [start, stop) with all their events."""
        first, last = self.offsets[start], self.offsets[stop]
        events = {name: getattr(self, name) for name in ("items", *EVENT_COLUMNS)}
        of_users = {name: getattr(self, name) for name in ("query_times", "context")}
        return replace(
            self,
            users=self.users[start:stop],
            offsets=self.offsets[start : stop + 1] - first,
            profiles={name: column.slice(start, stop - start) for name, column in self.profiles.items()},
            **{name: values[first:last] for name, values in events.items() if values is not None},
            **{name: values[start:stop] for name, values in of_users.items() if values is not None},
        )

    def parts(self) -> Iterator[Sequences]:
        """Yield views of consecutive users, at least one, with at most ``EVENTS_AT_ONCE`` events or of one user."""
        if not len(self):
            yield self
        for start, stop in row_ranges(self.offsets):
            yield self.slice(start, stop)

    @classmethod
    def concatenate(cls, parts: list[Sequences]) -> Sequences:
        """Join the users of ``parts``, which have the same columns."""
        if len(parts) == 1:
            return parts[0]

        def join(name: str) -> np.ndarray | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else np.concatenate(values)

        columns: dict[str, Any] = {name: join(name) for name in (*EVENT_COLUMNS, "items", "query_times", "context")}
        return cls(
            Ids.concatenate(*(part.users for part in parts)),
            offsets=np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))]).astype(np.int64),
            profiles={name: pa.concat_arrays([part.profiles[name] for part in parts]) for name in parts[0].profiles},
            **columns,
        )

    def select(self, rows: np.ndarray, start: np.ndarray, stop: np.ndarray) -> Sequences:
        """Copy the users ``rows`` (n,), each cut to its positions [start, stop)."""
        lengths = np.maximum(stop - start, 0)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        first = self.offsets[rows] + start
        index = np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
        return Sequences(
            self.users[rows],
            self.items[index],
            None if self.timestamps is None else self.timestamps[index],
            offsets,
            None if self.ratings is None else self.ratings[index],
            {name: column.take(pa.array(rows)) for name, column in self.profiles.items()},
            None if self.query_times is None else self.query_times[rows],
            None if self.context is None else np.clip(self.context[rows] - start, 0, None),
            None if self.weights is None else self.weights[index],
            None if self.is_target is None else self.is_target[index],
        )

    def select_users(self, rows: np.ndarray) -> Sequences:
        """Copy the users ``rows`` (n,) with all their events."""
        return self.select(rows, np.zeros(len(rows), np.int64), self.lengths[rows])

    def events(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return all events of the users ``rows`` as (position in ``rows``, item), both (n,) int64."""
        selection = self.select_users(rows)
        return np.repeat(np.arange(len(rows)), selection.lengths), selection.items.astype(np.int64)

    def with_profiles(self, users: pa.Table) -> Sequences:
        """Add the columns of ``users``, a table with ``user_id``, as profiles; null for users it does not contain."""
        table = align_rows(users, "user_id", self.users)
        columns = [name for name in table.column_names if name != "user_id"]
        return replace(self, profiles={name: table[name].combine_chunks() for name in columns})

    def last(self, n: int) -> Sequences:
        """Select the last ``n`` events of every user."""
        lengths = self.lengths
        return self.select(np.arange(len(self)), np.maximum(lengths - n, 0), lengths)

    def target_counts(self) -> np.ndarray:
        """Count the events of ``is_target`` of every user (U,)."""
        if self.is_target is None:
            return self.lengths
        return np.diff(np.concatenate([[0], np.cumsum(self.is_target)])[self.offsets])

    def target_positions(self, nth: np.ndarray) -> np.ndarray:
        """Return the position (U,) of the ``nth`` (U,) last event of ``is_target``, the length for 0 or too many."""
        lengths, counts = self.lengths, self.target_counts()
        if self.is_target is None:
            return np.where(nth <= counts, lengths - nth, lengths)
        exists = (nth > 0) & (nth <= counts)
        places = np.flatnonzero(self.is_target)[(np.cumsum(counts) - nth)[exists]]
        positions = lengths.copy()
        positions[exists] = places - self.offsets[:-1][exists]
        return positions

    def fingerprint(self) -> str:
        """Hash users, item indices, times and order, without external item ids, to twelve hex digits."""
        digest = hashlib.sha256()
        for part in (self.offsets, self.items, self.timestamps):
            digest.update(b"-" if part is None else np.ascontiguousarray(part).data)
        for n, ids in enumerate(self.users.parts()):
            digest.update(("\0" * (n > 0) + "\0".join(ids.tolist())).encode())
        if self.is_target is not None:
            digest.update(np.ascontiguousarray(self.is_target).data)
        return digest.hexdigest()[:12]

    def to_batch(self, prefix: str = "") -> pa.RecordBatch:
        """Convert to a row per user: ``user_id``, lists of event values, profiles as ``user.<column>``; no copies."""
        columns = {"user_id": self.users.array, f"{prefix}items": list_column(self.offsets, self.items)}
        for name in EVENT_COLUMNS:
            if (values := getattr(self, name)) is not None:
                columns[f"{prefix}{name}"] = list_column(self.offsets, values)
        profiles = {f"{PROFILE}{name}": column for name, column in self.profiles.items()}
        return pa.RecordBatch.from_pydict(columns | profiles)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch, prefix: str = "") -> Sequences:
        """Invert ``to_batch``."""
        names = [name for name in EVENT_COLUMNS if f"{prefix}{name}" in batch.schema.names]
        profiles = [name for name in batch.schema.names if name.startswith(PROFILE) and not prefix]
        events: dict[str, Any] = {name: list_values(batch, f"{prefix}{name}") for name in names}
        return cls(
            Ids(batch["user_id"]),
            list_values(batch, f"{prefix}items"),
            events.pop("timestamps", None),
            list_offsets(batch, f"{prefix}items"),
            profiles={name.removeprefix(PROFILE): batch[name] for name in profiles},
            **events,
        )

    def write(self, path: Path) -> None:
        """Write an Arrow file with a row per user; what was read from a file is linked or copied."""
        if self.file is None or not self.file.link(path):
            write_batch(self.to_batch(), path)

    @classmethod
    def read(cls, path: Path, *, check: bool = True) -> Sequences:
        """Map a file of ``write`` into memory. Raises the errors of ``read_batch``, which also explains ``check``."""
        sequences = cls.from_batch(read_batch(path, ["user_id", "items"], check=check))
        object.__setattr__(sequences, "file", SourceFile.of(path))
        return sequences


@dataclass(frozen=True)
class Fold:
    """Histories and targets of the same users, in the same order."""

    histories: Sequences
    targets: Sequences
    file: SourceFile | None = field(default=None, init=False, repr=False, compare=False)  # that has the same content

    def __len__(self) -> int:
        return len(self.histories)

    @classmethod
    def concatenate(cls, parts: list[Fold]) -> Fold:
        """Join the users of ``parts``, which have the same columns."""
        histories, targets = [part.histories for part in parts], [part.targets for part in parts]
        return cls(Sequences.concatenate(histories), Sequences.concatenate(targets))

    def select(self, rows: np.ndarray) -> Fold:
        """Select the users ``rows`` (n,)."""
        return Fold(self.histories.select_users(rows), self.targets.select_users(rows))

    def fingerprint(self) -> str:
        """Hash histories and targets, as ``Sequences.fingerprint``, to 24 hex digits."""
        return self.histories.fingerprint() + self.targets.fingerprint()

    def seen_targets(self) -> np.ndarray:
        """Mark the targets (N,) that are in the user's own history."""
        parts = [self.histories.slice(*rows) for rows in row_ranges(self.histories.offsets)]
        targets = [self.targets.slice(*rows) for rows in row_ranges(self.histories.offsets)]
        return np.concatenate([np.zeros(0, bool), *map(_seen_targets, parts, targets)])

    def with_query_times(self, protocol: Protocol) -> Fold:
        """Set query times to those of first targets, None unless ``protocol.time`` is query.

        Raises ValueError if ``protocol.time`` is query and the data set has no timestamps.
        """
        if protocol.time != "query":
            return replace(self, histories=replace(self.histories, query_times=None))
        times = self.targets.timestamps
        if times is None:
            raise ValueError(
                "protocol.time is query and this data set has no timestamps; use --params protocol.time=none"
            )
        return replace(self, histories=replace(self.histories, query_times=times[self.targets.offsets[:-1]]))

    def write(self, path: Path) -> None:
        """Write an Arrow file with history and target columns side by side; one that was read is linked or copied."""
        if self.file is not None and self.file.link(path):
            return
        histories, targets = self.histories.to_batch(), replace(self.targets, profiles={}).to_batch(TARGETS)
        columns = dict(zip(histories.schema.names, histories.columns, strict=True))
        columns |= dict(zip(targets.schema.names, targets.columns, strict=True))
        write_batch(pa.RecordBatch.from_pydict(columns), path)

    @classmethod
    def read(cls, path: Path, *, check: bool = True) -> Fold:
        """Map a file of ``write`` into memory. Raises the errors of ``read_batch``, which also explains ``check``."""
        batch = read_batch(path, ["user_id", "items", f"{TARGETS}items"], check=check)
        fold = cls(Sequences.from_batch(batch), Sequences.from_batch(batch, TARGETS))
        object.__setattr__(fold, "file", SourceFile.of(path))
        return fold


def _seen_targets(histories: Sequences, targets: Sequences) -> np.ndarray:
    """Mark the targets (N,) that are in the history of the same row."""
    if (targets.lengths == 1).all():
        is_seen = np.zeros(len(targets), bool)
        places = np.flatnonzero(np.repeat(targets.items, histories.lengths) == histories.items)
        is_seen[np.searchsorted(histories.offsets, places, side="right") - 1] = True
        return is_seen
    pairs, events = (np.repeat(np.arange(len(part)), part.lengths) << 32 | part.items for part in (targets, histories))
    ordered = np.sort(pairs)
    place = np.searchsorted(ordered, events)  # events are in the order of users, which makes this fast
    is_seen = np.zeros(len(ordered) + 1, bool)
    is_seen[place[np.append(ordered, -1)[place] == events]] = True
    seen: np.ndarray = is_seen[np.searchsorted(ordered, pairs)]
    return seen


def row_ranges(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges (start, stop) of rows with at most ``EVENTS_AT_ONCE`` events, or of one row.

    ``offsets`` (U + 1,) are those of a ``Sequences``.
    """
    start = 0
    while start < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[start] + EVENTS_AT_ONCE, side="right")) - 1
        stop = max(stop, start + 1)
        yield start, stop
        start = stop


def count_items(items: np.ndarray, n_items: int) -> np.ndarray:
    """Count the events of every item (I + 1,) int64 in ``items`` (N,), in chunks: ``bincount`` casts to int64."""
    counts = np.zeros(n_items + 1, np.int64)
    for start in range(0, len(items), EVENTS_AT_ONCE):
        counts += np.bincount(items[start : start + EVENTS_AT_ONCE], minlength=n_items + 1)
    return counts
