"""The protocol: everything besides the model that moves a metric. Its id is stamped on every number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recpipe.config import check_known

SPLITS = ("leave_one_out", "temporal", "ratio", "cold_users")
TIME_CHOICES = ("none", "last_item", "query")  # each allows what the one before does
CHOICES = {
    "split": SPLITS,
    "targets": ("next", "all"),
    "ties": ("source", "shuffle"),
    "candidates": ("full",),
    "time": TIME_CHOICES,
}
DERIVED_FIELDS = ("id", "sizes")  # of a split on disk
EVALUATION_FIELDS = ("exclude_seen", "candidates", "time", "cutoffs")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a data set is cut into training, validation and test, and how a model is judged on it.

    ``valid`` and ``test`` are shares for ``ratio``, ``cold_users`` and ``temporal``, or, for ``temporal``, the ISO date
    at which that part begins; ``leave_one_out`` does not read them. ``seed`` matters to shuffled ties, to cold users
    and to held-out items: ``held_out_items`` is the share of the catalogue that training and validation never see.
    ``time`` is the most that a model may use to weigh the past: ``none``; ``last_item``, how long before the last
    event the others were; ``query``, how long before the moment of the question, which folds tell only then.
    """

    dataset: str
    fingerprint: str = ""  # of the sequences before the split: Sequences.fingerprint
    steps: tuple[str, ...] = ()  # cleaning and sampling that led there, for the reader
    split: str = "leave_one_out"
    valid: float | str = 0.1
    test: float | str = 0.1
    targets: str = "next"
    ties: str = "source"
    seed: int = 42
    held_out_items: float = 0.0
    history: int = 200
    exclude_seen: bool = True
    candidates: str = "full"
    time: str = "none"
    cutoffs: tuple[int, ...] = (1, 5, 10, 20)

    def __post_init__(self) -> None:
        for name in ("steps", "cutoffs"):  # lists of conf and JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for field, allowed in CHOICES.items():
            if (value := getattr(self, field)) not in allowed:
                raise ValueError(f"protocol.{field} is {value!r}; allowed: {', '.join(allowed)}")
        if self.history < 1:
            raise ValueError(
                f"protocol.history is {self.history}; it is the number of events a model sees, at least 1"
            )
        share = self.held_out_items
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(
                f"protocol.held_out_items is {share!r}; it is a share of the items, from 0 to below 1"
            )
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ValueError(
                f"protocol.cutoffs is {self.cutoffs}; give at least one cut-off, each at least 1"
            )
        if self.split == "leave_one_out" and self.targets == "all":
            raise ValueError(
                "protocol.targets=all has no meaning under leave_one_out, which has one target per user"
            )

    def check_time(self, used: str, *, model: str) -> None:
        """Raises ValueError if a model that needs ``used`` of time may not be judged under this protocol."""
        if TIME_CHOICES.index(used) > TIME_CHOICES.index(self.time):
            allowed = " and ".join(TIME_CHOICES[: TIME_CHOICES.index(self.time) + 1])
            raise ValueError(
                f"{model} uses time as {used} and protocol.time is {self.time}, which allows "
                f"{allowed}; use --params protocol.time={used}, "
                "which is a protocol of its own"
            )

    @property
    def id(self) -> str:
        """Eight hex digits: equal ids mean comparable numbers. Fields that a split ignores do not enter."""
        fields = self._used()
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]

    def _used(self) -> dict[str, Any]:
        """The fields, null where the split does not read them, and without those that came later and are not used."""
        fields = self.to_dict()
        if self.split == "leave_one_out":
            fields["valid"] = fields["test"] = None
        if self.ties != "shuffle" and self.split != "cold_users" and not self.held_out_items:
            fields["seed"] = None
        if not self.held_out_items:
            del fields["held_out_items"]
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """From conf or JSON. Raises ValueError that names an unknown key and the known ones."""
        known = {field.name for field in dataclasses.fields(cls)}
        for name in sorted(set(fields) - known - set(DERIVED_FIELDS)):
            check_known(name, sorted(known), what="protocol key")
        return cls(**{key: value for key, value in fields.items() if key not in DERIVED_FIELDS})

    def with_evaluation_fields(self, requested: Protocol) -> Protocol:
        """This protocol, which the split was made under, with what only evaluation reads taken from ``requested``.

        Raises ValueError where ``requested`` would cut the data differently: the split on disk is not of that protocol.
        """
        combined = dataclasses.replace(requested, fingerprint=self.fingerprint, steps=self.steps)
        if differing := self.data_differences(combined):
            raise ValueError(
                f"the data on disk were split under another protocol: {', '.join(differing)} differ. "
                "Run the pipeline train again, or leave that parameter out"
            )
        return combined

    def data_differences(self, other: Protocol) -> list[str]:
        """Names of the fields in which the data that models are fitted on would differ from ``other``'s."""
        mine, theirs = self._used(), other._used()
        names = dict.fromkeys((*mine, *theirs))
        return [
            name for name in names if name not in EVALUATION_FIELDS and mine.get(name) != theirs.get(name)
        ]
