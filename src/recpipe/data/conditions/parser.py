"""Parser of conditions: text to a tree of comparisons, in Python's spelling or that of SQL. Nothing is evaluated.

    condition  = conjunction {"or" conjunction}
    conjunction = negation {"and" negation}
    negation   = "not" negation | comparison
    comparison = operand {("==" | "=" | "!=" | "<>" | "<" | "<=" | ">" | ">=") operand}
               | operand ["not"] "in" (list of operands in brackets | column of lists)
               | operand "is" ["not"] "null"
    operand    = column | `column` | number | 'text' | "text" | true | false | null | "(" condition ")"

Words count in any case. In texts, a backslash escapes as in Python and a doubled quotation mark is one of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

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
)

KEYWORDS = ("and", "or", "not", "in", "is")
OPERATORS = {"=": "==", "==": "==", "!=": "!=", "<>": "!=", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
GRAMMAR = (
    "comparisons (=, ==, !=, <>, <, <=, >, >=, in [...], is null), and, or, not, numbers, 'texts' and names of columns"
)
MAX_CHARACTERS, MAX_COMPARISONS, MAX_DEPTH = 100_000, 100, 50  # comparisons, negations and columns of booleans
TOKENS = re.compile(
    r"""(?P<blank>\s+)
    | (?P<text>'(?:[^'\\]|\\.|'')*+'|"(?:[^"\\]|\\.|"")*+")
    | (?P<quoted>`[^`]+`)
    | (?P<number>(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?(?!\w))
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><>|==|!=|<=|>=|[=<>()\[\],-])""",
    re.VERBOSE,
)
ESCAPE = re.compile(r"""\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|(.))|''|\"\"""")
ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"'}
HINTS = {
    "#": "a comment is not allowed", "&": "write `and`", "|": "write `or`", "!": "write `not`", "~": "write `not`",
    "'": "the quotation mark has no end", '"': "the quotation mark has no end", ";": "one condition is allowed",
    "\0": "a null byte is not allowed", **dict.fromkeys("+*/%^", "arithmetic is not allowed"),
}  # fmt: skip

UNKNOWN_WORDS = {
    "between": "write two comparisons, as in 1 <= price <= 2",
    **dict.fromkeys(("like", "ilike", "contains"), "texts are compared as a whole, by = and in [...]"),
}


@dataclass(frozen=True)
class ParsedCondition:
    """Tree of a condition and its text in one line, which errors quote."""

    line: str
    root: Node

    def error(self, place: int, problem: str) -> ValueError:
        """Return the error at a position, counted from 0."""
        return condition_error(self.line, place, problem)


def parse_condition(text: str) -> ParsedCondition:
    """Parse ``text``. Raises ValueError with the position of the error, counted from 1."""
    line = text.strip().replace("\n", " ")
    if len(line) > MAX_CHARACTERS:
        raise ValueError(f"the condition has {len(line):,} characters; {MAX_CHARACTERS:,} are allowed")
    return ParsedCondition(line, _Parser(line).parse())


def condition_error(line: str, place: int, problem: str) -> ValueError:
    """Return the error with the text, the position and what is there."""
    shown = line if len(line) <= 200 else f"{line[:200]}…"
    return ValueError(
        f"condition {shown!r}, position {place + 1}, {line[place : place + 20]!r}: {problem}. Allowed: {GRAMMAR}"
    )


@dataclass(frozen=True)
class _Token:
    kind: str  # text, quoted, number, word, sign or end
    place: int
    text: str

    @property
    def lower(self) -> str:
        """Word in lower case or sign; empty for texts, numbers and quoted names."""
        return self.text.lower() if self.kind in ("word", "sign") else ""


class _Parser:
    """Recursive descent over the tokens of one line."""

    def __init__(self, line: str) -> None:
        self.line, self.position, self.depth, self.comparisons = line, 0, 0, 0
        self.tokens = self._tokens()

    def parse(self) -> Node:
        node = self._condition()
        if self._next.kind != "end":
            self._fail(self._next, UNKNOWN_WORDS.get(self._next.lower, "`and` or `or` is expected here"))
        return node

    def _tokens(self) -> list[_Token]:
        tokens, place = [], 0
        while place < len(self.line):
            match = TOKENS.match(self.line, place)
            if match is None:
                hint = HINTS.get(self.line[place], "cannot be read")
                raise condition_error(self.line, place, hint)
            if match.lastgroup != "blank":
                tokens.append(_Token(str(match.lastgroup), place, match.group()))
            place = match.end()
        return [*tokens, _Token("end", len(self.line), "")]

    @property
    def _next(self) -> _Token:
        return self.tokens[self.position]

    def _take(self, *expected: str) -> _Token | None:
        """Return the next token and go on if it is one of the words or signs."""
        token = self._next
        if token.lower not in expected:
            return None
        self.position += 1
        return token

    def _fail(self, token: _Token | Node, problem: str) -> NoReturn:
        raise condition_error(self.line, token.place, problem)

    def _count(self) -> None:
        self.comparisons += 1
        if self.comparisons > MAX_COMPARISONS:
            raise ValueError(
                f"condition {self.line[:80]!r} has more than {MAX_COMPARISONS} comparisons; use `in [...]` or "
                "several steps"
            )

    # Conditions ---------------------------------------------------------------------------------------------------

    def _condition(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"condition {self.line[:80]!r} is nested too deeply; {MAX_DEPTH} brackets are allowed")
        node = self._combination("or", lambda: self._combination("and", self._negation))
        self.depth -= 1
        return node

    def _combination(self, word: str, part: Callable[[], Node]) -> Node:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Combination(parts[0].place, word, tuple(parts))

    def _negation(self) -> Node:
        if token := self._take("not"):
            self._count()
            return Negation(token.place, self._negation())
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._term()
        token, negated = self._next, False
        if token.lower in OPERATORS:
            return self._chain(self._operand(left))
        if self._take("not"):
            negated = True
            if self._next.lower != "in":
                self._fail(self._next, "`in` is expected after `not`")
        if self._take("in"):
            self._count()
            node: Node = Membership(left.place, self._operand(left), self._choices())
        elif self._take("is"):
            self._count()
            negated = self._take("not") is not None
            word = self._term()
            if not isinstance(word, Column) or word.name.lower() not in ("null", "none"):
                self._fail(word, "`is` goes with null only; compare values by ==")
            node = NullTest(left.place, self._operand(left))
        else:
            if isinstance(left, Column):
                self._count()
            return left
        return Negation(left.place, node) if negated else node

    def _chain(self, left: Operand) -> Node:
        parts: list[Node] = []
        while self._next.lower in OPERATORS:
            operator = OPERATORS[self._next.lower]
            self.position += 1
            self._count()
            right = self._operand(self._term())
            parts.append(Comparison(left.place, operator, left, right))
            left = right
        return parts[0] if len(parts) == 1 else Combination(parts[0].place, "and", tuple(parts))

    def _choices(self) -> tuple[Operand, ...] | Column:
        bracket = self._take("(", "[")
        if bracket is None:
            column = self._term()
            if not isinstance(column, Column):
                self._fail(column, "`in` needs a list of values in brackets, or a column of lists")
            return column
        end, choices = {"(": ")", "[": "]"}[bracket.text], []
        while not self._take(end):
            choices.append(self._operand(self._term()))
            if not self._take(",") and self._next.lower != end:
                self._fail(self._next, f"a comma or {end} is expected here")
        if not choices:
            self._fail(bracket, "`in` needs at least one value")
        return tuple(choices)

    # Operands -----------------------------------------------------------------------------------------------------

    def _operand(self, node: Node) -> Operand:
        if not isinstance(node, Column | Constant):
            self._fail(node, "a column, a number, a text in quotation marks, true or false belongs here")
        return node

    def _term(self) -> Node:
        """Return a column, a constant, or what stands in brackets."""
        token = self._next
        self.position += token.kind != "end"
        if token.kind == "text":
            return Constant(token.place, self._text(token))
        if token.kind == "number":
            return Constant(token.place, self._number(token, token.text))
        if token.kind == "quoted":
            return Column(token.place, token.text[1:-1])
        if token.kind == "word" and token.lower not in KEYWORDS:
            return Column(token.place, token.text)
        if token.lower == "-" and self._next.kind == "number":
            number = self._next
            self.position += 1
            return Constant(token.place, self._number(token, f"-{number.text}"))
        if token.lower == "(":
            node = self._condition()
            if not self._take(")"):
                self._fail(self._next, "`)` is expected here")
            return node
        self._fail(token, "cannot be read: a column, a number, a text in quotation marks, true or false belongs here")

    def _number(self, token: _Token, text: str) -> int | float:
        try:
            number = int(text) if len(text) < 40 and re.fullmatch("-?[0-9_]+", text) else float(text)
        except ValueError:
            self._fail(token, "is no number")
        if (isinstance(number, int) and not -(2**63) <= number < 2**63) or number in (float("inf"), -float("inf")):
            self._fail(token, "a number that large is not possible")
        return number

    def _text(self, token: _Token) -> str:
        mark = token.text[0]

        def unescape(match: re.Match[str]) -> str:
            if match[0] == mark * 2:
                return mark
            code = match[1] or match[2]
            return chr(int(code, 16)) if code else ESCAPED.get(match[3], match[0])

        text = ESCAPE.sub(unescape, token.text[1:-1])
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            self._fail(token, "the text has null bytes or half a character")
        return text
