"""Conditions on the columns of the log, as an Ibis expression."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis.expr.datatypes import DataType

from recpipe.data.conditions.builder import BOOLEAN, LIST, NUMBER, OTHER, TEXT, Evaluation
from recpipe.data.conditions.parser import parse_condition
from recpipe.data.conditions.tree import Scalar

COMPARISONS: dict[str, Callable[[Any, Any], ir.BooleanValue]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


def condition_expression(text: str, rows: ir.Table) -> tuple[ir.BooleanValue, list[str]]:
    """Return the condition on ``rows``, and the columns of text that it compares as numbers.

    Raises ValueError with a position for texts that are no condition, for unknown columns, and for values of different
    kinds.
    """
    evaluation = Evaluation(parse_condition(text), IbisRows(rows))
    return evaluation.result(), evaluation.as_numbers


def as_number(column: ir.StringValue) -> ir.FloatingValue:
    """Convert text to a number, null where it is none."""
    number = column.try_cast("float64")
    return ibis.ifelse(number.isnan(), ibis.null("float64"), number)


class IbisRows:
    """Columns of the log."""

    table = "the log has"
    hint = ", and `extra_columns` in the options of the data set adds columns of the file"

    def __init__(self, rows: ir.Table) -> None:
        self.rows, self.names = rows, rows.columns

    def kind(self, name: str) -> str:
        """Return the kind of a column, of its elements for lists."""
        type_ = self.rows[name].type()
        if type_.is_array():
            return LIST + _kind(type_.value_type)
        return _kind(type_)

    def column(self, name: str) -> ir.Value:
        """Return a column."""
        return self.rows[name]

    def as_number(self, column: ir.Value) -> ir.Value:
        """Convert a column of text to numbers, null where it is none."""
        return as_number(column)

    def compare(self, operator: str, left: ir.Value | Scalar, right: ir.Value | Scalar) -> ir.Value:
        """Compare two columns of one kind, or a column and a constant."""
        return COMPARISONS[operator](left, right)

    def is_in(self, column: ir.Value, values: Sequence[Scalar]) -> ir.Value:
        """Return whether a column has one of the constants."""
        return column.isin(values)

    def contains(self, lists: ir.Value, value: ir.Value | Scalar) -> ir.Value:
        """Return whether the lists of a column have the value."""
        return lists.contains(value)

    def is_null(self, column: ir.Value) -> ir.Value:
        """Return whether a column has no value."""
        return column.isnull()

    def inverse(self, condition: ir.Value) -> ir.Value:
        """Return the negation, unknown where the condition is."""
        return ~condition

    def combine(self, word: str, conditions: Sequence[ir.Value]) -> ir.Value:
        """Combine conditions by ``and`` or ``or``."""
        return reduce(operator.and_ if word == "and" else operator.or_, conditions)


def _kind(type_: DataType) -> str:
    if type_.is_boolean():
        return BOOLEAN
    return TEXT if type_.is_string() else NUMBER if type_.is_numeric() else OTHER
