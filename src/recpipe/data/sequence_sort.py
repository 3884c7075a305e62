"""Sequences of a log larger than memory: DuckDB numbers and sorts the events, flat files take them. N events, U users.

A file is deleted once it is mapped into memory: its space is free again with the last array that views it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO

import ibis
import numpy as np
import pyarrow as pa

from recpipe.data.atomic import temporary_path
from recpipe.data.engines import connect, engine_errors
from recpipe.data.files.tables import count_rows, file_list, literal
from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences, Vocabulary

ROWS_AT_ONCE = 1 << 20
Convert = Callable[[pa.ChunkedArray], np.ndarray]


def sort_sequences(
    path: Path,
    columns: Mapping[str, Convert],
    *,
    shuffle: np.random.Generator | None,
    target_events: Sequence[str] | None,
    folder: Path,
    engine: Mapping[str, Any] | None,
) -> tuple[Sequences, Vocabulary]:
    """Build sequences under the memory limit of ``engine``, with the arrays in files in ``folder``.

    columns: of the file besides the ids and ``order``, each with its conversion to values per event; ``timestamp``
    only where events have times, ``event`` only with ``target_events``, the types of the events that may be targets.
    shuffle: of events of a user with equal times; takes 8 bytes per event. Raises OSError where the disk is full,
    ValueError where DuckDB needs more than its memory limit and for rows without an id.
    """
    engine = {**(engine or {}), "name": "duckdb"}
    engine["spill_folder"] = engine.get("spill_folder") or str(folder / "spill")
    folder.mkdir(parents=True, exist_ok=True)
    with engine_errors(engine), ExitStack() as stack:
        con = connect(engine)
        stack.callback(con.disconnect)
        if missing := count_rows(con, f"{_rows(path)} WHERE user_id IS NULL OR item_id IS NULL"):
            raise ValueError(f"{path}: {missing:,} rows have no user_id or no item_id; run the pipeline ingest again")
        users, counts, items = _number_ids(con, path)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        files = stack.enter_context(EventFiles(folder))
        if target_events is not None:
            columns = {**columns, "event": pa.ChunkedArray.to_numpy}
        batches = _sorted_events(con, path, [*columns], target_events)
        order = None if shuffle is None else shuffle.permutation(int(offsets[-1]))
        for first_user, table in _whole_users(batches, offsets):
            values = {"item": table["item"].to_numpy()}
            values |= {name: convert(table[name]) for name, convert in columns.items()}
            if order is not None and "timestamp" in values:
                place = slice(files.n_events, files.n_events + len(table))
                owner = np.searchsorted(offsets[first_user:], np.arange(place.start, place.stop), side="right")
                index = np.lexsort((order[place], values["timestamp"], owner))
                values = {name: value[index] for name, value in values.items()}
            files.append(values)
        arrays = files.mapped()
    ratings = arrays.get("rating")
    sequences = Sequences(
        users,
        arrays["item"],
        arrays.get("timestamp"),
        offsets,
        None if ratings is None or files.is_empty("rating") else ratings,
        weights=arrays.get("weight"),
        is_target=arrays.get("event"),
    )
    return sequences, Vocabulary(items)


def _rows(path: Path) -> str:
    return f"read_parquet({file_list([str(path)])}, hive_partitioning = false, file_row_number = true)"


def _number_ids(con: ibis.BaseBackend, path: Path) -> tuple[Ids, np.ndarray, np.ndarray]:
    """Number users and items by their sorted ids in tables of ``con``; return users, events of each, and items."""
    con.raw_sql(
        "CREATE TEMP TABLE users AS SELECT *, CAST(row_number() OVER (ORDER BY user_id) AS INTEGER) AS number "
        f"FROM (SELECT user_id, count(*) AS events FROM {_rows(path)} GROUP BY user_id)"
    )
    con.raw_sql(
        "CREATE TEMP TABLE items AS SELECT *, CAST(row_number() OVER (ORDER BY item_id) AS INTEGER) AS number "
        f"FROM (SELECT DISTINCT item_id FROM {_rows(path)})"
    )
    users = con.con.sql("SELECT user_id, events FROM users ORDER BY number").to_arrow_table()
    items = con.con.sql("SELECT item_id FROM items ORDER BY number").to_arrow_table()
    return Ids(users["user_id"]), users["events"].to_numpy(), np.array(items["item_id"].to_pylist(), object)


def _sorted_events(
    con: ibis.BaseBackend, path: Path, columns: Sequence[str], target_events: Sequence[str] | None
) -> Iterator[pa.RecordBatch]:
    """Yield the events in the order of sequences; equal times and places keep the order of the file."""
    values = {"item": "items.number"} | {name: f"events.{name}" for name in columns}
    if target_events is not None:
        values["event"] = f"coalesce(events.event IN ({', '.join(map(literal, target_events))}), false)"
    keys = ["users.number", *(["events.timestamp"] if "timestamp" in columns else [])]
    selection = ", ".join(f"{sql} AS {name}" for name, sql in values.items())
    query = (
        f"SELECT {selection} FROM {_rows(path)} AS events JOIN users USING (user_id) JOIN items USING (item_id) "
        f'ORDER BY {", ".join(keys)}, events."order", events.file_row_number'
    )
    yield from con.con.sql(query).to_arrow_reader(ROWS_AT_ONCE)


def _whole_users(batches: Iterable[pa.RecordBatch], offsets: np.ndarray) -> Iterator[tuple[int, pa.Table]]:
    """Cut a stream of events where users end; yield the first user of each part and its events."""
    parts: list[pa.RecordBatch] = []
    first, n_read = 0, 0
    for batch in batches:
        parts.append(batch)
        n_read += len(batch)
        last = int(np.searchsorted(offsets, n_read, side="right")) - 1
        if last > first:
            table, size = pa.Table.from_batches(parts), int(offsets[last] - offsets[first])
            yield first, table.slice(0, size)
            first, parts = last, table.slice(size).to_batches()


class EventFiles:
    """Flat files of values per event, appended in parallel; deleted at the end of the block, mapped or not."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._types: dict[str, np.dtype[Any]] = {}
        self._has_value: dict[str, bool] = {}
        self.n_events = 0

    def __enter__(self) -> EventFiles:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk, reported already
                file.close()
            with suppress(OSError):  # Windows deletes no mapped file: the next engine does
                Path(file.name).unlink(missing_ok=True)

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        """Append the values of some events, arrays of equal length; all calls have the same names and types."""
        for name, array in values.items():
            if name not in self._files:
                self._files[name] = temporary_path(self._folder / name, "part").open("wb")
                self._types[name] = array.dtype
            self._files[name].write(np.ascontiguousarray(array).data)
            is_value = array.dtype.kind != "f" or not np.isnan(array).all()
            self._has_value[name] = self._has_value.get(name, False) or bool(is_value)
        self.n_events += len(next(iter(values.values())))

    def is_empty(self, name: str) -> bool:
        """Return whether all values of a column are NaN."""
        return not self._has_value[name]

    def mapped(self) -> dict[str, np.ndarray]:
        """Map the files into memory as read-only arrays (N,)."""
        for file in self._files.values():
            file.flush()
        return {name: np.asarray(np.memmap(file.name, self._types[name], "r")) for name, file in self._files.items()}
