"""Tree of a parsed condition; ``place`` is the position in its text, counted from 0."""

from __future__ import annotations

from dataclasses import dataclass

Scalar = str | bool | int | float


@dataclass(frozen=True)
class Column:
    """Name of a column."""

    place: int
    name: str


@dataclass(frozen=True)
class Constant:
    """Number or text; ``true``, ``false`` and ``null`` are names until the columns are known."""

    place: int
    value: Scalar


Operand = Column | Constant


@dataclass(frozen=True)
class Comparison:
    """Two operands compared by one of ==, !=, <, <=, > and >=."""

    place: int
    operator: str
    left: Operand
    right: Operand


@dataclass(frozen=True)
class Membership:
    """Operand in a list of operands, or in a column of lists."""

    place: int
    left: Operand
    choices: tuple[Operand, ...] | Column


@dataclass(frozen=True)
class NullTest:
    """Operand is null."""

    place: int
    operand: Operand


@dataclass(frozen=True)
class Negation:
    """Not the inner condition."""

    place: int
    inner: Node


@dataclass(frozen=True)
class Combination:
    """Conditions combined by ``and`` or ``or``."""

    place: int
    word: str
    parts: tuple[Node, ...]


Node = Column | Constant | Comparison | Membership | NullTest | Negation | Combination
