"""Conditions on the columns of an Arrow table, such as items: a mask of its rows. Needs no SQL engine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recpipe.data.conditions.builder import BOOLEAN, EMPTY, LIST, NUMBER, OTHER, TEXT, Evaluation
from recpipe.data.conditions.parser import parse_condition
from recpipe.data.conditions.tree import Scalar

COMPARISONS = {
    "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip
DIGITS = r"(?:[0-9]+(?:_[0-9]+)*)"
BLANK = r"[\s\x0b]"
BLANKS = f"{BLANK}*"
NUMBERS = rf"^{BLANKS}\+?-?(?:(?:{DIGITS}\.?{DIGITS}?|\.{DIGITS})(?:[eE][+-]?{DIGITS})?|(?i:inf|infinity)){BLANKS}$"


def condition_mask(text: str, table: pa.Table, *, what: str = "the items have", hint: str = "") -> np.ndarray:
    """Return the rows of ``table`` for which the condition is true, (rows,) bool.

    ``what`` and ``hint`` are words of the error about an unknown column. Raises ValueError with a position for texts
    that are no condition, for unknown columns, and for values of different kinds.
    """
    result = Evaluation(parse_condition(text), ArrowRows(table, what, hint)).result()
    mask: np.ndarray = pc.fill_null(result, False).to_numpy(zero_copy_only=False)
    return mask


class ArrowRows:
    """Columns of an Arrow table; numbers are int64 or float64, NaN is missing."""

    def __init__(self, rows: pa.Table, table: str, hint: str) -> None:
        self.rows, self.table, self.hint = rows, table, hint
        self.names = rows.column_names
        self._columns: dict[str, pa.Array] = {}

    def kind(self, name: str) -> str:
        """Return the kind of a column, of its elements for lists."""
        return _kind(self.rows.schema.types[self.names.index(name)])

    def column(self, name: str) -> pa.Array:
        """Return a column as text, boolean, int64, float64 or list."""
        if name not in self._columns:
            column = self.rows.column(self.names.index(name))
            self._columns[name] = _plain(_one_array(column))
        return self._columns[name]

    def as_number(self, column: pa.Array) -> pa.Array:
        """Convert text to numbers, null where it is none, as DuckDB's TRY_CAST does."""
        encoded = column.dictionary_encode()
        words = encoded.dictionary
        plain = pc.replace_substring_regex(words, rf"^{BLANKS}\+|{BLANK}|_", "")
        is_number = pc.match_substring_regex(words, NUMBERS)
        return pc.if_else(is_number, plain, None).cast(pa.float64()).take(encoded.indices)

    def compare(self, operator: str, left: pa.Array | Scalar, right: pa.Array | Scalar) -> pa.Array:
        """Compare two columns of one kind, or a column and a constant."""
        return COMPARISONS[operator](*_common_type(left, right))

    def is_in(self, column: pa.Array, values: Sequence[Scalar]) -> pa.Array:
        """Return whether a column has one of the constants."""
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), pa.bool_())
        if pa.types.is_integer(column.type) and any(isinstance(value, float) for value in values):
            column = column.cast(pa.float64(), safe=False)
        value_set = pa.array(values, column.type)
        if pa.types.is_floating(column.type):  # -0 becomes 0
            column, value_set = pc.add(column, 0.0), pc.add(value_set, 0.0)
        member = pc.is_in(column, value_set=value_set)
        return pc.if_else(column.is_valid(), member, None)

    def contains(self, lists: pa.Array, value: pa.Array | Scalar) -> pa.Array:
        """Return whether the lists of a column have the value."""
        owner, known = pc.list_parent_indices(lists), lists.is_valid()
        if isinstance(value, pa.Array):
            known, value = pc.and_(known, value.is_valid()), value.take(owner)
        equal = COMPARISONS["=="](*_common_type(_plain(lists.flatten()), value))
        member = np.zeros(len(lists), bool)
        member[owner.filter(equal).to_numpy()] = True
        return pc.if_else(known, pa.array(member), None)

    def is_null(self, column: pa.Array) -> pa.Array:
        """Return whether a column has no value."""
        return column.is_null()

    def inverse(self, condition: pa.Array) -> pa.Array:
        """Return the negation, unknown where the condition is."""
        return pc.invert(condition)

    def combine(self, word: str, conditions: Sequence[pa.Array]) -> pa.Array:
        """Combine conditions by ``and`` or ``or``."""
        return reduce(pc.and_kleene if word == "and" else pc.or_kleene, conditions)


def _kind(type_: pa.DataType) -> str:
    types = pa.types
    if types.is_dictionary(type_):
        return _kind(type_.value_type)
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        element = _kind(type_.value_type)
        return LIST + (element if element in (TEXT, NUMBER, BOOLEAN) else OTHER)
    if types.is_string(type_) or types.is_large_string(type_) or types.is_string_view(type_):
        return TEXT
    if types.is_integer(type_) or types.is_floating(type_) or types.is_decimal(type_):
        return NUMBER
    if types.is_null(type_):
        return EMPTY
    return BOOLEAN if types.is_boolean(type_) else OTHER


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def _plain(column: pa.Array) -> pa.Array:
    """Convert to one type for each kind of values; NaN becomes null."""
    types, type_ = pa.types, column.type
    if types.is_dictionary(type_):
        return _plain(column.dictionary_decode())
    if types.is_large_string(type_) or types.is_string_view(type_):
        return column.cast(pa.string())
    if types.is_uint64(type_) and (pc.max(column).as_py() or 0) >= 2**63:
        return column.cast(pa.float64(), safe=False)
    if types.is_integer(type_):
        return column.cast(pa.int64())
    if types.is_floating(type_) or types.is_decimal(type_):
        numbers = column.cast(pa.float64(), safe=False)
        return pc.if_else(pc.is_nan(numbers), None, numbers)
    return column


def _common_type(left: pa.Array | Scalar, right: pa.Array | Scalar) -> tuple[pa.Array | Scalar, pa.Array | Scalar]:
    """Convert integers beside doubles to doubles."""
    is_double = any(
        pa.types.is_floating(side.type) if isinstance(side, pa.Array) else isinstance(side, float)
        for side in (left, right)
    )
    return (_double(left), _double(right)) if is_double else (left, right)


def _double(side: pa.Array | Scalar) -> pa.Array | Scalar:
    if isinstance(side, pa.Array):
        return side.cast(pa.float64(), safe=False) if pa.types.is_integer(side.type) else side
    return float(side)
