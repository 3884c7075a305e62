"""First rows of a raw file as text, with a guess of its format, delimiter and encoding."""

from __future__ import annotations

import codecs
import csv
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, cast

from recpipe.config import ConfigError

DELIMITERS = (",", ";", "\t", "|", "::")
TEXT_SUFFIXES = {".csv": "csv", ".txt": "csv", ".dat": "csv", ".tsv": "tsv", ".tab": "tsv"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")
COMPRESSED = (".gz", ".bz2", ".zst")
ENCODINGS = ("utf-8", "cp1252")
HEAD = 1 << 16  # bytes that encoding and delimiter are guessed from


@dataclass(frozen=True)
class Sample:
    """Rows of a file as text, a missing value as ``""``.

    layout: words on the format, for the reader. options: what a data set's ``options`` need to read it.
    complete: whether these are all rows of the file.
    """

    path: Path
    columns: list[str]
    table: list[list[str]]
    layout: list[str]
    complete: bool
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.table)

    def values(self, column: str) -> list[str]:
        """Return the values of a column, one per row."""
        place = self.columns.index(column)
        return [row[place] for row in self.table]


def read_sample(path: Path, *, rows: int, delimiter: str | None) -> Sample:
    """Read up to ``rows`` rows. Raises ConfigError for a format that is not known, or a file without rows."""
    if rows < 1:
        raise ConfigError(f"{rows} rows cannot be described: read one or more")
    if not path.is_file():
        raise ConfigError(f"{path} is {'a folder: name one file of it' if path.is_dir() else 'no file'}")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    suffix = suffixes[-1] if suffixes else ""
    try:
        if suffix in PARQUET_SUFFIXES:
            sample = _parquet(path, rows)
        elif suffix in JSON_SUFFIXES:
            sample = _json(path, rows)
        elif suffix in TEXT_SUFFIXES:
            sample = _delimited(path, rows, delimiter, TEXT_SUFFIXES[suffix])
        else:
            raise ConfigError(
                f"the name of {path} does not say its format: give it one of the endings "
                f"{', '.join((*TEXT_SUFFIXES, *JSON_SUFFIXES, *PARQUET_SUFFIXES))}, as text also with .gz, .bz2 or .zst"
            )
    except (OSError, EOFError, zlib.error, csv.Error, RecursionError) as error:  # damaged, or not what its name says
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not sample.table:
        raise ConfigError(f"{path} has no rows")
    return sample


def _parquet(path: Path, rows: int) -> Sample:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        batch = next(file.iter_batches(batch_size=rows), None)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path} cannot be read as Parquet: {error}") from error
    columns = [] if batch is None else [list(map(_text, column.to_pylist())) for column in batch.columns]
    table = [list(row) for row in zip(*columns, strict=True)]
    return Sample(path, file.schema_arrow.names, table, ["parquet"], file.metadata.num_rows <= rows)


def _json(path: Path, rows: int) -> Sample:
    try:
        with _opened(path) as binary:
            stream = io.TextIOWrapper(binary, "utf-8")
            first = stream.read(1)
            stream.seek(0)
            if first == "[":
                records = json.load(stream)
            else:
                records = [json.loads(line) for line in islice(filter(str.strip, stream), rows + 1)]
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read as JSON lines or an array: {error}") from error
    if not all(isinstance(record, dict) for record in records[:rows]):
        raise ConfigError(f"{path} holds values that are no records, such as {str(records[0])[:80]}")
    columns = list(dict.fromkeys(key for record in records[:rows] for key in record))
    table = [[_text(record.get(column)) for column in columns] for record in records[:rows]]
    return Sample(path, columns, table, ["an array of JSON" if first == "[" else "JSON lines"], len(records) <= rows)


def _delimited(path: Path, rows: int, delimiter: str | None, kind: str) -> Sample:
    with _opened(path) as stream:
        head = stream.read(HEAD)
    if not head:
        raise ConfigError(f"{path} is empty")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ConfigError(f"{path} is UTF-16: convert it, `iconv -f UTF-16 -t UTF-8 {path.name} > utf8_{path.name}`")
    encoding = next((name for name in ENCODINGS if _decodes(head, name)), "latin-1")
    lines = head.decode(encoding, errors="ignore").splitlines()
    delimiter = delimiter.replace("\\t", "\t") if delimiter else guess_delimiter(lines)
    with _opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
        if len(delimiter) > 1:
            reader: Iterator[list[str]] = (line.rstrip("\r\n").split(delimiter) for line in text)
        else:
            reader = csv.reader(
                text, delimiter=delimiter, quoting=csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
            )
        columns = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
        table = [row for row in islice(reader, rows + 1) if row]
    if not columns or not all(columns) or all(is_number(name) for name in columns):
        raise ConfigError(
            f"the first line of {path} does not name its columns: {','.join(columns)[:100]}. Add such a line, or write "
            "the data-set file by hand with `header: false` and `names`, see conf/base/parameters/datasets/my_log.yml"
        )
    if len(columns) == 1:
        raise ConfigError(f"{path} has one column, {columns[0]!r}: is --delimiter {delimiter!r} right?")
    width = len(columns)
    complete, good = len(table) <= rows, [row for row in table[:rows] if len(row) == width]
    options: dict[str, Any] = {}
    if delimiter != ("\t" if kind == "tsv" else ","):
        options["delimiter"] = delimiter
    if encoding != "utf-8":
        options["encoding"] = encoding
    layout = [kind, f"delimiter {delimiter!r}", encoding]
    if short := len(table[:rows]) - len(good):
        layout.append(f"{short} rows without {width} values")
    return Sample(path, columns, good, layout, complete, options)


def guess_delimiter(lines: list[str]) -> str:
    """Return the delimiter that occurs in the header and most equally often in the first lines; a comma without any."""
    header, body = (lines or [""])[0], lines[1:200]

    def fitness(delimiter: str) -> tuple[float, int]:
        number = header.count(delimiter)
        equal = sum(line.count(delimiter) == number for line in body) / max(len(body), 1)
        return (equal if number else -1.0, number)

    return max(DELIMITERS, key=fitness)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading, decompressed by its suffix."""
    from recpipe.data.files.archives import SUFFIXES, decompressed

    suffix = path.suffix.lower()
    with path.open("rb") as file:
        yield cast(IO[bytes], decompressed(file, SUFFIXES[suffix])) if suffix in COMPRESSED else file


def _decodes(head: bytes, encoding: str) -> bool:
    try:
        head.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 4 and encoding == "utf-8"  # a character cut at the end
    return True


def is_number(text: str) -> bool:
    """Return whether ingest reads a text as a number: with a point, as 0.5, not with a comma."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(value, default=str) if isinstance(value, list | dict) else str(value)
