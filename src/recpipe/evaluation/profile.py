"""Profile of an interaction log as JSON: sizes, activity, popularity, time, ties and repeats.

Three columns are read batch by batch and stored as integer codes: about 16 bytes per interaction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from recpipe.evaluation.lists import gini

DAY = 86_400
CURVE_POINTS = 60


def profile(path: Path) -> dict[str, Any]:
    """Profile the interactions in a Parquet file or folder. Raises ValueError for an empty log.

    `tied.interactions` is the share of interactions with another one of the same user and second; `tied.last` the share
    of users with several in their last second, whose test item depends on `protocol.ties`.
    """
    user, item, timestamp, timed = _columns(path)
    if not len(user):
        raise ValueError(f"{path} holds no interaction: nothing to profile; look at the step table of `ingest`")
    users, items = int(user.max()) + 1, int(item.max()) + 1
    pairs = len(np.unique(user.astype(np.int64) * items + item))
    per_item = np.sort(np.bincount(item))[::-1]
    at = timestamp[timed]
    return {
        "rows": len(user),
        "users": users,
        "items": items,
        "density": pairs / (users * items),
        "repeats": 1 - pairs / len(user),
        "untimed": int((~timed).sum()),
        "first_timestamp": int(at.min()) if len(at) else None,
        "last_timestamp": int(at.max()) if len(at) else None,
        "span_days": float((at.max() - at.min()) / DAY) if len(at) else None,
        "events_per_user": _histogram(np.bincount(user)),
        "events_per_item": _histogram(per_item),
        "popularity": _popularity(per_item),
        "events_over_time": _over_time(at),
        "tied": _tied(user[timed], at),
    }


def _columns(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64], NDArray[np.bool_]]:
    """Read user codes, item codes, timestamps (0 for null) and a mask of the non-null ones."""
    empty = np.empty(0, np.int32)
    codes = {"user_id": [empty], "item_id": [empty]}
    code_of: dict[str, dict[str, int]] = {"user_id": {}, "item_id": {}}
    times, timed = [np.empty(0, np.int64)], [np.empty(0, bool)]
    for batch in ds.dataset(path, format="parquet").to_batches(columns=["user_id", "item_id", "timestamp"]):
        for name, table in code_of.items():
            column = batch[name].cast(pa.string()).dictionary_encode()
            local = [table.setdefault(value, len(table)) for value in column.dictionary.to_pylist()]
            codes[name].append(np.asarray(local, np.int32)[column.indices.to_numpy()])
        times.append(pc.fill_null(batch["timestamp"], 0).to_numpy(zero_copy_only=False).astype(np.int64))
        timed.append(batch["timestamp"].is_valid().to_numpy(zero_copy_only=False))
    users, items = (np.concatenate(parts) for parts in codes.values())
    return users, items, np.concatenate(times), np.concatenate(timed)


def _histogram(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Summarise `counts`, with a histogram over the edges 1, 2, 3, 4, 6, 8, 12, …."""
    edges = [1, 2, 3]
    while edges[-1] <= counts.max():
        edges.append(edges[-2] * 2)
    return {
        "min": int(counts.min()),
        "mean": float(counts.mean()),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
        "edges": edges,
        "counts": np.histogram(counts, bins=edges)[0].tolist(),
    }


def _popularity(per_item: NDArray[np.int64]) -> dict[str, Any]:
    """Compute events by popularity rank and their concentration; `per_item` is sorted, most popular first."""
    n = len(per_item)
    ranks = np.unique(np.geomspace(1, n, min(n, CURVE_POINTS)).round().astype(np.int64))
    cumulative = np.cumsum(per_item) / per_item.sum()
    return {
        "rank": ranks.tolist(),
        "events": per_item[ranks - 1].tolist(),
        "share": cumulative[ranks - 1].tolist(),
        "gini": gini(per_item),
        "top_1_percent": float(cumulative[max(1, round(n / 100)) - 1]),
        "top_10_percent": float(cumulative[max(1, round(n / 10)) - 1]),
    }


def _over_time(at: NDArray[np.int64]) -> dict[str, Any] | None:
    """Count events per day, month or year, depending on the span of the log; empty periods count 0."""
    if not len(at):
        return None
    days = (at.max() - at.min()) / DAY
    period, unit = ("day", "D") if days <= 62 else ("month", "M") if days <= 3660 else ("year", "Y")
    index = at.astype("datetime64[s]").astype(f"datetime64[{unit}]")
    events = np.bincount((index - index.min()).astype(np.int64))
    starts = [str(index.min() + step) for step in range(len(events))]
    return {"period": period, "start": starts, "events": events.tolist()}


def _tied(user: NDArray[np.int32], at: NDArray[np.int64]) -> dict[str, float] | None:
    if not len(at):
        return None
    order = np.lexsort((at, user))
    user, at = user[order], at[order]
    same = (user[1:] == user[:-1]) & (at[1:] == at[:-1])  # as the one before
    tied, last = np.append(False, same) | np.append(same, False), np.append(user[1:] != user[:-1], True)
    return {"interactions": float(tied.mean()), "last": float(tied[last].mean())}
