"""JSON lines and lines of Python literals (parsed without evaluation) as sources."""

from __future__ import annotations

import ast
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import ibis

from recpipe.data.files.tables import (
    Source,
    column_types,
    errors_with_file,
    file_list,
    identifier,
    literal,
    path_summary,
    reason_with_value,
)
from recpipe.progress import BYTES, progress

logger = logging.getLogger(__name__)

MAX_LINE_BYTES = 16 << 20  # far above any review or product
SAMPLE_LINES = 100
INVALID = "_unread"  # key of a record that stands for a line without a literal; its value is the line's beginning


def typed_json_source(con: ibis.BaseBackend, paths: Sequence[str]) -> Source:
    """Create a source of JSON lines with all columns as text: types of the first records would lose later values."""
    where = path_summary(paths)
    layout = f"{file_list(paths)}, format = 'newline_delimited', hive_partitioning = false, ignore_errors = true"
    types = column_types(con, f"read_json({layout}, union_by_name = true)", where=where)
    for name, kind in types.items():
        if not kind.startswith(("STRUCT", "MAP", "JSON")):
            types[name] = "VARCHAR" + "[]" * kind.count("[]")
    columns = ", ".join(f"{literal(name)}: {literal(kind)}" for name, kind in types.items())
    empty = " AND ".join(f"{identifier(name)} IS NULL" for name in types)
    problem = f"CASE WHEN {empty} THEN 'not a JSON object' END"
    return Source(f"read_json({layout}, columns = {{{columns}}})", types, where, problem=problem)


def json_source(con: ibis.BaseBackend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]) -> Source:
    """Create a source with a JSON column per key. Raises ValueError for a required key that no first record has."""
    where = path_summary(paths)
    layout = (
        "format = 'newline_delimited', hive_partitioning = false, ignore_errors = true, "
        f"maximum_object_size = {MAX_LINE_BYTES}"
    )
    if required:
        records = f"read_json({file_list(paths[:1])}, {layout}, records = false, columns = {{'json': 'JSON'}})"
        query = f"SELECT json_keys(json) FROM {records} WHERE json_type(json) = 'OBJECT' LIMIT {SAMPLE_LINES}"
        with errors_with_file(where):
            sample = con.raw_sql(query).fetchall()
        _check_keys(required, {key for row in sample for key in row[0] or ()}, where)
    columns = ", ".join(f"{literal(key)}: 'JSON'" for key in keys)
    empty = " AND ".join(f"{identifier(key)} IS NULL" for key in keys)
    invalid = json_text(INVALID) if INVALID in keys else "NULL"
    problem = (
        f"CASE WHEN {invalid} IS NOT NULL THEN {reason_with_value('not a Python literal', invalid)} "
        f"WHEN {empty} THEN 'not a JSON object with the columns expected' END"
    )
    sql = f"read_json({file_list(paths)}, {layout}, columns = {{{columns}}})"
    return Source(sql, dict.fromkeys(keys, "JSON"), where, problem=problem)


@contextmanager
def literal_source(
    con: ibis.BaseBackend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]
) -> Iterator[Source]:
    """Create a ``json_source`` of Python literals through a temporary file, deleted when the context ends."""
    with TemporaryDirectory(prefix="recpipe-") as folder:
        converted = Path(folder) / "records.jsonl"
        sample: set[str] = set()
        with converted.open("w", encoding="utf-8") as out:
            for number, record in enumerate(record for path in paths for record in _records(path)):
                if number < SAMPLE_LINES:
                    sample |= record.keys() - {INVALID}
                values = {key: record[key] for key in (*keys, INVALID) if key in record}
                out.write(json.dumps(values, default=str, skipkeys=True) + "\n")
        _check_keys(required, sample, path_summary(paths))
        source = json_source(con, [str(converted)], keys=[*keys, INVALID], required=())
        yield source._replace(where=path_summary(paths))


def json_text(key: str) -> str:
    """Return SQL of a key's value as text."""
    return f"({identifier(key)} ->> '$')"


def json_words(key: str, *, separator: str = " ") -> str:
    """Return SQL of a key's text; a list or a list of lists is joined. Null where there is no text."""
    flat, nested = (f"json_extract_string({identifier(key)}, '{path}')" for path in ("$[*]", "$[*][*]"))
    plain = f"CASE WHEN json_type({identifier(key)}) = 'VARCHAR' THEN {json_text(key)} END"
    return (
        f"nullif(trim(CASE WHEN len({nested}) > 0 THEN array_to_string({nested}, {literal(separator)}) "
        f"WHEN len({flat}) > 0 THEN array_to_string({flat}, {literal(separator)}) ELSE {plain} END), '')"
    )


def _check_keys(required: Sequence[str], keys: set[str], where: str) -> None:
    missing = [key for key in required if key not in keys]
    if missing:
        present = ", ".join(sorted(map(str, keys))[:40]) or "no records in its first lines"
        raise ValueError(f"{where} has no {missing[0]!r}; found: {present}")


def _records(path: str) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries of a file; a line without one gives ``{INVALID: its beginning}``."""
    size = Path(path).stat().st_size
    with open(path, "rb") as raw, progress(size, f"read {Path(path).name}", unit=BYTES) as bar:
        stream: BinaryIO = gzip.open(raw) if path.endswith(".gz") else raw  # type: ignore[assignment]  # noqa: SIM115
        try:
            for line in _limited_lines(stream):
                bar.add(raw.tell() - bar.done)
                if line.strip():
                    yield _parse_literal(line)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error


def _limited_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines up to ``MAX_LINE_BYTES``; only the beginning of a longer one, which then is no literal."""
    buffered = io.BufferedReader(stream, 1 << 20)  # type: ignore[type-var]
    while line := buffered.readline(MAX_LINE_BYTES):
        beginning = line
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            line = buffered.readline(MAX_LINE_BYTES)
        yield beginning


def _parse_literal(line: bytes) -> dict[str, Any]:
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        logger.debug("not a literal: %s", error)
        value = None
    return value if isinstance(value, dict) else {INVALID: line[:60].decode("utf-8", "replace")}
