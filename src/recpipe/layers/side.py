"""Side information of items, users and events besides item ids, embedded by recpipe.layers.inputs.

The block ``side`` of every neural model's conf. I items, V width of a vector.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from recpipe.config import check_choices, split_names
from recpipe.data.features import Column, fit_columns
from recpipe.data.sequences import Sequences
from recpipe.semantic_ids.vector_rows import VectorRows

EVENTS = ("rating", "hour", "weekday", "gap")
COLUMNS = ("items", "users", "events")
AT_ONCE = 1 << 27  # elements of a table of vectors that are computed with in float64 together, 1 GiB


@dataclass(frozen=True)
class SideConfig:
    """The conf block ``side``; several names are written a+b, ``none`` is empty.

    ``combine``: vectors and columns of items are added to the embedding of the id (add), concatenated with it (concat),
    or replace it (alone), so that items without training events can be scored.
    """

    vectors: str = "none"  # of items, by kind: text, image, text_image, collaborative
    combine: str = "add"
    train_vectors: bool = False  # or freeze them
    items: str = "none"  # columns of this table
    users: str = "none"  # columns of this table
    events: str = "none"  # rating, hour, weekday, gap (time since the previous event)
    head: str = "all"  # inputs of an item that the output table has: all, or ids only

    def __post_init__(self) -> None:
        check_choices(self, where="side", combine=("add", "concat", "alone"), head=("all", "ids"))
        if unknown := sorted(set(split_names(self.events)) - set(EVENTS)):
            raise ValueError(f"side.events has {unknown}; allowed: none, {', '.join(EVENTS)}")
        if self.combine != "add" and not (split_names(self.vectors) or split_names(self.items)):
            raise ValueError(f"side.combine is {self.combine} and neither side.vectors nor side.items is given")
        if self.combine == "alone" and self.head == "ids":
            raise ValueError("side.combine is alone, so side.head cannot be ids; set side.head: all")

    @property
    def requires_time(self) -> str:
        """The least ``Protocol.time`` that it needs: none or last_item."""
        return "last_item" if set(split_names(self.events)) - {"rating"} else "none"

    def check_vectors_only(self, model: str) -> None:
        """Raise ValueError for side information other than item vectors, which ``model`` does not read."""
        for name in COLUMNS:
            if split_names(getattr(self, name)):
                raise ValueError(f"{model} reads item vectors only; set side.{name}=none for this model")

    @property
    def empty(self) -> bool:
        """True if only item ids are read."""
        return not any(split_names(getattr(self, name)) for name in ("vectors", "items", "users", "events"))


@dataclass(frozen=True)
class Scale:
    """Mean (V,) and deviation of a catalogue's vectors, by which they and those of later items are standardised."""

    mean: tuple[float, ...]
    deviation: float

    @classmethod
    def of(cls, table: np.ndarray) -> Scale:
        """Measure a table (I + 1, V + 1): the mean of every dimension, and the deviation over all of them."""
        rows = np.flatnonzero(table[:, -1] > 0)
        if table.size <= AT_ONCE:
            vectors = table[rows, :-1].astype(np.float64)
            mean = vectors.mean(0)
            square = np.square(vectors - mean).mean()
        else:
            parts = np.array_split(rows, -(-table.size // (AT_ONCE >> 3)))
            mean = np.sum([table[part, :-1].sum(0, dtype=np.float64) for part in parts], 0) / len(rows)
            squares = [np.square(table[part, :-1] - mean).sum() for part in parts]
            square = np.sum(squares) / (len(rows) * len(mean))
        return cls(tuple(mean.tolist()), max(float(np.sqrt(square)), 1e-12))

    def apply(self, table: np.ndarray) -> np.ndarray:
        """Standardise the vectors of a table (I + 1, V + 1); items without one stay zero."""
        present = table[:, -1] > 0
        scaled = np.zeros_like(table)
        for start in range(0, len(table), step := max((AT_ONCE >> 3) // table.shape[1], 1)):
            rows = start + np.flatnonzero(present[start : start + step])
            scaled[rows, :-1] = (table[rows, :-1].astype(np.float64) - np.array(self.mean)) / self.deviation
        scaled[:, -1] = table[:, -1]
        return scaled


@dataclass(frozen=True)
class Side:
    """Side information of one data set: settings, fitted columns, and the catalogue's values.

    ``widths``: V by kind of vectors. ``values``: ``items.<column>`` (I + 1, M or 2) and ``vectors.<kind>`` (I + 1,
    V + 1) with 1 in the last column for items that have one; empty while a bundle is being loaded. ``scales``: by kind
    of vectors, of the catalogue that the model was trained on; bundles of older versions have none.
    """

    config: SideConfig = field(default_factory=SideConfig)
    items: tuple[Column, ...] = ()
    users: tuple[Column, ...] = ()
    events: tuple[Column, ...] = ()
    widths: Mapping[str, int] = field(default_factory=dict)
    n_items: int = 0
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    scales: Mapping[str, Scale] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        config: SideConfig,
        train: Sequences,
        item_columns: Mapping[str, pa.Array | pa.ChunkedArray],
        vectors: Mapping[str, tuple[np.ndarray | VectorRows, np.ndarray]],
        *,
        n_items: int,
    ) -> Side:
        """Fit the encodings to training data.

        ``item_columns``: arrays (I,) in the order of the vocabulary. ``vectors``: by kind, (I, V) and the items (I,)
        bool that have one. Raises ValueError for missing columns, vectors, ratings or times.
        """
        items = fit_columns(split_names(config.items), item_columns, where="side.items")
        users = fit_columns(split_names(config.users), train.profiles, where="side.users")
        values = {f"items.{c.name}": np.concatenate([c.missing(1), c.encode(item_columns[c.name])]) for c in items}
        widths, scales = {}, {}
        for name in split_names(config.vectors):
            if name not in vectors:
                raise ValueError(
                    f"side.vectors asks for {name}; available: {', '.join(vectors) or 'none'}. "
                    f"Run `kedro run --pipelines=embed --params modality={name}`"
                )
            table = vector_table(*vectors[name])
            widths[name] = table.shape[1] - 1
            if not table[:, -1].any():
                raise ValueError(
                    "side.vectors: no item has a vector; check the folder of images or the texts of the data set"
                )
            values[f"vectors.{name}"], scales[name] = table, Scale.of(table)
        return cls(config, items, users, _event_columns(config, train), widths, n_items, values, scales)

    def encode(self, sequences: Sequences) -> dict[str, np.ndarray]:
        """Return features by name: ``user.<column>`` (U, M or 2) and ``event.rating`` (N, 1)."""

        def encode(column: Column, values: pa.Array | None, n: int) -> np.ndarray:
            return column.missing(n) if values is None else column.encode(values)

        users = {f"user.{c.name}": encode(c, sequences.profiles.get(c.name), len(sequences)) for c in self.users}
        ratings = sequences.ratings if self.events else None
        events = None if ratings is None else pa.array(ratings, from_pandas=True)
        return users | {f"event.{c.name}": encode(c, events, len(sequences.items)) for c in self.events}

    def fingerprint(self) -> str:
        """Return 16 hex digits of a hash of settings, encodings and the catalogue's values."""
        fields = {
            key: value for key, value in self.to_dict().items() if key != "scales"
        }  # which follow from the values
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
        for name in sorted(self.values):
            digest.update(name.encode() + np.ascontiguousarray(self.values[name]).tobytes())
        return digest.hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, without the values."""
        columns = {kind: [column.to_dict() for column in getattr(self, kind)] for kind in COLUMNS}
        scales = {kind: asdict(scale) for kind, scale in self.scales.items()}
        sizes = {"widths": dict(self.widths), "n_items": self.n_items}
        return {"config": asdict(self.config), **columns, **sizes, "scales": scales}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Side:
        """Invert ``to_dict``; the values are loaded with the model's tensors."""
        items, users, events = (tuple(map(Column.from_dict, fields[kind])) for kind in COLUMNS)
        scales = {
            kind: Scale(tuple(each["mean"]), each["deviation"]) for kind, each in fields.get("scales", {}).items()
        }
        config, widths, n_items = SideConfig(**fields["config"]), fields["widths"], fields["n_items"]
        return cls(config, items, users, events, widths, n_items, scales=scales)


def vector_table(vectors: np.ndarray | VectorRows, present: np.ndarray) -> np.ndarray:
    """Return the table (I + 1, V + 1) of vectors, zero for items without one, whose last column is the presence.

    ``vectors`` (I, V) and ``present`` (I,) bool are in the order of the vocabulary.
    """
    rows = VectorRows.of(vectors)
    table = np.zeros((len(rows) + 1, rows.width + 1), np.float32)
    for block in rows.blocks():
        table[1 + block.start : 1 + block.stop, :-1] = rows[block]
    table[1:][~present], table[1:, -1] = 0.0, present
    return table


def _event_columns(config: SideConfig, train: Sequences) -> tuple[Column, ...]:
    names = split_names(config.events)
    if train.timestamps is None and (timed := [name for name in names if name != "rating"]):
        raise ValueError(f"side.events asks for {', '.join(timed)} and this data set has no timestamps")
    if "rating" not in names:
        return ()
    if train.ratings is None:
        raise ValueError("side.events asks for rating and this data set has none")
    return (Column.of("rating", pa.array(train.ratings, from_pandas=True)),)
