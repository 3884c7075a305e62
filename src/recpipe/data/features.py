"""Item and user columns as network inputs: codes of categories, standardised numbers; joins by id. N rows, M values.

A column is categorical if it contains text, booleans or lists of them, or at most 50 distinct numbers.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.data.ids import Ids

MAX_CATEGORICAL_NUMBERS = 50  # distinct numbers up to which a column is categorical
MAX_CATEGORIES = 10_000  # the most frequent ones
MAX_VALUES_PER_ROW = 16  # the first ones

ID_FORMS: dict[str, Callable[[str], str]] = {  # in which ids of two files may be the same
    "in lower case": str.casefold,
    "without leading zeros": lambda text: text.lstrip("0") or "0",
    "without `.0` at their end": lambda text: re.sub(r"\.0*$", "", text),
    "without blanks": lambda text: "".join(text.split()),
    "without quotation marks": lambda text: text.strip("'\""),
    "without their first letters": lambda text: re.sub(r"^\D+(?=\d)", "", text),
    "without punctuation": lambda text: re.sub(r"[\W_]+", "", text),
}


@dataclass(frozen=True)
class Column:
    """Encoding of one column. ``values`` are the categories with codes 1, 2, …; a numeric column has none."""

    name: str
    values: tuple[str, ...] = ()
    per_row: int = 1  # M, maximum number of values of a row
    mean: float = 0.0
    deviation: float = 1.0

    @property
    def categorical(self) -> bool:
        """Whether ``encode`` returns codes."""
        return bool(self.values)

    @classmethod
    def of(cls, name: str, column: pa.Array | pa.ChunkedArray) -> Column:
        """Fit the encoding of ``column`` (N,). Raises ValueError if it has no value at all."""
        owner, flat = _flatten(column)
        if len(flat) == 0:
            raise ValueError(f"column {name!r} has no value; drop it from `side`")
        kinds = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
        if any(is_kind(flat.type) for is_kind in kinds) and pc.count_distinct(flat).as_py() > MAX_CATEGORICAL_NUMBERS:
            numbers = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
            return cls(name, mean=float(numbers.mean()), deviation=float(numbers.std()) or 1.0)
        frequencies = pc.value_counts(flat.cast(pa.string()))
        words, counts = frequencies.field("values").to_pylist(), frequencies.field("counts").to_numpy()
        order = sorted(range(len(words)), key=lambda i: (-counts[i], words[i]))[:MAX_CATEGORIES]
        per_row = min(int(np.bincount(owner).max()), MAX_VALUES_PER_ROW)
        return cls(name, tuple(words[i] for i in order), per_row)

    def encode(self, column: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """Encode (N,) as codes (N, M) int32, 0 for missing or unknown; a numeric column as (N, 2) float32.

        The two values of a numeric column are the standardised number and 1, or zeros where it is missing.
        """
        owner, flat = _flatten(column)
        encoded = self.missing(len(column))
        if not self.categorical:
            numbers = flat.cast(pa.float64()).to_numpy(zero_copy_only=False)
            encoded[owner, 0], encoded[owner, 1] = (numbers - self.mean) / self.deviation, 1.0
            return encoded
        index = pc.index_in(flat.cast(pa.string()), value_set=pa.array(self.values, pa.string()))
        code = pc.fill_null(index, -1).to_numpy(zero_copy_only=False).astype(np.int32) + 1
        place = np.arange(len(owner)) - np.searchsorted(owner, owner, side="left")  # owners are sorted
        fits = place < self.per_row
        encoded[owner[fits], place[fits]] = code[fits]
        return encoded

    def missing(self, n: int) -> np.ndarray:
        """Encode n rows without a value: zeros (n, values per row), or (n, 2) for a number."""
        return np.zeros((n, self.per_row), np.int32) if self.categorical else np.zeros((n, 2), np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain JSON types."""
        return dataclasses.asdict(self) | {"values": list(self.values)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Column:
        """Invert ``to_dict``."""
        return cls(**{**fields, "values": tuple(fields["values"])})


def fit_columns(names: Sequence[str], table: Mapping[str, Any], *, where: str) -> tuple[Column, ...]:
    """Fit the columns ``names`` of ``table``. Raises ValueError for missing columns, with the available ones."""
    missing = [name for name in names if name not in table]
    if missing:
        available = ", ".join(sorted(table)) or "none"
        raise ValueError(f"{where} asks for {', '.join(missing)}; columns there are: {available}")
    return tuple(Column.of(name, table[name]) for name in names)


def align_rows(table: pa.Table, key: str, ids: Sequence[str] | np.ndarray | Ids) -> pa.Table:
    """Take one row of ``table`` per id (N,), all null for ids that its column ``key`` does not contain."""
    keys, id_array = table[key].cast(pa.string()), Ids(ids).array
    return table.take(pc.index_in(id_array, value_set=keys.cast(id_array.type).combine_chunks()))


def id_form_hint(ids: Sequence[str], other_ids: Sequence[str]) -> str:
    """Name the form in which most of ``ids`` are among ``other_ids``, which have none of them; empty without one."""
    counts = {}
    for phrase, form in ID_FORMS.items():
        forms = {form(text) for text in other_ids}
        counts[phrase] = sum(form(text) in forms for text in ids)
    phrase = max(counts, key=lambda phrase: counts[phrase])
    if not counts[phrase]:
        return ""
    return f"{counts[phrase]:,} of {len(ids):,} are the same {phrase}: write the ids in one form in both files"


def _flatten(column: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, pa.Array]:
    """Return row (n,) and value (n,) of all values but null, NaN and infinity; nested lists are flattened."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    owner = np.arange(len(column))
    while pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        owner, column = np.repeat(owner, lengths), column.drop_null().flatten()
    valid = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        valid &= np.isfinite(pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False))
    return owner[valid], column.filter(pa.array(valid))
