"""Evaluation of a parsed condition on columns of any kind of table: checks of the kinds of values, logic of SQL.

A comparison with a missing value is unknown, and so is ``not`` of it; only rows for which the condition is true match.
Text beside a number is converted, and is missing where it is no number. A missing value in a list counts as absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar, cast

from recpipe.config import nearest
from recpipe.data.conditions.parser import ParsedCondition
from recpipe.data.conditions.tree import (
    Column,
    Combination,
    Comparison,
    Constant,
    Membership,
    Negation,
    Node,
    NullTest,
    Operand,
    Scalar,
)

WORDS: dict[str, bool | None] = {"null": None, "none": None, "true": True, "false": False}
TEXT, NUMBER, BOOLEAN, EMPTY, OTHER = "text", "number", "boolean", "empty", "other"  # kinds; empty: nulls of no type
LIST = "list of "  # before the kind of the elements
TEXT_COLUMNS = ("user_id", "item_id", "event", "title")  # never compared as numbers
EXACT = 2**53  # integers from here on are not exact as doubles
SHOWN = 50  # names of columns in an error

V = TypeVar("V")  # column or condition of a table


class Rows(Protocol[V]):
    """Operations on the columns of a table that conditions need; a condition is a column of booleans or nulls."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the columns."""

    @property
    def table(self) -> str:
        """Name of the table in errors."""

    @property
    def hint(self) -> str:
        """Advice in the error about an unknown column."""

    def kind(self, name: str) -> str:
        """Return the kind of a column."""

    def column(self, name: str) -> V:
        """Return a column."""

    def as_number(self, column: V) -> V:
        """Convert a column of text to numbers, null where it is none."""

    def compare(self, operator: str, left: V | Scalar, right: V | Scalar) -> V:
        """Compare two columns of one kind, or a column and a constant."""

    def is_in(self, column: V, values: Sequence[Scalar]) -> V:
        """Return whether a column has one of the constants."""

    def contains(self, lists: V, value: V | Scalar) -> V:
        """Return whether the lists of a column have the value."""

    def is_null(self, column: V) -> V:
        """Return whether a column has no value."""

    def inverse(self, condition: V) -> V:
        """Return the negation, unknown where the condition is."""

    def combine(self, word: str, conditions: Sequence[V]) -> V:
        """Combine conditions by ``and`` or ``or``."""


class Evaluation(Generic[V]):
    """Evaluation of one condition on the rows of a table."""

    def __init__(self, parsed: ParsedCondition, rows: Rows[V]) -> None:
        self.parsed, self.rows = parsed, rows
        self.as_numbers: list[str] = []  # columns of text that are compared as numbers

    def result(self) -> V:
        """Return the condition. Raises ValueError for unknown columns and for values of different kinds."""
        return self._condition(self.parsed.root)

    def _error(self, node: Node, problem: str) -> ValueError:
        return self.parsed.error(node.place, problem)

    def _condition(self, node: Node) -> V:
        rows = self.rows
        if isinstance(node, Combination):
            return rows.combine(node.word, [self._condition(part) for part in node.parts])
        if isinstance(node, Negation):
            return rows.inverse(self._condition(node.inner))
        if isinstance(node, Comparison):
            _, left, right = self._pair(node.operator, node.left, node.right)
            return rows.compare(node.operator, left, right)
        if isinstance(node, Membership):
            return self._membership(node)
        if isinstance(node, NullTest):
            return rows.is_null(rows.column(self._column(node.operand).name))
        if isinstance(node, Column) and self._kind(node) == BOOLEAN and node.name in rows.names:
            return rows.column(node.name)
        raise self._error(node, "is no condition; compare a column with a value")

    def _membership(self, node: Membership) -> V:
        rows, choices = self.rows, node.choices
        if isinstance(choices, Column):
            return self._contains(node.left, choices)
        column = self._column(node.left)
        if self._kind(column).startswith(LIST):
            raise self._error(node, f"{column.name} has lists; write `'value' in {column.name}`, one for each value")
        pairs = [self._pair("==", column, choice) for choice in choices]
        if len({kind for kind, _, _ in pairs}) > 1:
            raise self._error(choices[0], "the values are of several kinds")
        if any(self._is_column(choice) for choice in choices):
            return rows.combine("or", [rows.compare("==", left, right) for _, left, right in pairs])
        return rows.is_in(cast(V, pairs[0][1]), [cast(Scalar, right) for _, _, right in pairs])

    def _contains(self, left: Operand, lists: Column) -> V:
        kind = self._kind(self._column(lists))
        if not kind.startswith(LIST):
            raise self._error(lists, "`in` needs a list of values in brackets, or a column of lists")
        if self._kind(left) != (element := kind.removeprefix(LIST)) or element == OTHER:
            raise self._error(left, f"is {self._kind(left)} and {lists.name} has lists of {element}")
        return self.rows.contains(self.rows.column(lists.name), self._value(left))

    def _pair(self, operator: str, left: Operand, right: Operand) -> tuple[str, V | Scalar, V | Scalar]:
        """Return the kind of both sides, number if one is, and their values; text beside a number is converted."""
        if not self._is_column(left) and not self._is_column(right):
            raise self._error(left, "no column is compared")
        kinds = [self._kind(left), self._kind(right)]
        for node, kind in zip((left, right), kinds, strict=True):
            if kind == OTHER:
                raise self._error(node, "has neither numbers, texts nor booleans")
            if kind.startswith(LIST):
                raise self._error(node, f"has lists; write `'value' in {cast(Column, node).name}`")
        if EMPTY in kinds:  # every comparison is unknown
            kinds = [kind for kind in kinds if kind != EMPTY] * 2 or kinds
        if {*kinds} == {TEXT, NUMBER}:
            pair = self._numbers(left, right) if kinds[0] == TEXT else self._numbers(right, left)[::-1]
            return NUMBER, *pair
        if kinds[0] != kinds[1]:
            raise self._error(left, f"{kinds[0]} and {kinds[1]} cannot be compared")
        if kinds[0] == BOOLEAN and operator not in ("==", "!="):
            raise self._error(left, "booleans are compared by == and != only")
        return kinds[0], self._value(left), self._value(right)

    def _numbers(self, text: Operand, number: Operand) -> tuple[V | Scalar, V | Scalar]:
        """Return text as a number, and the number beside it."""
        if not self._is_column(text):
            if isinstance(number, Column) and number.name == "timestamp":
                raise self._error(text, "timestamp has seconds since 1970; the step time_window takes dates")
            raise self._error(text, "is text and the column has numbers; leave out the quotation marks")
        name, value = cast(Column, text).name, self._value(number)
        if name in TEXT_COLUMNS:
            raise self._error(text, f"{name} is text; write the value in quotation marks")
        if isinstance(value, int | float) and abs(value) >= EXACT:
            raise self._error(number, "an integer that long is not exact; write it in quotation marks")
        self.as_numbers += [name] if name not in self.as_numbers else []
        return self.rows.as_number(self.rows.column(name)), value

    # Operands -----------------------------------------------------------------------------------------------------

    def _is_column(self, node: Operand) -> bool:
        return isinstance(node, Column) and (node.name in self.rows.names or node.name.lower() not in WORDS)

    def _column(self, node: Operand) -> Column:
        if not isinstance(node, Column) or not self._is_column(node):
            raise self._error(node, "is no column; the column stands on the left")
        self._check_known(node)
        return node

    def _check_known(self, node: Column) -> None:
        names = list(self.rows.names)
        if node.name not in names:
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            raise self._error(
                node,
                f"{self.rows.table} no column {node.name!r}{nearest(node.name, names)}, only {shown}; "
                f"text stands in quotation marks{self.rows.hint}",
            )

    def _value(self, node: Operand) -> V | Scalar:
        if self._is_column(node):
            return self.rows.column(cast(Column, node).name)
        return node.value if isinstance(node, Constant) else cast(bool, WORDS[node.name.lower()])

    def _kind(self, node: Operand) -> str:
        if isinstance(node, Column) and self._is_column(node):
            self._check_known(node)
            return self.rows.kind(node.name)
        value = node.value if isinstance(node, Constant) else WORDS[node.name.lower()]
        if value is None:
            raise self._error(node, "null is compared by `is null` and `is not null`")
        return BOOLEAN if isinstance(value, bool) else TEXT if isinstance(value, str) else NUMBER
