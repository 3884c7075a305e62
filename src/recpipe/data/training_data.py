"""Training data of a split: protocol, vocabulary, training set and validation fold, without the test fold."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from recpipe.data.atomic import replaced_file
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary

PROTOCOL, VOCABULARY, TRAIN, VALID = (
    "protocol.json",
    "vocabulary.parquet",
    "train_set.parquet",
    "valid_set.parquet",
)


class TrainingData:
    """Protocol, vocabulary, training set and validation fold; those of a folder are read at their first use."""

    def __init__(
        self, split: dict[str, Any], vocabulary: Vocabulary, train_set: Sequences, valid_set: Fold
    ) -> None:
        self.split, self.vocabulary, self.train_set, self.valid_set = split, vocabulary, train_set, valid_set

    @cached_property
    def split(self) -> dict[str, Any]:
        """The protocol as JSON, with its ``id`` and the ``sizes`` of the parts."""
        fields: dict[str, Any] = json.loads((self._folder / PROTOCOL).read_text(encoding="utf-8"))
        return fields

    @cached_property
    def protocol(self) -> Protocol:
        """The protocol that the log was split under."""
        return Protocol.from_dict(self.split)

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
        with replaced_file(folder / PROTOCOL) as part:
            part.write_text(json.dumps(self.split, indent=4), encoding="utf-8")
        self.vocabulary.write(folder / VOCABULARY)
        self.train_set.write(folder / TRAIN)
        self.valid_set.write(folder / VALID)
