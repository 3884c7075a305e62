"""Audit of a data set: what its test targets ask of a model, and what the split lets a model know.

Popularity and repeats of the targets, transitions that training has seen, ties, targets of one day, and training events
that lie after a test event. Nothing of it depends on a model. Events are read in parts, so that memory is for users and
targets only. Shapes: U users, N targets, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from recpipe.data.sequences import EVENTS_AT_ONCE, Fold, Sequences, count_items
from recpipe.data.splits import TrainingData
from recpipe.data.transitions import Transitions, transition_seen

DAY = 86_400
CURVE_POINTS = 50
NO_TIMES = "The log has an order of events and no times: ties, days and leakage over time are unknown."


def audit(data: TrainingData, test: Fold) -> dict[str, Any]:
    """Audit the split of ``data`` with its test fold; JSON with ``measures``, ``curves`` and ``notes``.

    Measures of time are None for a log without times, and those of popularity where training has no event.
    Shares of targets are over all test targets, those of users over test users; each is None without any.
    """
    train, n_items = data.train_set, len(data.vocabulary)
    events = count_items(train.items, n_items)[1:]
    has_times = train.timestamps is not None and test.targets.timestamps is not None
    return {
        "dataset": data.protocol_fields["dataset"],
        "protocol": data.protocol_fields["id"],
        "measures": {
            "test": {"users": len(test), "targets": len(test.targets.items)},
            "popularity": popularity_of_targets(test.targets.items, events),
            "repeats": _share(test.seen_targets()),
            "transitions": transitions_of_targets(train, test, n_items),
            "ties": ties(test) if has_times else None,
            "same_day": same_day(test, data.valid_set) if has_times else None,
            "global_time": global_time(train, test) if has_times else None,
        },
        "curves": {
            "popularity": popularity_curve(test.targets.items, events),
            "time": time_curve(train, test) if has_times else None,
        },
        "notes": [] if has_times else [NO_TIMES],
    }


def popularity_of_targets(targets: np.ndarray, events: np.ndarray) -> dict[str, float | None]:
    """Compare the targets (N,) with the popularity of all items by their training ``events`` (I,).

    ``top_1_percent`` and ``top_10_percent``: share of the targets among the most popular items; of equally popular
    items that only partly belong there, each counts for its part. ``median_percentile``: share of the catalogue that is
    less popular than the median target, with half of the items that are equally popular.
    """
    if not len(targets) or not events.any():
        return {"top_1_percent": None, "top_10_percent": None, "median_percentile": None}
    level, n_above, n_level = _levels(events)
    counts = np.bincount(level[targets - 1], minlength=len(n_level))

    def share_of_top(share: float) -> float:
        size = max(1, round(share * len(events)))
        part = np.clip((size - n_above) / n_level, 0, 1)
        return float((counts * part).sum() / counts.sum())

    percentile = 1 - (n_above + n_level / 2) / len(events)
    median = float(np.median(percentile[level[targets - 1]]))
    return {"top_1_percent": share_of_top(0.01), "top_10_percent": share_of_top(0.1), "median_percentile": median}


def popularity_curve(targets: np.ndarray, events: np.ndarray) -> dict[str, list[float]] | None:
    """Return cumulative shares of targets and of training events over the share of items, most popular first.

    ``targets`` (N,) count from 1; ``events`` (I,) are training events per item. None without targets or events.
    """
    if not len(targets) or not events.any():
        return None
    order = np.argsort(-events, kind="stable")
    sizes = np.unique(np.geomspace(1, len(events), min(len(events), CURVE_POINTS)).round().astype(np.int64))
    of_targets = np.cumsum(np.bincount(targets - 1, minlength=len(events))[order])[sizes - 1] / len(targets)
    of_events = np.cumsum(events[order])[sizes - 1] / events.sum()
    return {"items": (sizes / len(events)).tolist(), "targets": of_targets.tolist(), "train_events": of_events.tolist()}


def _levels(events: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the level of popularity of each item (I,), and per level the number of more popular and of its items."""
    _, level, n_level = np.unique(-events, return_inverse=True, return_counts=True)
    return level, np.cumsum(n_level) - n_level, n_level


def transitions_of_targets(train: Sequences, test: Fold, n_items: int) -> dict[str, float | int | None]:
    """Share of the targets that follow the last item of the history in training, memorised, and of the others.

    ``distinct`` counts the different transitions of training, ``successors`` is their mean number per item with any,
    ``items_without`` the share of the catalogue without any.
    """
    transitions = Transitions.of(train)
    items = np.arange(1, n_items + 1)
    successors = transitions.successors(items)
    memorised = _share(transition_seen(train, test))
    return {
        "memorised": memorised,
        "generalised": None if memorised is None else 1 - memorised,
        "distinct": len(transitions),
        "successors": float(successors[successors > 0].mean()) if len(transitions) else None,
        "items_without": float((successors == 0).mean()) if n_items else None,
    }


def ties(test: Fold) -> dict[str, float | None]:
    """Share of the events of test users with the time of another one of the user, and of first targets with the last's.

    ``events`` is over histories, ``last_events`` over users whose first target is of the second of an event before.
    """
    tied, total = 0, 0
    for part in test.histories.parts():
        times, owner = part.timestamps, np.repeat(np.arange(len(part)), part.lengths)
        assert times is not None
        same = (owner[1:] == owner[:-1]) & (times[1:] == times[:-1])  # as the one before
        tied += int((np.append(False, same) | np.append(same, False)).sum())
        total += len(times)
    last, first = _last_and_first_times(test)
    return {"events": tied / total if total else None, "last_events": _share(last == first)}


def same_day(test: Fold, valid: Fold) -> dict[str, float | None]:
    """Share of users whose first test target is of the day (UTC) of the event before, or of the validation target.

    ``last_event`` is over test users with a history, ``validation_target`` over those who are in both folds.
    """
    last, first = _last_and_first_times(test)
    rows = test.histories.users.index_in(valid.histories.users)
    both = np.flatnonzero(rows >= 0)
    return {
        "last_event": _share(last // DAY == first // DAY),
        "validation_target": _share(_first_times(valid)[rows[both]] // DAY == _first_times(test)[both] // DAY),
    }


def global_time(train: Sequences, test: Fold) -> dict[str, float | int | None]:
    """Count training events later than test events, which a model in use could not know.

    ``after_first`` and ``after_median`` count the training events later than the first and the median test target, with
    their share of all. ``later_share`` is the mean over users of the share of training events later than their first
    target, ``users_with_later`` the share of users for whom there is any. A user's own training events are never later
    than his target, so all of these are of other users.
    """
    at = np.sort(_first_times(test))
    if not len(at) or not len(train.items):
        names = ("after_first", "after_first_share", "after_median", "after_median_share", "later_share")
        return dict.fromkeys((*names, "users_with_later"))
    later = _later_events(train, at)
    first, median = int(later[0]), int(later[(len(later) - 1) // 2])
    n_events = len(train.items)
    return {
        "after_first": first,
        "after_first_share": first / n_events,
        "after_median": median,
        "after_median_share": median / n_events,
        "later_share": float(later.mean() / n_events),
        "users_with_later": float((later > 0).mean()),
    }


def _later_events(train: Sequences, at: np.ndarray) -> np.ndarray:
    """Count the events of ``train`` later than each of the sorted times ``at`` (U,)."""
    counts = np.zeros(len(at) + 1, np.int64)  # of events by the number of times before them
    for times in _time_chunks(train):
        counts += np.bincount(np.searchsorted(at, times, side="left"), minlength=len(at) + 1)
    return np.asarray(counts[::-1].cumsum()[::-1][1:])


def time_curve(train: Sequences, test: Fold) -> dict[str, list[float]] | None:
    """Return cumulative shares of training events and of first test targets over time (seconds)."""
    at = np.sort(_first_times(test))
    if not len(at) or not len(train.items):
        return None
    low, high = int(at[0]), int(at[-1])
    for times in _time_chunks(train):
        low, high = min(low, int(times.min())), max(high, int(times.max()))
    points = np.unique(np.linspace(low, high, CURVE_POINTS).astype(np.int64))
    until = len(train.items) - _later_events(train, points)
    return {
        "time": points.tolist(),
        "targets": (np.searchsorted(at, points, side="right") / len(at)).tolist(),
        "train_events": (until / len(train.items)).tolist(),
    }


def _time_chunks(train: Sequences) -> Iterator[np.ndarray]:
    assert train.timestamps is not None
    for start in range(0, len(train.timestamps), EVENTS_AT_ONCE):
        yield train.timestamps[start : start + EVENTS_AT_ONCE]


def _first_times(fold: Fold) -> np.ndarray:
    """Times of the first target of each user (U,)."""
    times = fold.targets.timestamps
    assert times is not None
    return np.asarray(times[fold.targets.offsets[:-1]])


def _last_and_first_times(fold: Fold) -> tuple[np.ndarray, np.ndarray]:
    """Times of the last event and of the first target of users with a history, both (n,)."""
    histories, rows = fold.histories, np.flatnonzero(fold.histories.lengths)
    assert histories.timestamps is not None
    return histories.timestamps[histories.offsets[rows + 1] - 1], _first_times(fold)[rows]


def _share(mask: np.ndarray) -> float | None:
    return float(mask.mean()) if len(mask) else None
