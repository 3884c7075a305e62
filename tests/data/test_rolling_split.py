"""Rolling folds of time: windows against brute force and RecTools' splitter, no event of the future in training."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences

from recpipe.data.protocol import Protocol
from recpipe.data.splits import split

DAY = 86_400


def log(users=120, days=100, seed=0):
    """Sequences whose events are spread over ``days``, in order of time."""
    data = random_sequences(users, 40, longest=40, seed=seed)
    rng = np.random.default_rng(seed)
    times = rng.integers(0, days * DAY, len(data.items)) + 19_000 * DAY
    for start, stop in zip(data.offsets[:-1], data.offsets[1:], strict=True):
        times[start:stop] = np.sort(times[start:stop])
    return replace(data, timestamps=times)


def rolling(fold, **fields):
    return Protocol(dataset="x", split="rolling", fold=fold, **fields)


def by_brute_force(data, fold, folds, test, valid, end, targets):
    """Training items, and (history, targets) of both folds, by user: a loop over all events."""
    test_from = end - (folds - fold + 1) * test
    windows = {"valid": (test_from - valid, test_from), "test": (test_from, test_from + test)}
    parts = {"train": {}, "valid": {}, "test": {}}
    for user, start, stop in zip(data.users, data.offsets[:-1], data.offsets[1:], strict=True):
        events = list(zip(data.items[start:stop].tolist(), data.timestamps[start:stop].tolist(), strict=True))
        if train := [item for item, time in events if time < test_from - valid]:
            parts["train"][user] = train
        for name, (begin, until) in windows.items():
            history = [item for item, time in events if time < begin]
            later = [item for item, time in events if begin <= time < until]
            later = later[:1] if targets == "next" else list(dict.fromkeys(later))
            if history and later:
                parts[name][user] = (history, later)
    return parts


def rows(part):
    return {user: part.row(u).tolist() for u, user in enumerate(part.users)}


@pytest.mark.parametrize("targets", ["next", "all"])
@pytest.mark.parametrize(("test", "valid"), [("14d", "7d"), (0.1, 0.05), ("7d", 0.1)])
def test_folds_are_those_of_a_loop_over_all_events(targets, test, valid) -> None:
    data, folds = log(), 3
    first, last = int(data.timestamps.min()), int(data.timestamps.max())
    end = -(-(last + 1) // DAY) * DAY if isinstance(test, str) else last + 1
    test_seconds, valid_seconds = (
        int(length[:-1]) * DAY if isinstance(length, str) else round(length * (end - first)) for length in (test, valid)
    )
    for fold in range(1, folds + 1):
        cut = split(data, rolling(fold, folds=folds, test=test, valid=valid, targets=targets))
        expected = by_brute_force(data, fold, folds, test_seconds, valid_seconds, end, targets)
        assert rows(cut.train) == expected["train"]
        for name in ("valid", "test"):
            part = getattr(cut, name)
            histories, later = rows(part.histories), rows(part.targets)
            assert {user: (histories[user], later[user]) for user in histories} == expected[name]


@pytest.mark.parametrize("typed", [False, True])
def test_training_knows_nothing_of_the_future_and_windows_follow_each_other(typed) -> None:
    data = log(seed=3)
    data = replace(data, is_target=np.random.default_rng(1).random(len(data.items)) < 0.5) if typed else data
    ends = []
    for fold in range(1, 5):
        cut = split(data, rolling(fold, folds=4, test="10d", valid="5d", targets="all"))
        valid, test = cut.valid.targets.timestamps, cut.test.targets.timestamps
        assert cut.train.timestamps.max() < valid.min() and valid.max() < test.min()
        assert test.max() - test.min() < 10 * DAY and valid.max() - valid.min() < 5 * DAY
        assert cut.test.histories.timestamps.max() <= test.max()
        if ends:
            assert test.min() > ends[-1]
        ends.append(test.max())
    everything = data.timestamps if data.is_target is None else data.timestamps[data.is_target]
    assert ends[-1] >= everything.max() - DAY  # the last window ends with the log


def test_windows_of_days_are_those_of_rectools() -> None:
    """RecTools 0.19, TimeRangeSplitter("14D", n_splits=3).get_test_fold_borders on dates 2022-01-08 to 2022-04-17."""
    expected = [("2022-03-07", "2022-03-21"), ("2022-03-21", "2022-04-04"), ("2022-04-04", "2022-04-18")]
    seconds = [
        int(datetime(2022, 1, 8, 12, tzinfo=UTC).timestamp()),
        int(datetime(2022, 4, 17, 9, tzinfo=UTC).timestamp()),
    ]
    times = np.linspace(*seconds, 400).astype(np.int64)
    data = sequences([list(range(1, 5))] * 100)
    data = replace(data, timestamps=np.sort(times.reshape(4, 100).T, axis=1).ravel())
    for fold, (begin, until) in enumerate(expected, 1):
        cut = split(data, rolling(fold, test="14d", valid="7d", targets="all"))
        low, high = (int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) for day in (begin, until))
        test_times = np.sort(cut.test.targets.timestamps)
        np.testing.assert_array_equal(test_times, times[(times >= low) & (times < high)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"fold": None}, "choose one of its folds, protocol.fold=1 to 3"),
        ({"fold": 1, "test": "60d"}, r"fold 1 of 3 would be trained on events before .* lower protocol.folds"),
        ({"fold": 1, "test": "two weeks"}, "protocol.test is 'two weeks'; give the length of a window"),
        ({"fold": 1, "valid": 3}, "protocol.valid is 3; give the length of a window"),
    ],
)
def test_impossible_folds_are_refused(fields, message) -> None:
    with pytest.raises(ValueError, match=message):
        split(log(), rolling(**fields))


def test_a_log_without_times_has_no_folds() -> None:
    with pytest.raises(ValueError, match="rolling split needs timestamps and this data set has only an order"):
        split(sequences([[1, 2, 3]], times=False), rolling(1))
