"""One record per line, as JSON or as a Python literal; the latter are rewritten as JSON first, and never
evaluated.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, BinaryIO

from recpipe.data.files.sql import errors_name, identifier, literal, literals, names, shown
from recpipe.data.files.tables import Source
from recpipe.progress import BYTES, progress

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


logger = logging.getLogger(__name__)

LONGEST_LINE = 16 << 20  # bytes; no record of a review or a product comes near it
SAMPLED_LINES = 100


def json_lines(con: Backend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]) -> Source:
    """A source of JSON columns, one per key; a key that a record lacks is null there. Take values out with
    `text`.

    ValueError: none of the first records has one of the required keys.
    """
    where = names(paths)
    columns = ", ".join(f"{literal(key)}: 'JSON'" for key in keys)
    sql = (
        f"read_json({literals(paths)}, format = 'newline_delimited', columns = {{{columns}}}, "
        f"ignore_errors = true, maximum_object_size = {LONGEST_LINE})"
    )
    if required:
        _require(required, _sampled_keys(con, paths), where)
    empty = " AND ".join(f"{identifier(key)} IS NULL" for key in keys)
    unread = text("_unread") if "_unread" in keys else "NULL"
    problem = (
        f"CASE WHEN {unread} IS NOT NULL THEN {shown('not a Python literal', unread)} "
        f"WHEN {empty} THEN 'not a JSON object with the columns expected' END"
    )
    return Source(sql, dict.fromkeys(keys, "JSON"), where, problem=problem)


@contextmanager
def python_literals(
    con: Backend, paths: Sequence[str], *, keys: Sequence[str], required: Sequence[str]
) -> Iterator[Source]:
    """The same source from lines that are Python literals, by way of a temporary file that holds these keys
    only.

    The file goes when the context ends: make tables from the source inside it.
    """
    with TemporaryDirectory(prefix="recpipe-") as folder:
        rewritten = Path(folder) / "records.jsonl"
        found: set[str] = set()
        with rewritten.open("w", encoding="utf-8") as out:
            for number, record in enumerate(record for path in paths for record in _records(path)):
                if number < SAMPLED_LINES:
                    found |= record.keys() - {"_unread"}
                out.write(_json(record, keys) + "\n")
        _require(required, found, names(paths))
        source = json_lines(con, [str(rewritten)], keys=[*keys, "_unread"], required=())
        yield source._replace(where=names(paths))


def text(key: str) -> str:
    """SQL for the value of a key as text."""
    return f"({identifier(key)} ->> '$')"


def words(key: str, *, joined: str = " ") -> str:
    """SQL for all text under a key, a list's or a list of lists' parts joined; null where there is none."""
    listed = f"json_extract_string({identifier(key)}, '$[*]')"
    nested = f"json_extract_string({identifier(key)}, '$[*][*]')"
    plain = f"CASE WHEN json_type({identifier(key)}) = 'VARCHAR' THEN {text(key)} END"
    return (
        f"nullif(trim(CASE WHEN len({nested}) > 0 THEN array_to_string({nested}, {literal(joined)}) "
        f"WHEN len({listed}) > 0 THEN array_to_string({listed}, {literal(joined)}) ELSE {plain} END), '')"
    )


def _require(required: Sequence[str], found: set[str], where: str) -> None:
    missing = [key for key in required if key not in found]
    if missing:
        seen = ", ".join(sorted(map(str, found))[:40]) or "no records in its first lines"
        raise ValueError(f"{where} has no {missing[0]!r}; found: {seen}")


def _sampled_keys(con: Backend, paths: Sequence[str]) -> set[str]:
    whole = (
        f"read_json({literals(paths[:1])}, format = 'newline_delimited', records = false, "
        f"columns = {{'json': 'JSON'}}, ignore_errors = true, maximum_object_size = {LONGEST_LINE})"
    )
    query = f"SELECT json_keys(json) FROM {whole} WHERE json_type(json) = 'OBJECT' LIMIT {SAMPLED_LINES}"
    with errors_name(names(paths)):
        rows = con.raw_sql(query).fetchall()
    return {key for row in rows for key in row[0] or ()}


def _records(path: str) -> Iterator[dict[str, Any]]:
    """The literals of a file, one at a time; a line that is none gives {'_unread': its beginning}."""
    size = Path(path).stat().st_size
    with (
        open(path, "rb") as raw,
        progress(size, f"read {Path(path).name}", unit=BYTES) as bar,
    ):
        stream: BinaryIO = gzip.open(raw) if path.endswith(".gz") else raw  # type: ignore[assignment]  # noqa: SIM115
        try:
            for line in _limited_lines(stream):
                bar.add(raw.tell() - bar.done)
                if line.strip():
                    yield _literal(line)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(
                f"cannot read {path}: {error}. It is cut short or is not what its name says"
            ) from error


def _limited_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Lines no longer than the limit; of a longer one the beginning only, which is then no literal."""
    buffered = io.BufferedReader(stream, 1 << 20)  # type: ignore[type-var]
    while line := buffered.readline(LONGEST_LINE):
        whole = line
        while len(line) == LONGEST_LINE and not line.endswith(b"\n"):
            line = buffered.readline(LONGEST_LINE)
        yield whole


def _json(record: Mapping[str, Any], keys: Sequence[str]) -> str:
    kept = {key: record[key] for key in (*keys, "_unread") if key in record}
    return json.dumps(kept, default=str, skipkeys=True)


def _literal(line: bytes) -> dict[str, Any]:
    try:
        value = ast.literal_eval(line.decode("utf-8").strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        logger.debug("not a literal: %s", error)
        value = None
    return value if isinstance(value, dict) else {"_unread": line[:60].decode("utf-8", "replace")}
