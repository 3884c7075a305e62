"""Side information: what is known of items, users and events besides the item's id. I items, V width of a vector.

One block ``side`` in a model's conf, the same for every neural model; recpipe.layers.inputs makes embeddings of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recpipe.config import split_names
from recpipe.data.features import Column, fit_columns
from recpipe.data.sequences import Sequences

EVENTS = ("rating", "hour", "weekday", "gap")
COMBINE = ("add", "concat", "alone")


@dataclass(frozen=True)
class SideConfig:
    """The conf block ``side``; several names are written a+b, none is ``none``.

    ``vectors``: item vectors by modality (text, image). ``combine``: they and ``items`` are added to the id's
    embedding, concatenated with it, or alone, without it, so that items without training events can be scored.
    ``train_vectors``: they are a start instead of frozen. ``items``, ``users``: columns of these tables.
    ``events``: rating, hour, weekday, gap (time since the event before). ``head``: the output table is ``all`` that is
    known of items, or their ``ids`` alone.
    """

    vectors: str = "none"
    combine: str = "add"
    train_vectors: bool = False
    items: str = "none"
    users: str = "none"
    events: str = "none"
    head: str = "all"

    def __post_init__(self) -> None:
        for name, allowed in (("combine", COMBINE), ("head", ("all", "ids"))):
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(f"side.{name} is {value!r}; allowed: {', '.join(allowed)}")
        if unknown := sorted(set(split_names(self.events)) - set(EVENTS)):
            raise ValueError(f"side.events has {unknown}; allowed: none, {', '.join(EVENTS)}")
        if self.combine != "add" and not (split_names(self.vectors) or split_names(self.items)):
            raise ValueError(
                f"side.combine is {self.combine} and neither side.vectors nor side.items is given"
            )
        if self.combine == "alone" and self.head == "ids":
            raise ValueError("side.combine is alone, so there are no ids for side.head")

    @property
    def requires_time(self) -> str:
        """What it needs ``Protocol.time`` to allow: of times, only those of what was read."""
        return "last_item" if set(split_names(self.events)) - {"rating"} else "none"

    @property
    def empty(self) -> bool:
        """Whether nothing but ids is asked for."""
        return not any(split_names(getattr(self, name)) for name in ("vectors", "items", "users", "events"))


@dataclass(frozen=True)
class Side:
    """A ``SideConfig`` with what it means for one data set; ``values`` hold the catalogue's data until saved.

    ``widths``: V of every kind of vectors. Without ``values`` (a bundle being loaded) tensors take their place.
    """

    config: SideConfig = field(default_factory=SideConfig)
    items: tuple[Column, ...] = ()
    users: tuple[Column, ...] = ()
    events: tuple[Column, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    n_items: int = 0
    values: Mapping[str, np.ndarray] = field(
        default_factory=dict
    )  # items.<column> (I + 1, M or 2) and vectors.<modality> (I + 1, V + 1), whose last is 1 where there is one

    @classmethod
    def of(
        cls,
        config: SideConfig,
        train: Sequences,
        item_columns: Mapping[str, Any],
        vectors: Mapping[str, tuple[np.ndarray, np.ndarray]],
        *,
        n_items: int,
    ) -> Side:
        """Learns encodings. ``item_columns``: arrays (I,) in the order of the vocabulary; ``vectors``: by modality
        (I, V) and which items have one (I,). Users and ratings are those of the training sequences.

        Raises ValueError for a column, vectors, ratings or times that are not there.
        """
        items = fit_columns(split_names(config.items), item_columns, where="side.items")
        users = fit_columns(split_names(config.users), train.profiles, where="side.users")
        values: dict[str, np.ndarray] = {
            f"items.{column.name}": np.concatenate(
                [column.missing(1), column.encode(item_columns[column.name])]
            )
            for column in items
        }
        widths = {}
        for name in split_names(config.vectors):
            if name not in vectors:
                raise ValueError(
                    f"side.vectors asks for {name}; there are {', '.join(vectors) or 'none'}. "
                    f"Run `kedro run --pipelines=embed --params modality={name}`"
                )
            values[f"vectors.{name}"] = _with_presence(*vectors[name])
            widths[name] = values[f"vectors.{name}"].shape[1] - 1
        return cls(config, items, users, _events(config, train), widths, n_items, values)

    def encoded(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """Arrays by name: ``user.<column>`` (U, M or 2), ``event.rating`` (N, 1)."""
        found = {}
        for column in self.users:
            known = sequences.profiles.get(column.name)
            found[f"user.{column.name}"] = (
                column.missing(len(sequences)) if known is None else column.encode(known)
            )
        for column in self.events:
            given = sequences.ratings
            found[f"event.{column.name}"] = (
                column.missing(len(sequences.items))
                if given is None
                else column.encode(pa.array(given, from_pandas=True))
            )
        return found

    def fingerprint(self) -> str:
        """Sixteen hex digits of the settings, the encodings and the catalogue's values."""
        digest = hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode())
        for name in sorted(self.values):
            digest.update(name.encode() + np.ascontiguousarray(self.values[name]).tobytes())
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, without the values."""
        columns = {kind: [column.to_dict() for column in getattr(self, kind)] for kind in COLUMNS}
        about = {"widths": dict(self.widths), "n_items": self.n_items}
        return {"config": dataclasses.asdict(self.config), **columns, **about}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Side:
        """The inverse of ``to_dict``; the values come with the tensors."""
        items, users, events = (tuple(map(Column.from_dict, fields[kind])) for kind in COLUMNS)
        return cls(SideConfig(**fields["config"]), items, users, events, fields["widths"], fields["n_items"])


COLUMNS = ("items", "users", "events")


def _with_presence(vectors: np.ndarray, present: np.ndarray) -> np.ndarray:
    """(I + 1, V + 1): the vectors, zero where there is none; last, 1 where there is one."""
    if not present.any():
        raise ValueError(
            "side.vectors: no item has a vector; see the folder of images or the texts of the data set"
        )
    table = np.zeros((len(vectors) + 1, vectors.shape[1] + 1), np.float32)
    table[1:, :-1], table[1:, -1] = np.where(present[:, None], vectors, 0.0), present
    return table


def standardised(table: np.ndarray) -> np.ndarray:
    """(I + 1, V + 1) alike: of the vectors that are there every dimension has mean 0, all together variance 1."""
    present = table[:, -1] > 0
    there = table[present, :-1].astype(np.float64)
    centred = there - there.mean(0)
    scaled = np.zeros_like(table)
    scaled[present, :-1] = centred / max(float(np.sqrt(np.square(centred).mean())), 1e-12)
    scaled[:, -1] = table[:, -1]
    return scaled


def _events(config: SideConfig, train: Sequences) -> tuple[Column, ...]:
    asked = split_names(config.events)
    if train.timestamps is None and (timed := [name for name in asked if name != "rating"]):
        raise ValueError(f"side.events asks for {', '.join(timed)} and this data set has no timestamps")
    if "rating" not in asked:
        return ()
    if train.ratings is None:
        raise ValueError("side.events asks for rating and this data set has none")
    return (Column.of("rating", pa.array(train.ratings, from_pandas=True)),)
