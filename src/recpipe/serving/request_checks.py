"""Checks of requests in Python: ids are texts, times whole seconds in the order of the events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

LATEST = 1 << 53  # seconds; sums of such integers cannot overflow


def check_histories(histories: object) -> None:
    """Raise ValueError unless ``histories`` is a mapping from texts to lists."""
    if not isinstance(histories, Mapping):
        raise ValueError(f"histories are of type {_type(histories)}; give a mapping from user ids to lists of item ids")
    for user, items in histories.items():
        if not isinstance(user, str):
            raise ValueError(f"user {user!r} is of type {_type(user)}; user ids are texts, such as {str(user)!r}")
        if isinstance(items, str) or not hasattr(items, "__len__"):
            raise ValueError(f"the history of user {user!r} is of type {_type(items)}; it is a list of item ids")


def item_indices(items: object, index: Mapping[str, int]) -> NDArray[np.int64]:
    """Look up item ids in ``index``, as (n,), 0 for unknown ones.

    Raises ValueError for other than texts, and without a list.
    """
    if isinstance(items, str) or not isinstance(items, Iterable):
        raise ValueError(f"item ids are {items!r}, of type {_type(items)}; give a list of texts")
    items = list(items)
    try:
        indices = np.array([index.get(item, 0) for item in items], np.int64)
    except TypeError:  # not hashable
        _check_item_ids(items)
        raise
    if not indices.all():
        _check_item_ids(items[place] for place in np.flatnonzero(indices == 0))
    return indices


def _check_item_ids(items: Iterable[object]) -> None:
    for item in items:
        if not isinstance(item, str):
            raise ValueError(f"item {item!r} is of type {_type(item)}; item ids are texts, such as {str(item)!r}")


def event_times(histories: Mapping[str, Sequence[str]], timestamps: object) -> NDArray[np.int64]:
    """Return the seconds (n,) of all events of all users. Raises ValueError where they do not fit the events."""
    if not isinstance(timestamps, Mapping):
        raise ValueError(f"timestamps are of type {_type(timestamps)}; give a mapping from users to lists of seconds")
    times: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for user, items in histories.items():
        seconds = np.asarray(timestamps.get(user, ()))
        if seconds.shape != (len(items),):
            raise ValueError(f"timestamps of user {user!r} are not one for each event of the history")
        if len(seconds) and (seconds.dtype.kind not in "iu" or np.abs(seconds).max() > LATEST):
            raise ValueError(f"timestamps of user {user!r} are not all whole seconds since 1970")
        times.append(seconds.astype(np.int64))
        if (np.diff(times[-1]) < 0).any():
            raise ValueError(f"timestamps of user {user!r} go back in time; events stand in their order, oldest first")
    return np.concatenate(times)


def check_now(now: object) -> None:
    """Raise ValueError unless ``now`` is a time in whole seconds since 1970."""
    if isinstance(now, bool) or not isinstance(now, int | np.integer) or abs(int(now)) > LATEST:
        raise ValueError(f"now is {now!r}; it is a time in whole seconds since 1970")


def check_profiles(profiles: object) -> None:
    """Raise ValueError unless ``profiles`` is a table with ``user_id``."""
    if not isinstance(profiles, pa.Table):
        raise ValueError(f"profiles are of type {_type(profiles)}; give an Arrow table with user_id")
    if "user_id" not in profiles.column_names:
        raise ValueError(f"profiles have no column user_id, only {', '.join(profiles.column_names) or 'none'}")


def _type(value: object) -> str:
    return type(value).__name__
