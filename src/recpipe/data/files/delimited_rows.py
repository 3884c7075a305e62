"""Delimited text that DuckDB cannot split line by line, converted to Parquet with a reason for every bad line.

Quotation marks, mixed line ends, null bytes, bytes that are no UTF-8: one bad line must not take others with it. Every
line that is not blank becomes a row, part of a quoted value with line breaks, or a row with a problem. A quoted value
with line breaks counts only where it is plausible; else its first line is bad and the next is read by itself.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recpipe.data.files.archives import CHUNK, MAX_LINE_BYTES

BATCH_ROWS, BATCH_LETTERS = 20_000, 32 << 20
FREE_RETRIES, RETRIES_PER_LINE = 1_000_000, 10  # lines that are read again after quotation marks that do not match
INVALID_SHARE, INVALID_LINES = 1000, 3  # one line in so many may be no UTF-8, and so many in any file of ten times that
SEPARATOR = "\x1f"  # stands for a delimiter of several characters: Python's csv has one
NOT_UTF8 = "not UTF-8, see option encoding"
STRAY_QUOTE = "quotation mark stray or not closed, see option quote"
ESCAPED_QUOTE = "quotation mark after a backslash, set option escape"
PROBLEM = "__problem"  # column with the reason why a line is bad
BOM = "\ufeff"

Record = tuple[list[str], str | None]  # values, problem


class TextError(ValueError):
    """Text that cannot be read: a message, and bytes that are no UTF-8 if that is why."""

    def __init__(self, message: str, sample: bytes = b"") -> None:
        super().__init__(message)
        self.sample = sample


class BadLine(str):
    """A line that cannot be used, as far as it can be shown; ``problem`` says why."""

    problem: str

    @classmethod
    def of(cls, line: bytes, problem: str) -> BadLine:
        """Create from bytes."""
        text = cls(line[:200].decode("utf-8", "replace").replace("\0", "\ufffd").rstrip("\r\n"))
        text.problem = problem
        return text


@dataclass(frozen=True)
class Dialect:
    """How a file separates values. delimiter None: a line is one value. quote, escape, comment: empty for none."""

    delimiter: str | None
    quote: str = ""
    escape: str = ""
    comment: str = ""

    @property
    def separator(self) -> str:
        """Delimiter of one character."""
        return self.delimiter if self.delimiter and len(self.delimiter) == 1 else SEPARATOR

    def well_formed(self) -> re.Pattern[str]:
        """Return a pattern of records whose quotation marks enclose whole values or are escaped."""
        quote, separator, escape = (re.escape(sign) for sign in (self.quote, self.separator, self.escape))
        pair = f"|{escape}." if escape else ""
        quoted = f"{quote}(?:[^{quote}{escape}]|{quote}{quote}{pair})*+{quote}"
        return re.compile(f"(?:{quoted}|(?:[^{quote}{separator}{escape}]{pair})*+)(?:{separator}|[\r\n]*$)", re.DOTALL)

    def foreign_escapes(self) -> re.Pattern[str]:
        """Return a pattern whose group 1 is an escaped quote, delimiter or escape; without it, a literal escape."""
        escape = re.escape(self.escape)
        signs = "".join(re.escape(sign) for sign in (self.quote, self.separator, self.escape))
        return re.compile(f"({escape}[{signs}\r\n])|{escape}")


class Records:
    """Iterator over the records of a file.

    n_columns: 0 takes records of any length. single_line: places of columns in which a value has no line break and no
    quotation mark that is not escaped, such as ids. Raises TextError where quotation marks match in few lines.
    """

    def __init__(
        self, lines: Iterator[str], dialect: Dialect, *, n_columns: int = 0, single_line: Sequence[int] = ()
    ) -> None:
        self._lines, self._dialect = lines, dialect
        self._n_columns, self._single_line = n_columns, single_line
        self._pending: deque[str] = deque()  # lines that are read again
        self._record: list[str] = []  # lines of the current record
        self.n_lines, self._n_retries, self.n_comments = 0, 0, 0
        self._well_formed = dialect.well_formed() if dialect.quote else None
        self._foreign_escapes = dialect.foreign_escapes() if dialect.escape else None

    def __iter__(self) -> Iterator[Record]:
        """Yield records; lines after the first of a bad record are read again, each by itself."""
        while batch := self._batch():
            self.n_lines += len(batch)
            values = self._values_of_lines(batch)
            if values is None:
                self._pending.extend(batch)
                yield from self._line_by_line()
            else:
                yield from zip(values, repeat(None))

    def first(self) -> Record | None:
        """Return the first record, None where there is none."""
        self._pending.extend(islice(self._lines, 1))
        while self._pending:
            for record in self._line_by_line():
                return record
            self._pending.extend(islice(self._lines, 1))
        return None

    def _batch(self) -> list[str]:
        batch, letters = [], 0
        for line in self._lines:
            batch.append(line)
            letters += len(line)
            if letters > CHUNK:
                break
        return batch

    def _values_of_lines(self, lines: list[str]) -> list[list[str]] | None:
        """Return the values of lines of which every one is a good record, else None; for speed."""
        quote = self._dialect.quote
        if self._dialect.separator != self._dialect.delimiter or self._dialect.escape or self._dialect.comment:
            return None
        if any(type(line) is BadLine for line in lines):
            return None
        try:
            values = list(self._reader(lines))
        except csv.Error:
            return None
        if len(values) != len(lines) or set(map(len, values)) != {self._n_columns}:
            return None
        if quote and any(quote in row[place] for place in self._single_line for row in values):
            return None
        return values

    def _line_by_line(self) -> Iterator[Record]:
        """Yield the records of pending lines, and of lines that follow where a record goes on."""
        reader, record = self._reader(self._feed()), self._record
        while self._pending:
            record.clear()
            error = False
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error:
                values, error = [], True
            if not error and not values:
                continue
            if self._n_columns and len(values) == self._n_columns + 1 and not values[-1]:
                values.pop()  # a delimiter at the end, as DuckDB takes it
            problem = self._problem(values, error=error)
            if problem is None:
                yield values, None
                continue
            yield values, f"{problem}: '{record[0][:60].rstrip()}'"
            self._retry()
            reader = self._reader(self._feed())

    def _retry(self) -> None:
        self._pending.extendleft(reversed(self._record[1:]))
        self._n_retries += len(self._record) - 1
        if self._n_retries > FREE_RETRIES + RETRIES_PER_LINE * self.n_lines:
            raise TextError(
                "quotation marks match in few lines. Set `quote: ''` in the options of the data set if the file does "
                "not quote, or `escape` if it does not double quotation marks inside values"
            )

    def _reader(self, lines: Iterable[str]) -> Iterator[list[str]]:
        dialect = self._dialect
        if dialect.delimiter is None:
            return ([text] if (text := line.rstrip("\r\n")) else [] for line in lines)
        reader = csv.reader(
            lines, strict=True, delimiter=dialect.separator, quotechar=dialect.quote or None,
            escapechar=dialect.escape or None, quoting=csv.QUOTE_MINIMAL if dialect.quote else csv.QUOTE_NONE,
        )  # fmt: skip
        if dialect.separator == dialect.delimiter:
            return reader
        return ([value.replace(SEPARATOR, dialect.delimiter or "") for value in values] for values in reader)

    def _feed(self) -> Iterator[str]:
        """Yield lines as Python's csv is to see them, and add them to the current record."""
        size = 0
        for line in self._next_lines():
            if not self._record:
                size = 0
                if self._dialect.comment and line.startswith(self._dialect.comment):
                    self.n_comments += 1
                    continue
            self._record.append(line)
            size += len(line)
            if size > MAX_LINE_BYTES and len(self._record) > 1:
                raise csv.Error("a record of so many lines is an open quotation mark")
            yield self._translated(line)

    def _next_lines(self) -> Iterator[str]:
        while True:
            if self._pending:
                yield self._pending.popleft()
            elif (line := next(self._lines, None)) is not None:
                self.n_lines += 1
                yield line
            else:
                return

    def _translated(self, line: str) -> str:
        if self._dialect.delimiter and self._dialect.separator != self._dialect.delimiter:
            line = line.replace(self._dialect.delimiter, SEPARATOR)
        if self._foreign_escapes and self._dialect.escape in line:
            line = self._foreign_escapes.sub(lambda match: match[1] or self._dialect.escape * 2, line)
        return line

    def _problem(self, values: list[str], *, error: bool) -> str | None:
        """Return the reason why a record is bad, without its value."""
        record, n_columns, quote = self._record, self._n_columns, self._dialect.quote
        wrong_length = bool(n_columns) and len(values) != n_columns
        if isinstance(record[0], BadLine):
            return record[0].problem
        if self._dialect.delimiter and self._dialect.separator != self._dialect.delimiter and SEPARATOR in record[0]:
            return "control character 0x1f"
        if quote and (error or len(record) > 1) and self._dialect.escape != "\\" and f"\\{quote}" in record[0]:
            return ESCAPED_QUOTE
        if error or (wrong_length and len(record) > 1):
            return STRAY_QUOTE
        if wrong_length:
            return "missing columns" if len(values) < n_columns else "too many columns"
        return self._line_break_problem(values) if len(record) > 1 else self._quote_problem(values)

    def _quote_problem(self, values: list[str]) -> str | None:
        """Return the reason why a record of one line is bad: a stray quotation mark in an id."""
        quote, line = self._dialect.quote, self._record[0]
        if quote and quote in line and any(quote in values[place] for place in self._single_line):
            return None if self._is_well_formed(line) else STRAY_QUOTE
        return None

    def _is_well_formed(self, line: str) -> bool:
        assert self._well_formed is not None
        text, place = self._translated(line), 0
        for _ in range(self._n_columns):
            match = self._well_formed.match(text, place)
            if match is None:
                return False
            place = match.end()
        return place == len(text)

    def _line_break_problem(self, values: list[str]) -> str | None:
        """Return the reason why a record of several lines is bad: a line break in an id, or lines that are records."""
        if any("\n" in values[place] or "\r" in values[place] for place in self._single_line):
            return "line break inside a value that must have none, see option quote"
        for line in self._record[1:]:
            if isinstance(line, BadLine):
                return STRAY_QUOTE
            parts = line.rstrip("\r\n").split(self._dialect.delimiter)
            if self._single_line and len(parts) == self._n_columns and all(
                _signs(parts[place]) == _signs(values[place]) for place in self._single_line
            ):  # fmt: skip
                return "quotation mark that encloses other lines, see option quote"
        return None


def _signs(value: str) -> set[str]:
    """Return the kinds of characters of a value."""
    return {"digit" if sign.isdigit() else "letter" if sign.isalpha() else sign for sign in value.strip('"')}


def decoded_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield lines with their ends (LF, CRLF or CR) of UTF-8 bytes; bad ones as ``BadLine``.

    Raises TextError where too many lines are no UTF-8 for a few damaged bytes: they are in another encoding.
    """
    n_lines, n_letters, invalid, sample = 0, 0, 0, b""
    for line in _byte_lines(chunks):
        n_lines += 1
        if len(line) > MAX_LINE_BYTES:
            yield BadLine.of(line, f"line of more than {MAX_LINE_BYTES >> 20} MiB")
            continue
        if b"\0" in line:
            yield BadLine.of(line, "null byte")
            continue
        try:
            text = line.decode()
        except UnicodeDecodeError:
            invalid, sample = invalid + 1, (sample + line)[: 1 << 16]
            yield BadLine.of(line, NOT_UTF8)
            continue
        n_letters += len(text) < len(line)
        yield text.removeprefix(BOM)
    if invalid > max(n_letters, n_lines // INVALID_SHARE, min(INVALID_LINES, n_lines // 10)):
        raise TextError(f"{invalid:,} of {n_lines:,} lines are not UTF-8", sample)


def _byte_lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines with their ends; of a line above ``MAX_LINE_BYTES`` only a beginning of one byte more."""
    rest, is_overlong = b"", False
    for chunk in chunks:
        start = chunk.find(b"\n") + 1 if is_overlong else 0
        if is_overlong and not start:
            continue
        is_overlong = False
        lines = (rest + chunk[start:]).splitlines(keepends=True)
        rest = lines.pop() if lines and not lines[-1].endswith(b"\n") else b""  # CR at the end may be half of CRLF
        yield from lines
        if len(rest) > MAX_LINE_BYTES:
            yield rest[: MAX_LINE_BYTES + 1]
            rest, is_overlong = b"", True
    if rest:
        yield rest


@contextmanager
def long_values() -> Iterator[None]:
    """Let Python's csv read values up to ``MAX_LINE_BYTES``."""
    before = csv.field_size_limit(2 * MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


class RowsFile:
    """Parquet file of text columns, ``PROBLEM`` and, if no column has its name, ``file_index``; written in batches."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        self._width = len(names)
        self._has_index = "file_index" not in map(str.lower, names)
        schema = pa.schema([(name, pa.string()) for name in (*names, PROBLEM)])
        self._schema = schema.append(pa.field("file_index", pa.int64())) if self._has_index else schema
        self._writer = pq.ParquetWriter(path, self._schema)
        self._index = 0
        self._rows: list[Record] = []
        self._letters = 0
        self.n_good = 0
        self.problem: str | None = None  # of the first bad record

    def add(self, values: list[str], problem: str | None) -> None:
        """Add a record; empty values become nulls."""
        self._rows.append((values, problem))
        self._letters += sum(map(len, values)) + 50
        if problem is None:
            self.n_good += 1
        else:
            self.problem = self.problem or problem
        if len(self._rows) >= BATCH_ROWS or self._letters >= BATCH_LETTERS:
            self._write()

    def next_file(self) -> None:
        """Count the records that follow to the next file."""
        self._write()
        self._index += 1

    def close(self) -> None:
        """Write the last batch."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        empty = [""] * self._width
        rows = [empty if problem else values for values, problem in self._rows]
        columns = [pa.array([value or None for value in column], pa.string()) for column in zip(*rows, strict=True)]
        columns = columns or [pa.array([], pa.string())] * self._width
        columns.append(pa.array([problem for _, problem in self._rows], pa.string()))
        if self._has_index:
            columns.append(pa.array([self._index] * len(rows), pa.int64()))
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self._rows, self._letters = [], 0
