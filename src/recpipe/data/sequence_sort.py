"""Sequences of a log larger than memory: DuckDB or Spark sorts the events, flat files take them. N events, U users.

A file is deleted once it is mapped into memory: its space is free again with the last array that views it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ibis.util import gen_name

from recpipe.data.atomic import clean_leftovers, temporary_path
from recpipe.data.engines import connect, engine_errors
from recpipe.data.event_log import materialize, single_row
from recpipe.data.files.tables import file_pattern
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
    engine = dict(engine or {})
    engine["spill_folder"] = engine.get("spill_folder") or str(folder / "spill")
    folder.mkdir(parents=True, exist_ok=True)
    clean_leftovers(folder)
    with engine_errors(engine), ExitStack() as stack:
        con = connect(engine)
        if con.name == "duckdb":  # a Spark session is shared
            stack.callback(con.disconnect)
        log = _Log(con, path)
        if missing := log.missing_ids():
            raise ValueError(f"{path}: {missing:,} rows have no user_id or no item_id; run the pipeline ingest again")
        users, items = log.numbered("user_id"), log.numbered("item_id")
        user_table = users.order_by("number").select("user_id", "events").to_pyarrow()
        item_ids = items.order_by("number").select("item_id").to_pyarrow()["item_id"]
        offsets = np.concatenate([[0], np.cumsum(user_table["events"].to_numpy())]).astype(np.int64)
        files = stack.enter_context(EventFiles(folder))
        if target_events is not None:
            columns = {**columns, "event": pa.ChunkedArray.to_numpy}
        batches = log.batches(log.sorted_events(users, items, [*columns], target_events), folder)
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
        Ids(user_table["user_id"]),
        arrays["item"],
        arrays.get("timestamp"),
        offsets,
        None if ratings is None or files.is_empty("rating") else ratings,
        weights=arrays.get("weight"),
        is_target=arrays.get("event"),
    )
    return sequences, Vocabulary(np.array(item_ids.to_pylist(), object))


class _Log:
    """Events of a Parquet file as Ibis expressions, on DuckDB or Spark."""

    def __init__(self, con: ibis.BaseBackend, path: Path) -> None:
        self.con, self._is_duckdb = con, con.name == "duckdb"
        options = {"hive_partitioning": False, "file_row_number": True} if self._is_duckdb else {}
        source = file_pattern(str(path)) if self._is_duckdb else str(path.absolute())
        self.rows: ir.Table = con.read_parquet(source, **options)

    def missing_ids(self) -> int:
        """Count the rows without a user or an item."""
        rows = self.rows.filter(self.rows.user_id.isnull() | self.rows.item_id.isnull())
        return int(single_row(rows.aggregate(n=rows.count()))["n"])

    def numbered(self, key: str) -> ir.Table:
        """Number the users or items by their sorted ids from 0, with their events; stored on the engine."""
        ids = self.rows.group_by(key).aggregate(events=self.rows.count())
        ids = ids.mutate(number=ibis.row_number().over(order_by=ids[key]).cast("int32"))
        if not self._is_duckdb:
            return materialize(ids)
        return self.con.create_table(gen_name("ids"), obj=ids, temp=True)  # for as long as the connection

    def sorted_events(
        self, users: ir.Table, items: ir.Table, columns: Sequence[str], target_events: Sequence[str] | None
    ) -> ir.Table:
        """Return the events in the order of sequences; on DuckDB, equal times and places keep the order of the file."""
        rows = self.rows
        users = users.select(user_key="user_id", user="number")
        items = items.select(item_key="item_id", item=(items.number + 1).cast("int32"))
        events = rows.inner_join(users, rows.user_id == users.user_key)
        events = events.inner_join(items, events.item_id == items.item_key)
        keys = ["user", *(["timestamp"] if "timestamp" in columns else []), "order"]
        keys += ["file_row_number"] if self._is_duckdb else []
        values = {name: events[name] for name in columns}
        if target_events is not None:
            values["event"] = ibis.coalesce(events.event.isin(list(target_events)), False)
        return events.order_by(keys).select("item", **values)

    def batches(self, events: ir.Table, folder: Path) -> Iterator[pa.RecordBatch]:
        """Yield sorted events, from Spark through Parquet files in ``folder``, a shared one, in the order of names."""
        if self._is_duckdb:
            yield from self.con.con.sql(self.con.compile(events)).to_arrow_reader(ROWS_AT_ONCE)
            return
        parts = temporary_path(folder / "events", "part").absolute()
        try:
            self.con.to_parquet(events, parts)
            for part in sorted(parts.glob("part-*.parquet")):
                with pq.ParquetFile(part) as file:
                    yield from file.iter_batches(batch_size=ROWS_AT_ONCE)
        finally:
            shutil.rmtree(parts, ignore_errors=True)


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
            with suppress(OSError):  # Windows deletes no mapped file: the next sort does
                Path(file.name).unlink(missing_ok=True)

    def append(self, values: Mapping[str, np.ndarray]) -> None:
        """Append the values of some events, arrays (n,) of equal length; all calls have the same names and types."""
        for name, array in values.items():
            if name not in self._files:
                self._files[name] = temporary_path(self._folder / name, "part").open("wb")
                self._types[name] = array.dtype
            with self._disk_errors():
                self._files[name].write(np.ascontiguousarray(array).data)
            is_value = array.dtype.kind != "f" or not np.isnan(array).all()
            self._has_value[name] = self._has_value.get(name, False) or bool(is_value)
        self.n_events += len(next(iter(values.values())))

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Name the folder in an error of writing, which is another one than that of the engine."""
        try:
            yield
        except OSError as error:
            reason = f"{error.strerror}: the sorted events were not written; free space, or move the folder of `data`"
            raise OSError(error.errno, reason, str(self._folder)) from error

    def is_empty(self, name: str) -> bool:
        """Return whether all values of a column are NaN."""
        return not self._has_value[name]

    def mapped(self) -> dict[str, np.ndarray]:
        """Map the files into memory as read-only arrays (N,)."""
        with self._disk_errors():
            for file in self._files.values():
                file.flush()
        return {name: np.asarray(np.memmap(file.name, self._types[name], "r")) for name, file in self._files.items()}
