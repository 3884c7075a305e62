"""Conditions on columns of the log as text, such as ``rating >= 4 and event in ['cart', 'purchase']``.

Python's parser reads the text and nothing of it is evaluated: the nodes of ``ALLOWED`` become an Ibis expression. A
comparison with a missing value is not true, as in SQL.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Annotated, Any

import ibis
import ibis.expr.types as ir
from pydantic import AfterValidator

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], ir.BooleanValue]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip
ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, *COMPARISONS, ast.In,
    ast.NotIn, ast.Is, ast.IsNot, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
WORDS = {"null": None, "true": True, "false": False}
GRAMMAR = "comparisons (==, !=, <, <=, >, >=, in [...], is null), and, or, not, numbers, 'texts' and names of columns"
TEXT_COLUMNS = ("user_id", "item_id", "event")  # never compared as numbers
LONGEST, MOST = 100_000, 100  # characters; comparisons, negations and columns of booleans
EXACT = 2**53  # integers from here on are not exact as doubles


def check_condition(text: str) -> str:
    """Return ``text`` if it can be parsed. Raises ValueError with the position of the error."""
    _parse(text)
    return text


Condition = Annotated[str, AfterValidator(check_condition)]


def condition_expression(text: str, rows: ir.Table) -> tuple[ir.BooleanValue, list[str]]:
    """Return the condition on ``rows``, and the columns of text that it compares as numbers.

    Raises ValueError with a position for unknown columns, and for values of different kinds.
    """
    builder = _Builder(_one_line(text), rows)
    return builder.condition(_parse(text)), builder.as_numbers


def as_number(column: ir.StringValue) -> ir.FloatingValue:
    """Convert text to a number, null where it is none."""
    number = column.try_cast("float64")
    return ibis.ifelse(number.isnan(), ibis.null("float64"), number)


def _one_line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _parse(text: str) -> ast.expr:
    line = _one_line(text)
    if len(line) > LONGEST:
        raise ValueError(f"the condition has {len(line):,} characters; {LONGEST:,} are allowed")
    problem = f"condition {line[:80]!r} cannot be read: it is nested too deeply or has null bytes"
    try:
        tree = ast.parse(line, mode="eval")
        nodes = list(ast.walk(tree))
    except SyntaxError as error:
        place = min(error.offset or len(line) + 1, len(line) + 1) if error.lineno == 1 else len(line) + 1
        raise ValueError(_message(line, place, f"cannot be read ({error.msg})")) from None
    except (ValueError, RecursionError, MemoryError):
        raise ValueError(problem) from None
    for node in nodes:
        if not isinstance(node, ALLOWED):
            raise _Builder(line).error(node, f"{type(node).__name__} is not allowed")
    parts = [part for node in nodes if isinstance(node, ast.BoolOp) for part in node.values]
    booleans = [part for part in parts if isinstance(part, ast.Name)]  # columns that are conditions themselves
    if sum(isinstance(node, ast.Compare | ast.UnaryOp) for node in nodes) + len(booleans) > MOST:
        raise ValueError(f"condition {line[:80]!r} has more than {MOST} comparisons; use `in [...]` or several steps")
    if "#" in (rest := line.encode()[tree.body.end_col_offset :].decode()):
        raise ValueError(_message(line, len(line) - len(rest) + rest.index("#") + 1, "a comment is not allowed"))
    return tree.body


def _message(line: str, place: int, problem: str) -> str:
    start = max(place - 1, 0)
    shown = line if len(line) <= 200 else f"{line[:200]}…"
    return f"condition {shown!r}, position {place}, {line[start : start + 20]!r}: {problem}. Allowed: {GRAMMAR}"


class _Builder:
    """Builder of the Ibis expression of one condition."""

    def __init__(self, line: str, rows: ir.Table | None = None) -> None:
        self.line, self.rows = line, rows
        self.as_numbers: list[str] = []

    def error(self, node: ast.AST, problem: str) -> ValueError:
        offset = getattr(node, "col_offset", 0)  # in bytes
        return ValueError(_message(self.line, len(self.line.encode()[:offset].decode()) + 1, problem))

    def condition(self, node: ast.expr) -> ir.BooleanValue:
        if isinstance(node, ast.BoolOp):
            combine = operator.and_ if isinstance(node.op, ast.And) else operator.or_
            result = self.condition(node.values[0])
            for value in node.values[1:]:
                result = combine(result, self.condition(value))
            return result
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self.condition(node.operand)
        if isinstance(node, ast.Compare):
            result = None
            left = node.left
            for comparison, right in zip(node.ops, node.comparators, strict=True):
                part = self.comparison(node, left, comparison, right)
                result, left = part if result is None else result & part, right
            return result
        if isinstance(node, ast.Name) and isinstance(value := self.value(node), ir.BooleanValue):
            return value
        raise self.error(node, "is no condition; compare a column with a value")

    def comparison(self, node: ast.AST, left: ast.expr, comparison: ast.cmpop, right: ast.expr) -> ir.BooleanValue:
        if isinstance(comparison, ast.Is | ast.IsNot):
            column = self.column(left)
            if isinstance(right, ast.List | ast.Tuple) or self.value(right) is not None:
                raise self.error(right, "`is` goes with null only; compare values by ==")
            return column.isnull() if isinstance(comparison, ast.Is) else column.notnull()
        if isinstance(comparison, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                raise self.error(right, "`in` needs a list of values in brackets")
            self.column(left)
            pairs = [self.operands(ast.Eq(), left, element) for element in right.elts]
            if len({kind for kind, _, _ in pairs}) > 1:
                raise self.error(right, "the values are of several kinds")
            result = pairs[0][1].isin([value for _, _, value in pairs])
            return result if isinstance(comparison, ast.In) else ~result
        _, one, other = self.operands(comparison, left, right)
        return COMPARISONS[type(comparison)](one, other)

    def operands(self, comparison: ast.cmpop, left: ast.expr, right: ast.expr) -> tuple[str, Any, Any]:
        """Return the kind of both sides, number if one is, and their values; text beside a number is converted."""
        nodes, values = (left, right), [self.value(left), self.value(right)]
        if not any(isinstance(value, ir.Value) for value in values):
            raise self.error(left, "no column is compared")
        kinds = [self.kind(node, value) for node, value in zip(nodes, values, strict=True)]
        if set(kinds) == {"text", "number"}:
            place = kinds.index("text")
            node, value, number = nodes[place], values[place], values[1 - place]
            name = node.id if isinstance(node, ast.Name) else ""
            if not isinstance(value, ir.Value) and getattr(nodes[1 - place], "id", "") == "timestamp":
                raise self.error(node, "timestamp has seconds since 1970; the step time_window takes dates")
            if not isinstance(value, ir.Value):
                raise self.error(node, f"{value!r} is text and the column has numbers; leave out the quotation marks")
            if name in TEXT_COLUMNS:
                raise self.error(node, f"{name} is text; write the value in quotation marks")
            if not isinstance(number, ir.Value) and abs(number) >= EXACT:
                raise self.error(nodes[1 - place], "an integer that long is not exact; write it in quotation marks")
            self.as_numbers += [name] if name not in self.as_numbers else []
            values[place] = as_number(value)
            return "number", *values
        elif kinds[0] != kinds[1]:
            raise self.error(left, f"{kinds[0]} and {kinds[1]} cannot be compared")
        elif kinds[0] == "boolean" and not isinstance(comparison, ast.Eq | ast.NotEq):
            raise self.error(left, "booleans are compared by == and != only")
        return kinds[0], *values

    def kind(self, node: ast.expr, value: Any) -> str:
        if value is None:
            raise self.error(node, "null is compared by `is null` and `is not null`")
        if isinstance(value, bool | ir.BooleanValue):
            return "boolean"
        if isinstance(value, str | ir.StringValue):
            return "text"
        if isinstance(value, int | float | ir.NumericValue):
            return "number"
        raise self.error(node, "has neither numbers, texts nor booleans")

    def column(self, node: ast.expr) -> ir.Value:
        value = self.value(node)
        if not isinstance(value, ir.Value):
            raise self.error(node, "is no column; the column stands on the left")
        return value

    def value(self, node: ast.expr) -> Any:
        """Return a column, or a constant: number, text, boolean or null."""
        assert self.rows is not None
        if isinstance(node, ast.Name):
            if node.id in self.rows.columns:
                return self.rows[node.id]
            if node.id.lower() in WORDS:
                return WORDS[node.id.lower()]
            choices = ", ".join(self.rows.columns)
            raise self.error(
                node,
                f"the log has no column {node.id!r}, only {choices}; text stands in quotation marks, and "
                "`extra_columns` in the options of the data set adds columns of the file",
            )
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bool | int | float | None):
            if isinstance(node.value, float) and not math.isfinite(node.value):
                raise self.error(node, "a number that large is not finite")
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            number = self.value(node.operand)
            if isinstance(number, int | float) and not isinstance(number, bool):
                return -number
        raise self.error(node, "a column, a number, a text in quotation marks, true or false belongs here")
