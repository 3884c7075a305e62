"""Sections of a results page: published rows and ours that were measured under one protocol, and their differences.

A section is a protocol without the data: two rows lie in one section if their protocols have the same id for equal
sequences and cut-offs. Numbers of different sections are never compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recpipe.data.protocol import EVALUATION_FIELDS, Protocol
from recpipe.reporting.results.ours import OurRow, Value
from recpipe.reporting.results.published import PublishedResults, PublishedRow

Fields = Mapping[str, Any]  # of a protocol
Row = PublishedRow | OurRow
ABOVE, BELOW, WITHIN = "▲", "▼", "="  # ours against the published number
MARK_METRICS = ("ndcg@10", "recall@10", "warm_ndcg@10", "cold_ndcg@10")  # in order of preference
ALIGNED_IDS = "text_collaborative"  # kind of ids that a trained model took part in
SORT_METRICS = ("ndcg@10", "recall@10", "ndcg@5", "recall@5")
SPLITS = {
    "leave_one_out": "the last event of every user is the target",
    "rolling": "the test folds are windows of time, one after the other at the end of the log",
    "temporal": "one point in time divides training and test",
    "ratio": "the last events of every user are the targets",
    "cold_users": "test users have no training events",
}
TIMES = {"query": "models may know the time of the target", "last_item": "models may know the times of the history"}


@dataclass(frozen=True)
class Mark:
    """Position of our result relative to a published number: beyond our interval, or within it."""

    symbol: str
    model: str
    metric: str


@dataclass(frozen=True)
class Section:
    """Rows under one protocol, the best NDCG@10 first. ``fields`` is None for published rows of other protocols."""

    title: str
    about: str
    fields: Fields | None
    published: tuple[PublishedRow, ...]
    ours: tuple[OurRow, ...]
    other_data: bool = False  # ours has another number of users than the published data

    @property
    def rows(self) -> list[Row]:
        """All rows in order of the metric; those without NDCG@10 come last."""
        return sorted([*self.published, *self.ours], key=_order)

    def mark(self, row: PublishedRow) -> Mark | None:
        """Return the mark of our best result of the same model; None where there is none to compare with.

        Without an interval the numbers are compared at the four decimals that are printed.
        """
        candidates = [ours for ours in self.ours if _is_same_model(ours, row)]
        for metric in MARK_METRICS:
            values = [(value, ours.model) for ours in candidates if (value := ours.metrics.get(metric)) is not None]
            if metric in row.metrics and values:
                value, model = max(values, key=lambda pair: pair[0].mean)
                return Mark(_symbol(value, row.metrics[metric]), model, metric)
        return None


def sections(
    results: PublishedResults | None, ours: Sequence[OurRow], protocols: Mapping[str, Fields]
) -> list[Section]:
    """Group the rows of a data set; ``protocols`` are its named protocols, in the order of the page.

    Sections of named protocols come first, then variants of them, then ours of other data, then published rows whose
    protocol is unknown or another one. Raises ValueError for a published row of a protocol that the data set lacks.
    """
    published = list(results.rows) if results else []
    keys: dict[str, Fields] = {_key(fields): fields for fields in protocols.values()}
    names: dict[str, str] = {}  # those that published rows use
    by_key: dict[tuple[str, bool], tuple[list[PublishedRow], list[OurRow]]] = {}
    for row in published:
        if row.is_comparable:
            fields = _published_fields(row, protocols)
            keys.setdefault(_key(fields), fields)
            names.setdefault(_key(fields), row.protocol)
            by_key.setdefault((_key(fields), False), ([], []))[0].append(row)
    for our in ours:
        keys.setdefault(_key(our.protocol), our.protocol)
        other_data = results is not None and _tests_everyone(our.protocol) and our.users != results.users
        by_key.setdefault((_key(our.protocol), other_data), ([], []))[1].append(our)
    result = []
    for key, other_data in [*((key, False) for key in keys), *((key, True) for key in keys)]:
        if pair := by_key.get((key, other_data)):
            title = _title(keys[key], protocols, names.get(key))
            result.append(Section(title, describe(keys[key]), keys[key], tuple(pair[0]), tuple(pair[1]), other_data))
    if rest := tuple(row for row in published if not row.is_comparable):
        about = "These numbers are not compared with ours; the notes say what is different or not known."
        result.append(Section("Other or unknown protocols", about, None, rest, ()))
    return result


def describe(fields: Fields) -> str:
    """Describe a protocol in a sentence."""
    protocol = _protocol(fields)
    parts = [SPLITS.get(protocol.split, protocol.split), f"models see the last {protocol.history} events"]
    parts.append("seen items are not recommended" if protocol.exclude_seen else "seen items may be recommended")
    if protocol.ties == "shuffle":
        parts.append("events of one time are shuffled")
    if protocol.time != "none":
        parts.append(TIMES[protocol.time])
    if protocol.held_out_items:
        parts.append(f"{protocol.held_out_items:.0%} of the items are held out")
    sentence = "; ".join(parts)
    return f"{sentence[0].upper()}{sentence[1:]}. All items are ranked."


def _tests_everyone(fields: Fields) -> bool:
    """Return whether every user has a test target, so that the number of test users is that of the data."""
    return _protocol(fields).split == "leave_one_out"


def _title(fields: Fields, protocols: Mapping[str, Fields], chosen: str | None) -> str:
    """Return the ``chosen`` or else nearest name of a protocol, with the fields that differ."""
    named = protocols if chosen is None else {chosen: protocols[chosen]}
    candidates = [(_differences(fields, other), name) for name, other in named.items()]
    if not candidates:
        return _protocol(fields).split
    differing, name = min(candidates, key=lambda pair: len(pair[0]))
    return ", ".join([f"`{name}`", *(f"`{key}: {value}`" for key, value in differing.items())])


def _differences(fields: Fields, other: Fields) -> dict[str, str]:
    """Return the fields that differ, with their values as in YAML."""
    mine, theirs = _protocol(fields), _protocol(other)
    evaluation = [name for name in EVALUATION_FIELDS if getattr(mine, name) != getattr(theirs, name)]
    values = mine.to_dict()
    names = [*mine.data_differences(theirs), *evaluation]
    names = [name for name in names if name != "seed" or mine.seed != theirs.seed]  # it counts for some ties and splits
    return {name: value if isinstance(value := values[name], str) else json.dumps(value) for name in names}


def _published_fields(row: PublishedRow, protocols: Mapping[str, Fields]) -> Fields:
    if row.protocol not in protocols:
        raise ValueError(
            f"{row.model} was published under protocol {row.protocol!r}; the data set has {', '.join(protocols)}. Name "
            "one of them, or unknown or other with caveats"
        )
    return {**protocols[row.protocol], **row.differs}


def _key(fields: Fields) -> str:
    return _protocol(fields).id


def _protocol(fields: Fields) -> Protocol:
    """Return the protocol without what depends on the data or only adds metrics."""
    names = {"dataset", "fingerprint", "steps", "cutoffs", "name"}
    return Protocol.from_dict({"dataset": "", **{key: value for key, value in fields.items() if key not in names}})


def _symbol(value: Value, published: float) -> str:
    low, high = (value.mean, value.mean) if value.low is None or value.high is None else (value.low, value.high)
    if round(low, 4) > published:
        return ABOVE
    return BELOW if round(high, 4) < published else WITHIN


def _is_same_model(ours: OurRow, row: PublishedRow) -> bool:
    """Return whether a published row has a model of ours, with ids of the same kind; aligned ids make another model."""
    kinds = ours.kinds_of_ids
    same_ids = row.kind_of_ids in kinds if row.kind_of_ids else ALIGNED_IDS not in kinds
    return same_ids and ours.model.removesuffix("_tuned") in row.ours


def _order(row: Row) -> tuple[float, ...]:
    values = [metric_value(row, name) for name in SORT_METRICS]
    return tuple(math.inf if value is None else -value for value in values)


def metric_value(row: Row, name: str) -> float | None:
    """Return a metric of a row, None where it has none."""
    value = row.metrics.get(name)
    return value.mean if isinstance(value, Value) else value
