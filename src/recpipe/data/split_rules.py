"""Rules that split each user's sequence into training, validation and test events. U users, N events."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np

from recpipe.config import DAYS
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import EVENTS_AT_ONCE, Sequences

log = logging.getLogger(__name__)

DAY = 86_400  # seconds
BIN_BITS = 16  # of the number of bins of a pass that looks for a quantile


@dataclass(frozen=True)
class Cuts:
    """Positions in each user's sequence (U,): targets are [start, stop), the history is everything before."""

    train_stop: np.ndarray
    valid_start: np.ndarray
    valid_stop: np.ndarray
    test_start: np.ndarray
    test_stop: np.ndarray


Rule = Callable[[Sequences], Cuts]


def _leave_one_out(sequences: Sequences, protocol: Protocol) -> Cuts:
    """Last target event: test; the one before: validation. Users without two, or with nothing before, only train."""
    n, one = sequences.lengths, np.ones_like(sequences.lengths)
    valid_at, test_at = sequences.target_positions(2 * one), sequences.target_positions(one)
    is_held_out = (sequences.target_counts() >= 2) & (valid_at > 0)
    valid_at, test_at = np.where(is_held_out, valid_at, n), np.where(is_held_out, test_at, n)
    return Cuts(valid_at, valid_at, test_at, test_at, n)


def _ratio(sequences: Sequences, protocol: Protocol) -> Cuts:
    """The last ``test`` share of each user's target events is test, the ``valid`` share before it validation."""
    n = sequences.target_counts()
    valid, test = _share(protocol.valid, "valid"), _share(protocol.test, "test")
    n_test, n_valid = (np.floor(n * share + 0.5).astype(np.int64) for share in (test, valid))
    n_test = np.minimum(n_test, n)
    test_at = sequences.target_positions(n_test)
    valid_at = sequences.target_positions(np.minimum(n_test + n_valid, n))
    return Cuts(valid_at, valid_at, test_at, test_at, sequences.lengths)


def _temporal(sequences: Sequences, protocol: Protocol) -> Rule:
    """One point in time for all users: a date, or the share of all target events that come after it.

    Histories go on until the user's first target event after that point.
    """
    if sequences.timestamps is None:
        raise ValueError("the temporal split needs timestamps and this data set has only an order; use leave_one_out")
    times = _TargetTimes(sequences.timestamps, sequences.is_target)
    test_from = _cut_time(times, protocol.test, "test", after=0.0)
    valid_from = _cut_time(times, protocol.valid, "valid", after=times.share(test_from))
    if not valid_from < test_from:
        raise ValueError(
            f"protocol.valid begins at {valid_from}, not before protocol.test at {test_from} (epoch seconds)"
        )

    return partial(_cuts_at, valid_from=valid_from, test_from=test_from)


def _rolling(sequences: Sequences, protocol: Protocol) -> Rule:
    """Test window of one fold, the validation window before it, training before that; later events are not used.

    Windows end with the last target event, or with its day (UTC) where ``protocol.test`` is in days, as
    TimeRangeSplitter of RecTools has them.
    """
    if sequences.timestamps is None:
        raise ValueError("the rolling split needs timestamps and this data set has only an order; use leave_one_out")
    folds, fold = protocol.folds, protocol.fold
    if fold is None:
        raise ValueError(f"protocol.split is rolling: choose one of its folds, protocol.fold=1 to {folds}")
    times = _TargetTimes(sequences.timestamps, sequences.is_target)
    first, end = times.first(), times.last() + 1
    if isinstance(protocol.test, str):
        end = -(-end // DAY) * DAY
    test, valid = (_window(getattr(protocol, name), name, span=end - first) for name in ("test", "valid"))
    test_from = end - (folds - fold + 1) * test
    if test_from - valid <= first:
        raise ValueError(
            f"fold {fold} of {folds} would be trained on events before {_iso(test_from - valid)} (UTC), and the first "
            f"event is of {_iso(first)}: lower protocol.folds, or shorten protocol.test ({protocol.test}) or "
            f"protocol.valid ({protocol.valid})"
        )
    return partial(_cuts_at, valid_from=test_from - valid, test_from=test_from, test_stop=test_from + test)


def _cuts_at(part: Sequences, *, valid_from: int, test_from: int, test_stop: int | None = None) -> Cuts:
    """Cut all users at the same times (epoch seconds); histories go on until the first target event of a part."""
    assert part.timestamps is not None
    owner, n = np.repeat(np.arange(len(part)), part.lengths), len(part)
    valid_at, test_at = (np.bincount(owner[part.timestamps < at], minlength=n) for at in (valid_from, test_from))
    valid_start, test_start = valid_at, test_at
    if part.is_target is not None:  # the first target event after each point
        later = [part.is_target & (part.timestamps >= moment) for moment in (valid_from, test_from)]
        valid_start, test_start = (part.target_positions(np.bincount(owner[mask], minlength=n)) for mask in later)
    stop = part.lengths if test_stop is None else np.bincount(owner[part.timestamps < test_stop], minlength=n)
    return Cuts(valid_at, valid_start, test_at, test_start, stop)


def _cold_users(sequences: Sequences, protocol: Protocol) -> Cuts:
    """All events of test and validation users, chosen by hash, are held out; their last target event is the target."""
    n = sequences.lengths
    hashes = np.fromiter((unit_hash(user, protocol.seed) for user in sequences.users), float, len(sequences))
    valid, test = _share(protocol.valid, "valid"), _share(protocol.test, "test")
    is_test, is_valid = hashes < test, (hashes >= test) & (hashes < test + valid)
    last, zero = np.where(n > 0, sequences.target_positions(np.ones_like(n)), 0), np.zeros_like(n)
    train_stop = np.where(is_test | is_valid, 0, n)
    valid_and_test = (np.where(group, place, zero) for group in (is_valid, is_test) for place in (last, n))
    return Cuts(train_stop, *valid_and_test)


def _none(sequences: Sequences, protocol: Protocol) -> Cuts:
    """All events are training events."""
    n = sequences.lengths
    return Cuts(n, n, n, n, n)


BY_TIME = {"temporal": _temporal, "rolling": _rolling}
BY_USER = {"leave_one_out": _leave_one_out, "ratio": _ratio, "cold_users": _cold_users, "none": _none}


def split_rule(sequences: Sequences, protocol: Protocol) -> Rule:
    """Return the cuts of ``protocol.split`` as a function of some of the users of ``sequences``."""
    if protocol.split in BY_TIME:
        return BY_TIME[protocol.split](sequences, protocol)
    return partial(BY_USER[protocol.split], protocol=protocol)


@dataclass(frozen=True)
class _TargetTimes:
    """Times of all target events, read in chunks."""

    times: np.ndarray  # (N,) int64 seconds
    is_target: np.ndarray | None  # (N,) bool

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.times), EVENTS_AT_ONCE):
            chunk = slice(start, start + EVENTS_AT_ONCE)
            yield self.times[chunk] if self.is_target is None else self.times[chunk][self.is_target[chunk]]

    def share(self, since: int) -> float:
        """Return the share of the events at or after ``since``."""
        return sum(int((chunk >= since).sum()) for chunk in self) / sum(map(len, self))

    def first(self) -> int:
        """Return the earliest time."""
        return min(int(chunk.min()) for chunk in self if len(chunk))

    def last(self) -> int:
        """Return the latest time."""
        return max(int(chunk.max()) for chunk in self if len(chunk))

    def quantile(self, q: float) -> int:
        """Return ``np.quantile(times, q, method="higher")``, by counts in ever finer bins."""
        place = int(np.ceil((sum(map(len, self)) - 1) * q))
        low, high = self.first(), self.last()
        while low < high:
            shift = max((high - low + 1).bit_length() - BIN_BITS, 0)
            counts = np.zeros(((high - low) >> shift) + 1, np.int64)
            for chunk in self:
                inside = chunk[(chunk >= low) & (chunk <= high)]
                counts += np.bincount((inside - low) >> shift, minlength=len(counts))
            ends = np.cumsum(counts)
            bin_ = int(np.searchsorted(ends, place, side="right"))
            place -= int(ends[bin_] - counts[bin_])
            low, high = low + (bin_ << shift), min(high, low + ((bin_ + 1) << shift) - 1)
        return low


def _share(value: float | str, name: str) -> float:
    if isinstance(value, str) or not 0 < float(value) < 1:
        raise ValueError(f"protocol.{name} is {value!r}; this split needs a share between 0 and 1")
    return float(value)


def _window(value: float | str, name: str, *, span: int) -> int:
    """Return the seconds of a window: days as ``14d``, or a share of the ``span`` of the log in seconds."""
    if isinstance(value, str) and DAYS.fullmatch(value):
        return int(value[:-1]) * DAY
    if isinstance(value, str) or not 0 < value < 1:
        raise ValueError(
            f"protocol.{name} is {value!r}; give the length of a window of the rolling split, as 14d (days) or as a "
            "share of the time between first and last event, such as 0.1"
        )
    return max(round(value * span), 1)


def _cut_time(times: _TargetTimes, value: float | str, name: str, *, after: float) -> int:
    """Return the epoch seconds at which a part begins, a share before the share ``after`` of later parts."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f"protocol.{name} is {value!r}; give an ISO date such as 2011-10-01 or a share") from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    share = _share(value, name)
    start = times.quantile(max(1 - after - share, 0))
    actual = times.share(start) - after
    if start == times.first():
        moments, counts = np.unique(np.concatenate(list(times)), return_counts=True)
        same, when = counts.max() / counts.sum(), _iso(moments[counts.argmax()])
        raise ValueError(
            f"protocol.{name} is {share:g} of the events and no event is left before that part: {same:.0%} of the "
            f"events share the moment {when}, too many for a temporal split by shares; use split: leave_one_out "
            "or ratio, or ISO dates for protocol.valid and protocol.test"
        )
    if actual > 1.5 * share:
        log.warning(
            "protocol.%s is %.0f%% of the events instead of %.0f%%, as many events share the moment %s",
            name, 100 * actual, 100 * share, _iso(start),
        )  # fmt: skip
    return start


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%d %H:%M:%S")


def unit_hash(key: str, seed: int) -> float:
    """Hash an id and the seed to [0, 1)."""
    return int(hashlib.md5(f"{key}{seed}".encode(), usedforsecurity=False).hexdigest()[:8], 16) / 2**32
