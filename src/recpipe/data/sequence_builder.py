"""Sequences and vocabulary from a Parquet file of interactions. N events."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.config import check_known
from recpipe.data.digests import verified
from recpipe.data.ids import Ids
from recpipe.data.sequences import Sequences, Vocabulary

log = logging.getLogger(__name__)


def build_sequences(
    path: Path, *, ties: str = "source", seed: int = 0, target_events: Sequence[str] | None = None
) -> tuple[Sequences, Vocabulary]:
    """Build sequences and vocabulary from a Parquet file of interactions (user_id, item_id, timestamp, order).

    The columns ``rating`` and ``weight`` may be there too; an event without a weight has the weight 1.

    ``ties`` orders events of a user with equal timestamps: ``source`` by ``order``, ``shuffle`` randomly with ``seed``.
    Without timestamps, ``order`` alone decides. ``target_events``: types of the events that may be targets; None: all.
    Raises ValueError if only some of the rows have a timestamp, for a weight that is negative or no number, and for
    types that the log does not have.
    """
    if ties not in ("source", "shuffle"):
        raise ValueError(f"ties is {ties!r}; allowed: source, shuffle (conf: protocol.ties)")
    verified(path, "run `kedro run --pipelines=ingest`")
    optional = [name for name in ("rating", "weight") if name in pq.read_schema(path).names]
    table = pq.read_table(path, columns=["user_id", "item_id", "timestamp", "order", *optional])
    user_ids, users = _codes(table["user_id"])
    item_ids, items = _codes(table["item_id"])
    missing = table["timestamp"].null_count
    if 0 < missing < len(table):
        raise ValueError(f"{missing} of {len(table)} interactions have no timestamp; give all of them one or none")
    times = None if missing == len(table) else table["timestamp"].to_numpy()
    order = table["order"].to_numpy()
    keys = (order, users) if times is None else (order, times, users)
    index = np.lexsort(keys)
    if ties == "shuffle" and times is not None:
        shuffled = np.random.default_rng(seed).permutation(len(index))
        index = index[np.lexsort((shuffled, times[index], users[index]))]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=len(user_ids)))]).astype(np.int64)
    ratings = table["rating"].cast(pa.float32()).to_numpy()[index] if "rating" in optional else None
    if ratings is not None and np.isnan(ratings).all():
        ratings = None
    ordered = None if times is None else times[index]
    weights = None if "weight" not in optional else _weights(table["weight"], path)
    weights = None if weights is None else weights[index]
    is_target = None if target_events is None else _is_target(path, target_events)[index]
    item_index = (items[index] + 1).astype(np.int32)
    sequences = Sequences(Ids(user_ids), item_index, ordered, offsets, ratings, weights=weights, is_target=is_target)
    return sequences, Vocabulary(item_ids)


def _is_target(path: Path, target_events: Sequence[str]) -> np.ndarray:
    """Return (N,) bool: events of the types ``target_events``."""
    if "event" not in pq.read_schema(path).names:
        raise ValueError(
            f"protocol.target_events is {list(target_events)} and the log has no event types: map the column of the "
            "type, `columns: {event: <name in the file>}`, in the data set's options, and run the pipeline ingest"
        )
    column = pq.read_table(path, columns=["event"])["event"]
    types = sorted(value for value in column.unique().to_pylist() if value is not None)
    for name in target_events:
        check_known(name, types, what="event type in protocol.target_events")
    mask = pa.compute.is_in(column, value_set=pa.array(target_events, column.type))
    return np.asarray(mask.to_numpy(zero_copy_only=False), bool)


def _weights(column: pa.ChunkedArray, path: Path) -> np.ndarray | None:
    """Return weights (N,) float32, 1 where missing; None if all are missing."""
    if column.null_count == len(column):
        return None
    if column.null_count:
        log.warning("%s of %s events have no weight: they count 1", f"{column.null_count:,}", f"{len(column):,}")
    with np.errstate(over="ignore"):  # infinite values are refused below
        weights: np.ndarray = column.cast(pa.float64()).fill_null(1.0).to_numpy().astype(np.float32)
    if len(unusable := np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))):
        value = column[int(unusable[0])].as_py()
        raise ValueError(
            f"{path} has {len(unusable)} weights that are negative or no number, such as {value}; a weight is a number "
            "from 0. Map another column to `weight` in the data set's options, or none, and run the pipeline ingest"
        )
    return weights


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Return sorted distinct values, and the position of every row's value among them."""
    encoded = column.dictionary_encode().combine_chunks()
    values = np.array(encoded.dictionary.to_pylist(), dtype=object)
    order = np.argsort(values, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return values[order], place[encoded.indices.to_numpy()]
