"""Profile of an interaction log as JSON: sizes, activity, popularity, time, ties and repeats; warnings about it.

Columns are read batch by batch and stored as integer codes: about 21 bytes per interaction.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from recpipe.config import check_known
from recpipe.evaluation.lists import gini

Times = NDArray[np.int64]
DAY = 86_400
EARLIEST = 315_532_800  # 1 January 1980: times before it are rather unknown or in another unit
WARN_SHARE = 0.05  # of repeats, copies and seen targets
WARN_DUPLICATE_IDS = 0.01  # of users or items with the id of another in another form
WARN_TIES = 0.2  # of users with a tie at the last timestamp
CURVE_POINTS = 60
REPEATS_ADVICE = (
    "Set protocol.exclude_seen=false where repeats are to be recommended, or views come before purchases; or, in a log "
    "of one type of event, keep the first of each with the step {step: duplicates, by: [user_id, item_id]}"
)


def profile(path: Path) -> dict[str, Any]:
    """Profile the interactions in a Parquet file or folder. Raises ValueError for an empty log.

    `tied.interactions` is the share of interactions with another one of the same user and second; `tied.last` the share
    of users with several at their last time, whose test item depends on `protocol.ties`. `copies` counts events with
    the user, item, event type and second of an earlier one. `repeats` is the share with its user and item, and
    `last_repeats` that of users with several events whose last item is one of their earlier ones. `early` and `future`
    count events before 1980 and after tomorrow.
    """
    user, item, event, timestamp, timed = _columns(path)
    if not len(user):
        raise ValueError(f"{path} holds no interaction: nothing to profile; look at the step table of `ingest`")
    users, items = int(user.max()) + 1, int(item.max()) + 1
    pair = user.astype(np.int64) * items + item
    pairs = len(np.unique(pair))
    per_item = np.sort(np.bincount(item))[::-1]
    at = timestamp[timed]
    return {
        "rows": len(user),
        "users": users,
        "items": items,
        "density": pairs / (users * items),
        "repeats": 1 - pairs / len(user),
        "last_repeats": _last_repeats(user, pair, timestamp),
        "copies": _copies((pair * (int(event.max()) + 1) + event)[timed], at),
        "untimed": int((~timed).sum()),
        "zero": int((at == 0).sum()),
        "early": int((at < EARLIEST).sum()),
        "future": int((at > time.time() + DAY).sum()),
        "first_timestamp": int(at.min()) if len(at) else None,
        "last_timestamp": int(at.max()) if len(at) else None,
        "span_days": float((at.max() - at.min()) / DAY) if len(at) else None,
        "events_per_user": _histogram(np.bincount(user)),
        "events_per_item": _histogram(per_item),
        "popularity": _popularity(per_item),
        "events_over_time": _over_time(at),
        "tied": _tied(user[timed], at),
    }


def choose_profile(profile: Mapping[str, Any], classes: Mapping[str, Any]) -> str | None:
    """Return the first of ``classes`` (conf block ``profiles``) whose limits a log keeps, None without one.

    Limits are ``min_<measure>``, inclusive, and ``max_<measure>``, exclusive, of ``events`` and ``events_per_user``. A
    class without limits, such as one that is only a description, is never chosen.
    """
    measures = {"events": profile["rows"], "events_per_user": profile["rows"] / profile["users"]}
    for name, entry in classes.items():
        fields = entry if isinstance(entry, Mapping) else {}  # a description, as of version 0.1
        limits = {key: value for key, value in fields.items() if key != "about"}
        for key in limits:
            check_known(key, [f"{bound}_{measure}" for bound in ("min", "max") for measure in measures], what="limit")
        within_limits = [
            measures[key[4:]] >= value if key.startswith("min") else measures[key[4:]] < value
            for key, value in limits.items()
        ]
        if within_limits and all(within_limits):
            return str(name)
    return None


def profile_warnings(profile: Mapping[str, Any], *, dataset: str, exclude_seen: bool) -> list[str]:
    """Name faults of the data that change results, each with its count and the setting or command that helps.

    Profiles of older versions lack some counts, about which nothing is said.
    """
    names = ("rows", "untimed", "early", "future", "copies", "repeats", "last_repeats")
    rows, untimed, early, future, copies, repeats, last = (profile.get(name) or 0 for name in names)
    result = join_warnings(profile.get("joins") or ())
    for ids in profile.get("duplicate_ids") or ():
        if ids["pairs"] >= WARN_DUPLICATE_IDS * ids["ids"]:
            result.append(
                f"{ids['pairs']:,} of {ids['ids']:,} {ids['table']} of the log have the id of another "
                f"{ids['form']}, such as {ids['example']!r}: if they are one, write their ids in one form"
            )
    if early and early == rows - untimed:
        result.append(
            "all events are before 1980: if their times are no seconds since 1970, set `timestamp` in the options of "
            "the data set, or map a counter as `order` instead"
        )
    elif early:
        zero = f", {profile['zero']:,} of them at 0," if profile["zero"] else ""
        result.append(
            f"{early:,} of {rows:,} events are before 1980{zero} and count as the first of their users: if these times "
            "are unknown, name them in `null_times` of the options, or add the step "
            "{step: time_window, start: 1980-01-01}"
        )
    if future:
        result.append(
            f"{future:,} of {rows:,} events are in the future and count as the last of their users, which are test "
            "targets: remove them with the step {step: time_window, end: <date>}"
        )
    if copies and copies >= WARN_SHARE * rows:
        result.append(
            f"{copies:,} of {rows:,} events are copies of another with the same user, item, type and second: if they "
            "are no events of their own, add the step {step: duplicates, by: [user_id, item_id, timestamp]}"
        )
    if exclude_seen and max(last, repeats) >= WARN_SHARE:
        result.append(
            f"{_percent(repeats)} of the events, and the last events of {_percent(last)} of the users, repeat an "
            f"item of their user: such targets cannot be hit while protocol.exclude_seen is true. "
            f"{REPEATS_ADVICE}"
        )
    if (tied := (profile.get("tied") or {}).get("last", 0.0)) >= WARN_TIES:
        result.append(
            f"{_percent(tied)} of the users have several events at their last time; fractions of a second, and where "
            "there are none the order of the file, decide which one is the target (protocol.ties). How much that "
            f"matters: `kedro run --pipelines=ties,report --params dataset={dataset},model=<trained model>`"
        )
    return result


def join_warnings(joins: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name tables that have less than half of the log's ids, with examples of both sides."""
    result = []
    for join in joins:
        if 2 * join["matched"] < join["ids"]:
            log, file = (", ".join(map(repr, join[f"{side}_examples"])) or "no others" for side in ("log", "file"))
            hint = f". Of the ids that are missing, {join['hint']}" if join["hint"] else ""
            result.append(
                f"{join['matched']:,} of {join['ids']:,} {join['table']} of the log are in {join['file']}: the log has "
                f"{log}, the file {file}{hint}"
            )
    return result


def split_warnings(sizes: Mapping[str, int], *, exclude_seen: bool) -> list[str]:
    """Name folds with targets that cannot be hit, from the sizes of a split; nothing for splits of older versions."""
    parts = []
    for fold, prefix in (("validation", "valid"), ("test", "test")):
        targets, seen = (sizes.get(f"{prefix}_{name}", 0) for name in ("targets", "seen_targets"))
        if exclude_seen and seen and seen >= WARN_SHARE * targets:
            parts.append(f"{seen:,} of {targets:,} {fold} targets")
    if not parts:
        return []
    reason = "are in the history of their user and cannot be hit, as protocol.exclude_seen is true"
    return [f"{' and '.join(parts)} {reason}. {REPEATS_ADVICE}"]


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 or not share else f"{share:.1%}"


def _copies(pair: NDArray[np.int64], at: NDArray[np.int64]) -> int:
    order = np.lexsort((at, pair))
    pair, at = pair[order], at[order]
    return int(((pair[1:] == pair[:-1]) & (at[1:] == at[:-1])).sum())


def _last_repeats(user: NDArray[np.int32], pair: NDArray[np.int64], timestamp: NDArray[np.int64]) -> float | None:
    """Share of the users with several events whose last pair occurred before; events are in source order."""
    order = np.lexsort((timestamp, user))  # stable
    user, pair = user[order], pair[order]
    is_first = np.zeros(len(user), bool)
    is_first[np.unique(pair, return_index=True)[1]] = True
    several = np.append(False, user[1:] == user[:-1])  # not the first event of its user
    last = np.append(user[1:] != user[:-1], True) & several
    return float(1 - is_first[last].mean()) if last.any() else None


def _columns(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], Times, NDArray[np.bool_]]:
    """Read codes of users, items and event types, timestamps (0 for null) and a mask of the non-null ones."""
    source = ds.dataset(path, format="parquet")
    code_of: dict[str, dict[str | None, int]] = {"user_id": {}, "item_id": {}, "event": {}}
    codes: dict[str, list[NDArray[np.int32]]] = {name: [np.empty(0, np.int32)] for name in code_of}
    times, timed = [np.empty(0, np.int64)], [np.empty(0, bool)]
    columns = [name for name in (*code_of, "timestamp") if name in source.schema.names]
    for batch in source.to_batches(columns=columns):
        for name, table in code_of.items():
            if name not in columns:
                codes[name].append(np.zeros(len(batch), np.int32))
                continue
            column = batch[name].cast(pa.string()).dictionary_encode(null_encoding="encode")
            local = [table.setdefault(value, len(table)) for value in column.dictionary.to_pylist()]
            codes[name].append(np.asarray(local, np.int32)[column.indices.to_numpy()])
        times.append(pc.fill_null(batch["timestamp"], 0).to_numpy(zero_copy_only=False).astype(np.int64))
        timed.append(batch["timestamp"].is_valid().to_numpy(zero_copy_only=False))
    users, items, events = (np.concatenate(parts) for parts in codes.values())
    return users, items, events, np.concatenate(times), np.concatenate(timed)


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
