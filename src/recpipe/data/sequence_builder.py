"""Sequences and vocabulary from a Parquet file of interactions. N events."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recpipe.config import check_known
from recpipe.data.digests import verified
from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences, Vocabulary

log = logging.getLogger(__name__)

ROWS_IN_MEMORY = 2_000_000  # sorted by numpy, which takes about 250 bytes per event; DuckDB sorts longer logs on disk
Column: TypeAlias = pa.Array | pa.ChunkedArray


def build_sequences(
    path: Path,
    *,
    ties: str = "source",
    seed: int = 0,
    target_events: Sequence[str] | None = None,
    folder: Path | None = None,
    engine: Mapping[str, Any] | None = None,
) -> tuple[Sequences, Vocabulary]:
    """Build sequences and vocabulary from a Parquet file of interactions (user_id, item_id, timestamp, order).

    The columns ``rating`` and ``weight`` may be there too; an event without a weight has the weight 1.

    ``ties`` orders events of a user with equal timestamps: ``source`` by ``order``, ``shuffle`` randomly with ``seed``.
    Without timestamps, ``order`` alone decides. ``target_events``: types of the events that may be targets; None: all.
    With a ``folder`` for their temporary files, logs of more than ``ROWS_IN_MEMORY`` rows are sorted on ``engine``,
    DuckDB under its memory limit or Spark, see `recpipe.data.engines.connect`; the arrays are then views of files.
    Raises ValueError if only some of the rows have a timestamp, for a weight that is negative or no number, and for
    types that the log does not have; OSError where the disk is full.
    """
    if ties not in ("source", "shuffle"):
        raise ValueError(f"ties is {ties!r}; allowed: source, shuffle (conf: protocol.ties)")
    verified(path, "run `kedro run --pipelines=ingest`")
    shuffle = np.random.default_rng(seed) if ties == "shuffle" else None
    if folder is not None and pq.read_metadata(path).num_rows > ROWS_IN_MEMORY:
        try:
            from recpipe.data.sequence_sort import sort_sequences
        except ImportError as error:
            raise ValueError(
                f"{path} has more than {ROWS_IN_MEMORY:,} rows, which are sorted by duckdb and ibis-framework: install "
                f"them ({error})"
            ) from error

        columns = _event_columns(path, partial(_stream, path), target_events)
        return sort_sequences(path, columns, shuffle=shuffle, target_events=target_events, folder=folder, engine=engine)
    return _build_in_memory(path, shuffle, target_events)


def _build_in_memory(
    path: Path, shuffle: np.random.Generator | None, target_events: Sequence[str] | None
) -> tuple[Sequences, Vocabulary]:
    optional = ["rating", "weight", *(["event"] if target_events is not None else [])]
    optional = [name for name in optional if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=["user_id", "item_id", "timestamp", "order", *optional])
    columns = _event_columns(path, lambda name: [table[name]], target_events)
    user_ids, users = _codes(table["user_id"])
    item_ids, items = _codes(table["item_id"])
    values = {name: convert(table[name]) for name, convert in columns.items()}
    times, order = values.get("timestamp"), table["order"].to_numpy()
    index = np.lexsort((order, users) if times is None else (order, times, users))
    if shuffle is not None and times is not None:
        shuffled = shuffle.permutation(len(index))
        index = index[np.lexsort((shuffled, times[index], users[index]))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_ids)))]).astype(np.int64)
    if "rating" in values and np.isnan(values["rating"]).all():
        del values["rating"]
    values = {name: value[index] for name, value in values.items()}
    sequences = Sequences(
        Ids(user_ids),
        (items[index] + 1).astype(np.int32),
        values.get("timestamp"),
        offsets,
        values.get("rating"),
        weights=values.get("weight"),
        is_target=values.get("event"),
    )
    return sequences, Vocabulary(item_ids)


def _event_columns(
    path: Path, read: Callable[[str], Iterable[Column]], target_events: Sequence[str] | None
) -> dict[str, Callable[[pa.ChunkedArray], np.ndarray]]:
    """Check the columns of values per event; return the conversion of each to an array.

    ``read`` returns a column in parts. A column of timestamps or weights without a value is left out.
    """
    columns: dict[str, Callable[[pa.ChunkedArray], np.ndarray]] = {}
    missing, total = _count_nulls(read("timestamp"))
    if 0 < missing < total:
        raise ValueError(f"{missing} of {total} interactions have no timestamp; give all of them one or none")
    if missing < total:
        columns["timestamp"] = _numbers
    names = pq.read_schema(path).names
    if "rating" in names:
        columns["rating"] = _ratings
    if "weight" in names and _check_weights(read("weight"), path):
        columns["weight"] = _weights
    if target_events is not None:
        if "event" not in names:
            raise ValueError(
                f"protocol.target_events is {list(target_events)} and the log has no event types: map the column of "
                "the type, `columns: {event: <name in the file>}`, in the data set's options, and run the pipeline "
                "ingest"
            )
        _check_types(read("event"), target_events)
        columns["event"] = partial(_is_target, target_events=target_events)
    return columns


def _stream(path: Path, name: str) -> Iterable[pa.Array]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1 << 20, columns=[name]):
            yield batch.column(0)


def _count_nulls(parts: Iterable[Column]) -> tuple[int, int]:
    """Return the number of nulls and of all values."""
    missing = total = 0
    for part in parts:
        missing, total = missing + part.null_count, total + len(part)
    return missing, total


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    values: np.ndarray = column.to_numpy()
    return values


def _ratings(column: pa.ChunkedArray) -> np.ndarray:
    """Return ratings float32, NaN where missing."""
    return _numbers(column.cast(pa.float32()))


def _weights(column: Column) -> np.ndarray:
    """Return weights float32, 1 where missing."""
    with np.errstate(over="ignore"):  # infinite values are refused by ``_check_weights``
        weights: np.ndarray = column.cast(pa.float64()).fill_null(1.0).to_numpy(zero_copy_only=False).astype(np.float32)
    return weights


def _check_weights(parts: Iterable[Column], path: Path) -> bool:
    """Return whether there is a weight. Raises ValueError for negative weights and those that are no number."""
    missing = total = n_unusable = 0
    example = None
    for part in parts:
        weights = _weights(part)
        unusable = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if len(unusable) and not n_unusable:
            example = part[int(unusable[0])].as_py()
        missing, total, n_unusable = missing + part.null_count, total + len(part), n_unusable + len(unusable)
    if n_unusable:
        raise ValueError(
            f"{path} has {n_unusable} weights that are negative or no number, such as {example}; a weight is a number "
            "from 0. Map another column to `weight` in the data set's options, or none, and run the pipeline ingest"
        )
    if 0 < missing < total:
        log.warning("%s of %s events have no weight: they count 1", f"{missing:,}", f"{total:,}")
    return missing < total


def _check_types(parts: Iterable[Column], target_events: Sequence[str]) -> None:
    """Raise ValueError for a type of ``target_events`` that no event has."""
    types: set[str] = set()
    for part in parts:
        types.update(value for value in part.unique().to_pylist() if value is not None)
    for name in target_events:
        check_known(name, sorted(types), what="event type in protocol.target_events")


def _is_target(column: pa.ChunkedArray, target_events: Sequence[str]) -> np.ndarray:
    """Return bool: events of the types ``target_events``."""
    mask = pc.is_in(column, value_set=pa.array(target_events, column.type))
    return np.asarray(mask.to_numpy(), bool)


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted distinct values, and the position of every row's value among them."""
    encoded = column.dictionary_encode().combine_chunks()
    values = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(values, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return values[order], place[encoded.indices.to_numpy()]
