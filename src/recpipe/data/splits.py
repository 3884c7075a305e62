"""Splits of sequences into training set, validation fold and test fold, and the folder of training data.

The parts are separate copies: code that fits models gets no object that contains a test target. U users, N events.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recpipe.data.atomic import atomic_file
from recpipe.data.digests import MANIFEST, manifest, verified, verify_folder
from recpipe.data.part_writer import PartWriter
from recpipe.data.protocol import Protocol
from recpipe.data.sequence_files import missing_file
from recpipe.data.sequences import EVENT_COLUMNS, Fold, Sequences, Vocabulary, count_items, row_ranges
from recpipe.data.split_rules import split_rule, unit_hash

PROTOCOL, VOCABULARY = "protocol.json", "vocabulary.parquet"
TRAIN, VALID, TEST = "train_set.arrow", "valid_set.arrow", "test_set.arrow"
NO_ITEMS = np.zeros(0, np.int32)


@dataclass(frozen=True)
class Split:
    """Training set, validation fold, test fold; only the last has events of the items ``held_out`` (n,)."""

    train: Sequences
    valid: Fold
    test: Fold
    held_out: np.ndarray = field(default_factory=lambda: NO_ITEMS)

    def sizes(self) -> dict[str, int]:
        """Count users and events of every part, seen and cold targets, held-out items and their test users."""
        test_targets = self.test.targets.items
        owner = np.repeat(np.arange(len(self.test)), self.test.targets.lengths)
        last_item = max(test_targets.max(initial=0), self.train.items.max(initial=0))
        train_events = count_items(self.train.items, int(last_item))
        return {
            "train_users": len(self.train),
            "train_events": len(self.train.items),
            "valid_users": len(self.valid),
            "valid_targets": len(self.valid.targets.items),
            "valid_seen_targets": int(self.valid.seen_targets().sum()),
            "test_users": len(self.test),
            "test_targets": len(test_targets),
            "test_seen_targets": int(self.test.seen_targets().sum()),
            "cold_test_targets": int((train_events[test_targets] == 0).sum()),
            "held_out_items": len(self.held_out),
            "held_out_test_users": len(np.unique(owner[np.isin(test_targets, self.held_out)])),
        }


class TrainingData:
    """Protocol (JSON with ``id`` and ``sizes``), vocabulary, training set, validation fold; read when first used."""

    _folder: Path
    protocol_fields = cached_property(lambda self: json.loads(verified(self._folder / PROTOCOL).read_text("utf-8")))
    protocol = cached_property(lambda self: Protocol.from_dict(self.protocol_fields))
    vocabulary = cached_property(lambda self: Vocabulary.read(self._folder / VOCABULARY))
    train_set = cached_property(lambda self: Sequences.read(self._folder / TRAIN))
    valid_set = cached_property(lambda self: Fold.read(self._folder / VALID))

    def __init__(
        self, protocol_fields: dict[str, Any], vocabulary: Vocabulary, train_set: Sequences, valid_set: Fold
    ) -> None:
        self.protocol_fields, self.vocabulary = protocol_fields, vocabulary
        self.train_set, self.valid_set = train_set, valid_set

    @classmethod
    def read(cls, folder: Path) -> TrainingData:
        """Open a folder. Raises FileNotFoundError for a missing file, with the command that writes it.

        Raises DigestError where a file is damaged, or of another split than the others.
        """
        for name in (PROTOCOL, VOCABULARY, TRAIN, VALID):
            if not (folder / name).is_file():
                raise missing_file(folder / name)
        verify_folder(folder, "run `kedro run --pipelines=train`, or copy all files of the split", allow_others=True)
        data = cls.__new__(cls)
        data._folder = folder
        return data

    def check_test_set(self, test_set: Fold) -> None:
        """Raise ValueError for a test fold of another split; those of older versions have no fingerprint."""
        fingerprint = self.protocol_fields.get("test_set")
        if fingerprint is not None and test_set.fingerprint() != fingerprint:
            raise ValueError(
                "test_set.arrow is of another split than the training data: run `kedro run --pipelines=train`"
            )

    def write(self, folder: Path) -> None:
        """Write a folder, the manifest last: after a crash, parts of two splits do not match it."""
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_file(folder / PROTOCOL) as part:
            part.write_text(json.dumps(self.protocol_fields, indent=4), encoding="utf-8")
        self.vocabulary.write(folder / VOCABULARY)
        self.train_set.write(folder / TRAIN)
        self.valid_set.write(folder / VALID)
        files = {name: folder / name for name in (PROTOCOL, VOCABULARY, TRAIN, VALID)}
        with atomic_file(folder / MANIFEST, digest=False) as part:
            part.write_text(manifest(files), encoding="utf-8")


def split(sequences: Sequences, protocol: Protocol, vocabulary: Vocabulary | None = None) -> Split:
    """Split sequences by ``protocol.split`` and remove the held-out items from training and validation.

    Every rule gives each user two cuts, valid_at <= test_at: events before the first are training, those between are
    validation targets, the others test targets; of them only events of ``protocol.target_events`` are targets, and the
    history is everything before the first target. A user without a history or a target in a fold is left out of it.
    ``vocabulary`` is needed for held-out items, which are chosen by their ids. The split ``none`` has empty folds.
    Raises ValueError for an empty part of another, and for held-out items that are no test targets.
    """
    held_out = held_out_items(vocabulary, protocol)
    parts = list(_parts(sequences, protocol, held_out))
    train, valid, test = ([getattr(part, name) for part in parts] for name in ("train", "valid", "test"))
    return Split(Sequences.concatenate(train), Fold.concatenate(valid), Fold.concatenate(test), held_out)


def split_to(folder: Path, sequences: Sequences, protocol: Protocol, vocabulary: Vocabulary | None = None) -> Split:
    """Split as ``split`` does, in bounded memory: write the parts to ``folder`` and map them into memory.

    The files are ``train_set.arrow``, ``valid_set.arrow`` and ``test_set.arrow``; after an error there are none.
    """
    held_out = held_out_items(vocabulary, protocol)
    names = [name for name in ("items", *EVENT_COLUMNS) if getattr(sequences, name) is not None]
    paths = [folder / name for name in (TRAIN, VALID, TEST)]
    with ExitStack() as stack:
        writers = [stack.enter_context(PartWriter(path, names, is_fold=path.name != TRAIN)) for path in paths]
        for part in _parts(sequences, protocol, held_out):
            for writer, name in zip(writers, ("train", "valid", "test"), strict=True):
                writer.append(getattr(part, name))
        for writer in writers:
            writer.close()
    train = Sequences.read(paths[0], check=False)  # files that this process has just written
    valid, test = (Fold.read(path, check=False) for path in paths[1:])
    return Split(train, valid, test, held_out)


def _parts(sequences: Sequences, protocol: Protocol, held_out: np.ndarray) -> Iterator[Split]:
    """Yield the splits of consecutive users, each in memory. Raises ValueError behind the last, see ``split``."""
    rule, next_only = split_rule(sequences, protocol), protocol.targets == "next"
    sizes, n_held_out = np.zeros(3, np.int64), 0
    for users in sequences.parts():
        cuts, rows = rule(users), np.arange(len(users))
        train = _without_items(users.select(rows, np.zeros_like(rows), cuts.train_stop), held_out)
        valid = _fold(users, cuts.valid_start, cuts.valid_stop, next_only=next_only)
        valid = Fold(_without_items(valid.histories, held_out), _without_items(valid.targets, held_out))
        part = Split(
            train.select_users(np.flatnonzero(train.lengths > 0)),
            valid.select(np.flatnonzero((valid.histories.lengths > 0) & (valid.targets.lengths > 0))),
            _fold(users, cuts.test_start, cuts.test_stop, next_only=next_only),
            held_out,
        )
        sizes += (len(part.train), len(part.valid), len(part.test))
        n_held_out += int(np.isin(part.test.targets.items, held_out).sum())
        yield part
    for name, size in zip(("training", "validation", "test"), sizes, strict=True):
        if size == 0 and (protocol.holds_out or name == "training"):
            raise ValueError(
                f"the {protocol.split} split leaves no user for {name}, of {len(sequences)} users with a median of "
                f"{np.median(sequences.lengths):.0f} events; see protocol.split, .valid, .test and .held_out_items "
                "in the conf"
            )
    if protocol.held_out_items and not n_held_out:
        raise ValueError(
            f"protocol.held_out_items is {protocol.held_out_items} and none of the {len(held_out)} items that it "
            "holds out is a test target; give a larger share or another protocol.seed"
        )


def held_out_items(vocabulary: Vocabulary | None, protocol: Protocol) -> np.ndarray:
    """Choose the items (n,) that ``protocol`` holds out, by a hash of their ids, independent of other items.

    Raises ValueError without a vocabulary to choose from.
    """
    if not protocol.held_out_items:
        return NO_ITEMS
    if vocabulary is None:
        raise ValueError("protocol.held_out_items chooses items by their ids; give split the vocabulary")
    hashes = np.array([unit_hash(f"item {item} ", protocol.seed) for item in vocabulary.ids.tolist()])
    return (np.flatnonzero(hashes < protocol.held_out_items) + 1).astype(np.int32)


def with_validation(train: Sequences, valid: Fold) -> Sequences:
    """Append histories and targets of ``valid`` to the events of their users; users of ``valid`` alone come last."""
    place = valid.histories.users.index_in(train.users)
    order = np.argsort(place, kind="stable")
    new, known = np.split(order, [np.searchsorted(place[order], 0)])
    parts = []
    for start, stop in row_ranges(train.offsets):
        first, last = np.searchsorted(place[known], [start, stop])
        rows = known[first:last]
        parts.append(_appended(train.slice(start, stop), valid.select(rows), place[rows] - start))
    only = valid.select(new)
    users = replace(
        train.slice(0, 0),
        users=only.histories.users,
        offsets=np.zeros(len(new) + 1, np.int64),
        profiles={name: only.histories.profiles[name].cast(column.type) for name, column in train.profiles.items()},
    )
    return Sequences.concatenate([*parts, _appended(users, only, np.arange(len(new)))])


def _appended(train: Sequences, valid: Fold, users: np.ndarray) -> Sequences:
    """Append the events of ``valid`` to the rows ``users`` (n,) of ``train``: histories behind its events, targets."""
    later = valid.histories.select(np.arange(len(valid)), train.lengths[users], valid.histories.lengths)
    parts, rows = (train, later, valid.targets), (np.arange(len(train)), users, users)
    owner = np.concatenate([np.repeat(row, part.lengths) for row, part in zip(rows, parts, strict=True)])
    order = np.argsort(owner, kind="stable")

    def merge(name: str) -> np.ndarray | None:
        """Merge values of all parts: None if no part has any, NaN for a part without."""
        values = [(getattr(part, name), len(part.items)) for part in parts]
        if all(value is None for value, _ in values):
            return None
        return np.concatenate([np.full(n, np.nan, np.float32) if x is None else x for x, n in values])[order]

    items = np.concatenate([part.items for part in parts])[order]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(train)))]).astype(np.int64)
    events = {name: merge(name) for name in EVENT_COLUMNS}
    return Sequences(train.users, items, offsets=offsets, profiles=train.profiles, **events)


def _fold(sequences: Sequences, start: np.ndarray, stop: np.ndarray, *, next_only: bool) -> Fold:
    """Create a fold without repeated targets of a user, since a list contains an item once."""
    rows = np.flatnonzero((start > 0) & (stop > start))
    start, stop = start[rows], (start + 1 if next_only else stop)[rows]
    histories, targets = sequences.select(rows, np.zeros_like(start), start), sequences.select(rows, start, stop)
    if targets.is_target is not None:
        targets = _filter_events(targets, targets.is_target)
    owner = np.repeat(np.arange(len(targets)), targets.lengths)
    _, first = np.unique(np.stack([owner, targets.items]), axis=1, return_index=True)
    return Fold(histories, _filter_events(targets, np.isin(np.arange(len(owner)), first)))


def _without_items(sequences: Sequences, items: np.ndarray) -> Sequences:
    """Remove the events of ``items`` (n,)."""
    if not len(items):
        return sequences
    return _filter_events(sequences, np.isin(sequences.items, items, invert=True))


def _filter_events(sequences: Sequences, mask: np.ndarray) -> Sequences:
    """Select the events where ``mask`` (N,) is True; all users remain."""
    if mask.all():
        return sequences
    offsets = np.concatenate([[0], np.cumsum(mask)])[sequences.offsets]
    columns = {name: getattr(sequences, name) for name in ("items", *EVENT_COLUMNS)}
    filtered = {name: values[mask] for name, values in columns.items() if values is not None}
    return replace(sequences, offsets=offsets, **filtered)
