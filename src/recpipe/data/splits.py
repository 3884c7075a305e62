"""Training data of a split: protocol, vocabulary, training set and validation fold, without the test fold.

Cuts sequences into training data, a validation fold and a test fold.

The three are compact copies: fitting code gets no object that holds a test target. U users, N events.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.data.atomic import atomic_file
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import EVENT_COLUMNS, Fold, Sequences, Vocabulary

PROTOCOL, VOCABULARY, TRAIN, VALID = (
    "protocol.json",
    "vocabulary.parquet",
    "train_set.parquet",
    "valid_set.parquet",
)


class TrainingData:
    """Protocol, vocabulary, training set and validation fold; those of a folder are read at their first use."""

    def __init__(
        self, protocol_fields: dict[str, Any], vocabulary: Vocabulary, train_set: Sequences, valid_set: Fold
    ) -> None:
        self.protocol_fields, self.vocabulary, self.train_set, self.valid_set = (
            protocol_fields,
            vocabulary,
            train_set,
            valid_set,
        )

    @cached_property
    def protocol_fields(self) -> dict[str, Any]:
        """The protocol as JSON, with its ``id`` and the ``sizes`` of the parts."""
        fields: dict[str, Any] = json.loads((self._folder / PROTOCOL).read_text(encoding="utf-8"))
        return fields

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol that the log was split under."""
        return Protocol.from_dict(self.protocol_fields)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Items in the order of their numbers."""
        return Vocabulary.read(self._folder / VOCABULARY)

    @cached_property
    def train_set(self) -> Sequences:
        """Training events of all users."""
        return Sequences.read(self._folder / TRAIN)

    @cached_property
    def valid_set(self) -> Fold:
        """The validation fold, for model selection only."""
        return Fold.read(self._folder / VALID)

    @classmethod
    def read(cls, folder: Path) -> TrainingData:
        """Open a folder. Raises FileNotFoundError for a missing file, with the command that writes it."""
        for name in (PROTOCOL, VOCABULARY, TRAIN, VALID):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; run `kedro run --pipelines=train`")
        data = cls.__new__(cls)
        data._folder = folder
        return data

    _folder: Path

    def write(self, folder: Path) -> None:
        """Write a folder, the protocol first: after a crash half-way, bundles of the earlier split do not fit it."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / PROTOCOL) as part:
            part.write_text(json.dumps(self.protocol_fields, indent=4), encoding="utf-8")
        self.vocabulary.write(folder / VOCABULARY)
        self.train_set.write(folder / TRAIN)
        self.valid_set.write(folder / VALID)


NONE = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Split:
    """``train`` is all that fitting may see besides ``valid``, which serves selection only; neither has an event of
    the items ``held_out`` (n,).
    """

    train: Sequences
    valid: Fold
    test: Fold
    held_out: np.ndarray = field(default_factory=lambda: NONE)

    def sizes(self) -> dict[str, int]:
        """Users and events of each part, the test targets that training never saw, items held out and the test
        users who have one as a target.
        """
        known = np.unique(self.train.items)
        owner = np.repeat(np.arange(len(self.test)), self.test.targets.lengths)
        asked = np.isin(self.test.targets.items, self.held_out)
        return {
            "train_users": len(self.train),
            "train_events": len(self.train.items),
            "valid_users": len(self.valid),
            "valid_targets": len(self.valid.targets.items),
            "test_users": len(self.test),
            "test_targets": len(self.test.targets.items),
            "cold_test_targets": int(np.isin(self.test.targets.items, known, invert=True).sum()),
            "held_out_items": len(self.held_out),
            "held_out_test_users": len(np.unique(owner[asked])),
        }


def split(sequences: Sequences, protocol: Protocol, vocabulary: Vocabulary | None = None) -> Split:
    """Applies ``protocol.split``, then takes the items held out from training and validation.

    Each rule gives every user two cuts, valid_at <= test_at: events before the first are training, those between
    are validation targets, the rest test targets. A user whose part lacks a history or a target is left out of
    that fold. ``vocabulary`` is needed where items are held out: they are chosen by their ids. Raises ValueError
    where a fold would be empty, or no test target held out.
    """
    rule = {
        "leave_one_out": _leave_one_out,
        "ratio": _ratio,
        "temporal": _temporal,
        "cold_users": _cold_users,
    }
    held_out = held_out_items(vocabulary, protocol)
    cuts = rule[protocol.split](sequences, protocol)
    rows = np.arange(len(sequences))
    train = _without(sequences.select(rows, np.zeros_like(rows), cuts.train_stop), held_out)
    valid = _fold(sequences, cuts.valid_start, cuts.valid_stop, protocol.targets)
    valid = Fold(_without(valid.histories, held_out), _without(valid.targets, held_out))
    kept = (valid.histories.lengths > 0) & (valid.targets.lengths > 0)
    result = Split(
        _chosen(train, train.lengths > 0),
        Fold(_chosen(valid.histories, kept), _chosen(valid.targets, kept)),
        _fold(sequences, cuts.test_start, cuts.test_stop, protocol.targets),
        held_out,
    )
    for name, part in (("training", result.train), ("validation", result.valid), ("test", result.test)):
        if len(part) == 0:
            raise ValueError(
                f"the {protocol.split} split leaves no user for {name}, of {len(sequences)} users with a median of "
                f"{np.median(sequences.lengths):.0f} events; see protocol.split, .valid, .test and .held_out_items "
                "in the conf"
            )
    if protocol.held_out_items and not np.isin(result.test.targets.items, held_out).any():
        raise ValueError(
            f"protocol.held_out_items is {protocol.held_out_items} and none of the {len(held_out)} items that it "
            "holds out is a test target; give a larger share or another protocol.seed"
        )
    return result


def held_out_items(vocabulary: Vocabulary | None, protocol: Protocol) -> np.ndarray:
    """The items (n,) that ``protocol`` holds out, each by a hash of its id, whatever others there are."""
    if not protocol.held_out_items:
        return NONE
    if vocabulary is None:
        raise ValueError("protocol.held_out_items chooses items by their ids; give split the vocabulary")
    draw = np.array([_unit(f"item {item} ", protocol.seed) for item in vocabulary.ids.tolist()])
    return (np.flatnonzero(draw < protocol.held_out_items) + 1).astype(np.int32)


def with_validation(train: Sequences, valid: Fold) -> Sequences:
    """``train`` with the targets of ``valid`` behind its users' events; users that only ``valid`` has come last."""
    rows = np.flatnonzero(~np.isin(valid.histories.users, train.users))
    histories = valid.histories.select(rows, np.zeros_like(rows), valid.histories.lengths[rows])
    parts = (train, histories, valid.targets)
    users = np.concatenate([train.users, histories.users])
    known = pc.index_in(pa.array(valid.targets.users, pa.string()), pa.array(users, pa.string()))
    firsts = (np.arange(len(train)), len(train) + np.arange(len(histories)), known.to_numpy())
    owner = np.concatenate([np.repeat(row, part.lengths) for row, part in zip(firsts, parts, strict=True)])
    order = np.argsort(owner, kind="stable")

    def joined(name: str) -> np.ndarray | None:
        """None where no part knows it, NaN where one does not."""
        values = [getattr(part, name) for part in parts]
        if all(value is None for value in values):
            return None
        filled = [
            np.full(len(part.items), np.nan, np.float32) if value is None else value
            for value, part in zip(values, parts, strict=True)
        ]
        return np.concatenate(filled)[order]

    items = np.concatenate([part.items for part in parts])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))]).astype(np.int64)
    profiles = {
        name: pa.concat_arrays([column, histories.profiles[name].cast(column.type)])
        for name, column in train.profiles.items()
    }
    return Sequences(users, items, joined("timestamps"), offsets, joined("ratings"), profiles)


@dataclass(frozen=True)
class _Cuts:
    """Positions inside each user's sequence (U,): targets are [start, stop), the history is what comes before."""

    train_stop: np.ndarray
    valid_start: np.ndarray
    valid_stop: np.ndarray
    test_start: np.ndarray
    test_stop: np.ndarray


def _fold(sequences: Sequences, start: np.ndarray, stop: np.ndarray, targets: str) -> Fold:
    rows = np.flatnonzero((start > 0) & (stop > start))
    start, stop = start[rows], stop[rows]
    if targets == "next":
        stop = start + 1
    wanted = _distinct(sequences.select(rows, start, stop))
    return Fold(sequences.select(rows, np.zeros_like(start), start), wanted)


def _distinct(targets: Sequences) -> Sequences:
    """Each user's targets without repeats: an item can be found only once."""
    owner = np.repeat(np.arange(len(targets)), targets.lengths)
    _, first = np.unique(np.stack([owner, targets.items]), axis=1, return_index=True)
    return _kept(targets, np.isin(np.arange(len(owner)), first))


def _without(sequences: Sequences, items: np.ndarray) -> Sequences:
    """The same users without their events of ``items`` (n,)."""
    return _kept(sequences, np.isin(sequences.items, items, invert=True))


def _kept(sequences: Sequences, events: np.ndarray) -> Sequences:
    """The same users with those of their events that ``events`` (N,) marks."""
    if events.all():
        return sequences
    offsets = np.concatenate([[0], np.cumsum(events)])[sequences.offsets]
    known = {name: getattr(sequences, name) for name in ("items", *EVENT_COLUMNS)}
    chosen = {name: values[events] for name, values in known.items() if values is not None}
    return replace(sequences, offsets=offsets, **chosen)


def _chosen(sequences: Sequences, users: np.ndarray) -> Sequences:
    """The users that ``users`` (U,) marks."""
    rows = np.flatnonzero(users)
    return sequences.select(rows, np.zeros_like(rows), sequences.lengths[rows])


def _leave_one_out(sequences: Sequences, protocol: Protocol) -> _Cuts:
    """Last event: test; the one before: validation. Users of fewer than three events only train."""
    n = sequences.lengths
    long = n >= 3
    valid_at, test_at = np.where(long, n - 2, n), np.where(long, n - 1, n)
    return _Cuts(valid_at, valid_at, test_at, test_at, n)


def _ratio(sequences: Sequences, protocol: Protocol) -> _Cuts:
    """The last ``test`` share of each user's events is test, the ``valid`` share before it validation."""
    n = sequences.lengths
    valid, test = _share(protocol.valid, "valid"), _share(protocol.test, "test")
    test_at = n - np.floor(n * test + 0.5).astype(np.int64)
    valid_at = np.maximum(test_at - np.floor(n * valid + 0.5).astype(np.int64), 0)
    return _Cuts(valid_at, valid_at, test_at, test_at, n)


def _temporal(sequences: Sequences, protocol: Protocol) -> _Cuts:
    """One point in time for all users: given as a date, or as the share of all events that come after it."""
    times = sequences.timestamps
    if times is None:
        raise ValueError(
            "the temporal split needs timestamps and this data set has only an order; use leave_one_out"
        )
    test_from = _moment(times, protocol.test, "test", after=0.0)
    share_after = float(np.mean(times >= test_from))
    valid_from = _moment(times, protocol.valid, "valid", after=share_after)
    if not valid_from < test_from:
        raise ValueError(
            f"protocol.valid begins at {valid_from}, not before protocol.test at {test_from} (epoch seconds)"
        )
    owner = np.repeat(np.arange(len(sequences)), sequences.lengths)
    before = [
        np.bincount(owner[times < moment], minlength=len(sequences)) for moment in (valid_from, test_from)
    ]
    return _Cuts(before[0], before[0], before[1], before[1], sequences.lengths)


def _cold_users(sequences: Sequences, protocol: Protocol) -> _Cuts:
    """Whole users are held out, chosen by hash: their last event is the target and none of their events train."""
    n = sequences.lengths
    draw = np.array([_unit(user, protocol.seed) for user in sequences.users.tolist()])
    valid, test = _share(protocol.valid, "valid"), _share(protocol.test, "test")
    is_test, is_valid = draw < test, (draw >= test) & (draw < test + valid)
    last, none = np.maximum(n - 1, 0), np.zeros_like(n)
    return _Cuts(
        np.where(is_test | is_valid, 0, n),
        np.where(is_valid, last, none),
        np.where(is_valid, n, none),
        np.where(is_test, last, none),
        np.where(is_test, n, none),
    )


def _share(value: float | str, name: str) -> float:
    if isinstance(value, str) or not 0 < float(value) < 1:
        raise ValueError(f"protocol.{name} is {value!r}; this split needs a share between 0 and 1")
    return float(value)


def _moment(times: np.ndarray, value: float | str, name: str, *, after: float) -> int:
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(
                f"protocol.{name} is {value!r}; give an ISO date such as 2011-10-01 or a share"
            ) from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    return int(np.quantile(times, 1 - after - _share(value, name), method="higher"))


def _unit(user: str, seed: int) -> float:
    """A number in [0, 1) that depends on the user's id and the seed only."""
    return int(hashlib.md5(f"{user}{seed}".encode(), usedforsecurity=False).hexdigest()[:8], 16) / 2**32
