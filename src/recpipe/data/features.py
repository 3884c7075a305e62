"""Columns of items and users as what a network can read: codes of categories, standardised numbers. N rows, M values.

A column is categorical if it holds text, truth values or lists of them, or at most 50 different numbers; a row of a
list may have several values. Everything a ``Column`` learned is plain JSON, so that a bundle can keep it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEW_NUMBERS = 50  # different numbers up to which a column counts as categorical
MOST_VALUES = 10_000  # categories that are kept, the most frequent ones
MOST_PER_ROW = 16  # values of one row that are kept, in their order


@dataclass(frozen=True)
class Column:
    """How one column is encoded. ``values`` are the categories of codes 1, 2, …; none means that it is numeric."""

    name: str
    values: tuple[str, ...] = ()
    per_row: int = 1  # M: most values of one row
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def categorical(self) -> bool:
        """Whether ``encode`` gives codes."""
        return bool(self.values)

    @classmethod
    def of(cls, name: str, column: pa.Array | pa.ChunkedArray) -> Column:
        """Learns the encoding of ``column`` (N,). Raises ValueError where it has no value at all."""
        column = _whole(column)
        owner, flat = _flattened(column)
        if len(flat) == 0:
            raise ValueError(f"column {name!r} has no value; drop it from `side`")
        if _is_number(flat.type) and pc.count_distinct(flat).as_py() > FEW_NUMBERS:
            numbers = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return cls(name, mean=float(numbers.mean()), deviation=float(numbers.std()) or 1.0)
        counted = pc.value_counts(flat.cast(pa.string()))
        words, counts = counted.field("values").to_pylist(), counted.field("counts").to_numpy()
        order = sorted(range(len(words)), key=lambda i: (-counts[i], words[i]))[:MOST_VALUES]
        most = int(np.bincount(owner).max())
        return cls(name, tuple(words[i] for i in order), min(most, MOST_PER_ROW))

    def encode(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Codes (N, M) int32, 0 for none or unknown; or (N, 2) float32: the standardised number, 1 if there is one."""
        column = _whole(column)
        owner, flat = _flattened(column)
        if not self.categorical:
            encoded = np.zeros((len(column), 2), np.float32)
            numbers = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
            encoded[owner, 0] = (numbers - self.mean) / self.deviation
            encoded[owner, 1] = 1.0
            return encoded
        found = pc.index_in(flat.cast(pa.string()), value_set=pa.array(self.values, pa.string()))
        code = pc.fill_null(found, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
        first = np.searchsorted(owner, owner, side="left")  # owners are sorted
        place = np.arange(len(owner)) - first
        kept = place < self.per_row
        codes = np.zeros((len(column), self.per_row), np.int32)
        codes[owner[kept], place[kept]] = code[kept]
        return codes

    def missing(self, n: int) -> np.ndarray:
        """What ``encode`` gives for n rows without a value."""
        shape, kind = ((n, self.per_row), np.int32) if self.categorical else ((n, 2), np.float32)
        return np.zeros(shape, kind)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return dataclasses.asdict(self) | {"values": list(self.values)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Column:
        """The inverse of ``to_dict``."""
        return cls(**{**fields, "values": tuple(fields["values"])})


def fit_columns(names: Sequence[str], table: Mapping[str, Any], *, where: str) -> tuple[Column, ...]:
    """Learns the columns ``names`` of ``table``. Raises ValueError that names what is missing and what there is."""
    missing = [name for name in names if name not in table]
    if missing:
        has = ", ".join(sorted(table)) or "none"
        raise ValueError(f"{where} asks for {', '.join(missing)}; columns there are: {has}")
    return tuple(Column.of(name, table[name]) for name in names)


def align_rows(table: pa.Table, key: str, ids: Sequence[str] | np.ndarray) -> pa.Table:
    """One row of ``table`` for each of ``ids`` (N,), all null where its column ``key`` does not have the id."""
    known = table[key].cast(pa.string()).combine_chunks()
    return table.take(pc.index_in(pa.array(ids, pa.string()), value_set=known))


def _whole(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _flattened(column: pa.Array) -> tuple[np.ndarray, pa.Array]:
    """All values that are not null, lists of any depth taken apart, and the row (n,) of each."""
    owner = np.arange(len(column))
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        owner, column = np.repeat(owner, lengths), column.drop_null().flatten()
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        there &= ~np.isnan(pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False))
    return owner[there], column.filter(pa.array(there))
