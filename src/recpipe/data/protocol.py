"""Evaluation protocol: all settings besides the model that change a metric. Its id is stamped on every number."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from recpipe.config import check_choices, check_known, split_names

TIME_CHOICES = ("none", "last_item", "query")  # each allows what the previous ones allow
CHOICES = {
    "split": ("leave_one_out", "temporal", "rolling", "ratio", "cold_users", "none"), "targets": ("next", "all"),
    "ties": ("source", "shuffle"), "candidates": ("full",), "time": TIME_CHOICES,
}  # fmt: skip
DERIVED_FIELDS = ("id", "sizes", "test_set")  # of a split on disk
EVALUATION_FIELDS = ("exclude_seen", "candidates", "time", "cutoffs")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Rules for splitting a data set into training, validation and test, and for evaluating a model on it.

    ``valid`` and ``test`` are shares for ``ratio``, ``cold_users`` and ``temporal``; for ``temporal`` also the ISO date
    at which the part begins; ``leave_one_out`` ignores them. For ``rolling`` they are lengths of windows of time: days
    (``14d``), or shares of the time between the first and the last event. ``folds`` test windows lie one after the
    other at the end of the log. ``fold``, from 1, selects one: before it lies the validation window, and before that
    the training events. Every fold is a protocol of its own; ``fold`` None stands for all of them.

    ``none`` holds nothing out: all events are training events, and no model is evaluated. ``seed`` affects shuffled
    ties, cold users and held-out items: ``held_out_items`` is the share of the catalogue that training and validation
    never see. ``time`` is what a model may know about time: ``none``; ``last_item``, ages relative to the last event;
    ``query``, ages relative to the time of the query, which folds contain only then. ``target_events`` are the types of
    events that may be targets, of training too, while histories contain all events before the target; None: all types.
    ``name`` is the protocol of the conf with these fields, None without one, and no part of the id. Raises ValueError
    for a value that is not allowed.
    """

    dataset: str
    fingerprint: str = ""  # of the sequences before the split: Sequences.fingerprint
    steps: tuple[str, ...] = ()  # cleaning and sampling steps of the log, for information
    split: str = "leave_one_out"
    valid: float | str = 0.1
    test: float | str = 0.1
    targets: str = "next"
    target_events: tuple[str, ...] | None = None
    ties: str = "source"
    seed: int = 42
    held_out_items: float = 0.0
    history: int = 200
    exclude_seen: bool = True
    candidates: str = "full"
    time: str = "none"
    cutoffs: tuple[int, ...] = (1, 5, 10, 20)
    folds: int = 3
    fold: int | None = None
    name: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in ("steps", "cutoffs"):  # lists in conf and JSON
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.target_events is not None:  # a list, or several as a+b
            names = split_names(self.target_events) if isinstance(self.target_events, str) else self.target_events
            if not names and not isinstance(self.target_events, str):
                raise ValueError("protocol.target_events is empty; name types of events, or null for all of them")
            object.__setattr__(self, "target_events", tuple(sorted({str(name) for name in names})) or None)
        check_choices(self, where="protocol", **CHOICES)
        if self.history < 1:
            raise ValueError(f"protocol.history is {self.history}; it is the number of events a model sees, at least 1")
        share = self.held_out_items
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ValueError(f"protocol.held_out_items is {share!r}; it is a share of the items, from 0 to below 1")
        if not self.cutoffs or min(self.cutoffs) < 1:
            raise ValueError(f"protocol.cutoffs is {self.cutoffs}; give at least one cut-off, each at least 1")
        if self.split == "leave_one_out" and self.targets == "all":
            raise ValueError("protocol.targets=all has no meaning under leave_one_out, which has one target per user")
        self._check_folds()
        if not self.holds_out and self.held_out_items:
            raise ValueError(
                f"protocol.held_out_items is {share} and protocol.split none, which holds nothing out; set 0"
            )

    def _check_folds(self) -> None:
        if self.folds < 1:
            raise ValueError(f"protocol.folds is {self.folds}; it is the number of test windows, at least 1")
        if self.fold is not None and self.split != "rolling":
            raise ValueError(f"protocol.fold is {self.fold} and protocol.split {self.split}; only rolling has folds")
        if self.fold is not None and not 1 <= self.fold <= self.folds:
            raise ValueError(f"protocol.fold is {self.fold}; allowed: 1 to {self.folds}, which protocol.folds is")

    @property
    def holds_out(self) -> bool:
        """Whether the split has a validation and a test fold."""
        return self.split != "none"

    def without_split(self) -> Protocol:
        """Return the protocol of a model for use, trained on all events of the same sequences."""
        return dataclasses.replace(self, split="none", fold=None, held_out_items=0.0, name=None)

    def check_time(self, used: str, *, model: str) -> None:
        """Raise ValueError if this protocol does not allow a model to use time as ``used``."""
        if TIME_CHOICES.index(used) > TIME_CHOICES.index(self.time):
            allowed = " and ".join(TIME_CHOICES[: TIME_CHOICES.index(self.time) + 1])
            raise ValueError(
                f"{model} uses time as {used} and protocol.time is {self.time}, which allows "
                f"{allowed}; use --params protocol.time={used}, which is a protocol of its own"
            )

    @property
    def id(self) -> str:
        """Hash of eight hex digits: equal ids mean comparable numbers. Fields that the split ignores do not enter."""
        return hashlib.sha256(json.dumps(self._used_fields(), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folds_id(self) -> str:
        """Id of all folds of a rolling split together; that of the protocol itself under other splits."""
        return dataclasses.replace(self, fold=None).id

    def _used_fields(self) -> dict[str, Any]:
        """Return the fields, null where the split ignores them; newer ones are left out at defaults to preserve ids."""
        fields = self.to_dict()
        del fields["name"]
        if self.split in ("leave_one_out", "none"):
            fields["valid"] = fields["test"] = None
        if not self.holds_out:
            fields["targets"] = None
        if self.ties != "shuffle" and self.split != "cold_users" and not self.held_out_items:
            fields["seed"] = None
        if not self.held_out_items:
            del fields["held_out_items"]
        if self.target_events is None:
            del fields["target_events"]
        if self.split != "rolling":
            del fields["folds"], fields["fold"]
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Protocol:
        """Create from conf or JSON. Raises ValueError for an unknown key, with the nearest spelling."""
        allowed = {each.name for each in dataclasses.fields(cls)}
        fields = {key: value for key, value in fields.items() if key not in DERIVED_FIELDS}
        for name in sorted(set(fields) - allowed):
            check_known(name, sorted(allowed), what="protocol key")
        return cls(**fields)

    def with_evaluation_fields(self, requested: Protocol) -> Protocol:
        """Return ``requested`` for this split on disk. Raises ValueError where it would split the data differently."""
        combined = dataclasses.replace(requested, fingerprint=self.fingerprint, steps=self.steps)
        if differing := self.data_differences(combined):
            raise ValueError(
                f"the data on disk were split under another protocol: {', '.join(differing)} differ. "
                "Run the pipeline train again, or leave that parameter out"
            )
        return combined

    def data_differences(self, other: Protocol) -> list[str]:
        """List the fields that give models other training data under ``other``."""
        mine, theirs = self._used_fields(), other._used_fields()
        names = [name for name in dict.fromkeys((*mine, *theirs)) if name not in EVALUATION_FIELDS]
        return [name for name in names if mine.get(name) != theirs.get(name)]


def log_steps(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the cleaning and sampling steps of a log, rows of the table ``ingest_steps``, for ``Protocol.steps``."""
    return tuple(f"{row['name']} {row['detail']}".strip() for row in rows)
