"""Data and settings of an update: windows of new and of old events, and the folds that watch over it.

U users, N events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from recpipe.data.ids import Ids
from recpipe.data.seen_events import SeenEvents
from recpipe.data.sequences import EVENT_COLUMNS, Fold, Sequences
from recpipe.data.windows import Windows


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """The conf block ``update``; its file explains the keys."""

    replay: float
    learning_rate: float
    schedule: dict[str, Any]
    max_epochs: int
    patience: int
    tolerance: float
    held_out: float
    users: int

    def __post_init__(self) -> None:
        def check(name: str, is_valid: bool, allowed: str) -> None:
            if not is_valid:
                raise ValueError(f"update.{name} is {getattr(self, name)!r}; {allowed}")

        for name in ("max_epochs", "patience", "users"):
            value = getattr(self, name)
            check(name, type(value) is int and value >= 1, "give a whole number from 1")
        check("replay", 0 <= self.replay < 1, "give a share from 0 to below 1")
        check("learning_rate", self.learning_rate > 0, "give a factor above 0, such as 0.3")
        check("tolerance", 0 <= self.tolerance < 1, "give a share from 0 to below 1")
        check("held_out", 0 < self.held_out <= 0.5, "give a share above 0, at most 0.5")


@dataclass(frozen=True)
class UpdateData:
    """Training windows, the fold of new and the fold of old events, and all events that the new model has seen."""

    windows: Sequences
    recent: Fold
    earlier: Fold
    seen: Sequences
    new_events: int
    replayed_events: int


def update_data(
    seen: SeenEvents, sequences: Sequences, settings: UpdateSettings, *, window: int, stride: int | None, seed: int
) -> UpdateData:
    """Split ``sequences`` into training windows and folds by the events that the model has ``seen``.

    Raises ValueError where no event is new, and where no user has an old event to watch over.
    """
    generator = np.random.default_rng(seed)
    first, lengths = seen.first_new(sequences), sequences.lengths
    new_users = np.flatnonzero(lengths > first)
    n_new = int((lengths - first).sum())
    if n_new == 0:
        raise ValueError(
            "no event of the log is later than those that the model was trained on: `kedro run --pipeline=ingest` "
            "reads a longer log"
        )
    n_held_out = min(settings.users, max(int(settings.held_out * n_new), 1))
    held_out = _sample(new_users[_ends_with_target(sequences, lengths)[new_users]], n_held_out, generator)
    old_users = np.flatnonzero(first > 1)
    n_watched = min(settings.users, max(int(settings.held_out * len(old_users)), 1))
    watched = _sample(old_users[_ends_with_target(sequences, first)[old_users]], n_watched, generator)
    if not len(held_out) or not len(watched):
        missing = "new" if not len(held_out) else "old"
        raise ValueError(f"no user has a history and {missing} events after it; `kedro run --pipeline=refit` instead")
    stop = lengths.copy()
    stop[held_out] -= 1
    rows, zero = np.arange(len(sequences)), np.zeros_like(lengths)
    new = replace(sequences, context=np.maximum(first, 1)).select(rows, np.maximum(first - window, 0), stop)
    new_windows = _with_targets(Windows.cut(new, window, stride))
    n_old = n_new * settings.replay / (1 - settings.replay)
    old_rows = np.setdiff1d(old_users, watched)
    old = Windows.cut(sequences.select(old_rows, zero[old_rows], first[old_rows]), window, stride)
    old_windows = _with_targets(old)
    order = generator.permutation(len(old_windows))
    targets = np.cumsum(old_windows.target_counts()[order])
    replay = old_windows.select(np.sort(order[: int(np.searchsorted(targets, n_old))]))
    return UpdateData(
        join(new_windows.copy(), replay.copy()),
        _last_event_fold(sequences, held_out, lengths),
        _last_event_fold(sequences, watched, first),
        sequences.select(rows, zero, stop),
        int(new_windows.target_counts().sum()),
        int(replay.target_counts().sum()),
    )


def join(first: Sequences, second: Sequences) -> Sequences:
    """Join the rows of two parts of one log; a user may be in both."""

    def both(name: str) -> np.ndarray | None:
        values = (getattr(first, name), getattr(second, name))
        return None if values[0] is None else np.concatenate(values)

    context = [np.ones(len(part), np.int64) if part.context is None else part.context for part in (first, second)]
    return Sequences(
        Ids.concatenate(first.users, second.users),
        np.concatenate([first.items, second.items]),
        offsets=np.concatenate([first.offsets, second.offsets[1:] + first.offsets[-1]]),
        profiles={name: pa.concat_arrays([column, second.profiles[name]]) for name, column in first.profiles.items()},
        context=np.concatenate(context),
        **{name: both(name) for name in EVENT_COLUMNS},
    )


def _sample(rows: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Draw at most ``n`` of ``rows``, ascending."""
    return np.sort(generator.permutation(rows)[:n])


def _ends_with_target(sequences: Sequences, stop: np.ndarray) -> np.ndarray:
    """Mark the users (U,) with at least two events before ``stop`` (U,), the last of which may be a target."""
    mask: np.ndarray = stop > 1
    if sequences.is_target is not None:
        mask = mask & sequences.is_target[sequences.offsets[:-1] + np.maximum(stop - 1, 0)]
    return mask


def _last_event_fold(sequences: Sequences, rows: np.ndarray, stop: np.ndarray) -> Fold:
    """Make the event before ``stop`` (U,) of the users ``rows`` the target, and the events before it the history."""
    last = stop[rows] - 1
    return Fold(sequences.select(rows, np.zeros_like(last), last), sequences.select(rows, last, last + 1))


def _with_targets(windows: Windows) -> Windows:
    """Select the windows that have a training target."""
    return windows.select(np.flatnonzero(windows.target_counts()))
