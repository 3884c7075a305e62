"""Tables that every reader returns, the sources that they are read from, and the SQL that they are built with.

Names and constants enter a statement only through ``identifier`` and ``literal``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import duckdb
import ibis
from ibis.util import gen_name

logger = logging.getLogger(__name__)

ENCODING_HINT = "Say how the file is encoded: `encoding: cp1252`, latin-1 or utf-16, in the options of the data set"


@dataclass(frozen=True)
class RawTables:
    """Lazy tables of a raw log.

    interactions: user_id, item_id string; timestamp int64 seconds UTC, null where the source has only an order;
    order int64, the position in the source; problem string, null for a good row. Where the source has them: rating,
    weight float64; event string, the type of the event; owner string, the user of a session; columns for steps only;
    source_file string, the path of the row's file among several.
    items, users: one row per id.
    """

    interactions: ibis.Table
    items: ibis.Table | None = None
    users: ibis.Table | None = None


class Source(NamedTuple):
    """A file or query that tables are selected from."""

    sql: str  # the FROM clause
    types: Mapping[str, str]  # DuckDB types of its columns
    where: str  # the file, for messages
    rejects: str | None = None  # DuckDB's table of rejected lines
    problem: str = "NULL"  # SQL of the reason why a row is not a record
    hint: str = ""  # on the layout of the file, where a column is missing
    files: Sequence[str] = ()  # paths by `file_index`, a column that rows of several files then have

    @property
    def file_sql(self) -> str | None:
        """SQL of the path that a row comes from; None for a single file."""
        if len(self.files) < 2 or "file_index" in map(str.lower, self.types):
            return None
        names = ", ".join(map(literal, dict.fromkeys(self.files)))
        return f"CAST({literals(self.files)}[CAST(file_index AS BIGINT) + 1] AS ENUM({names}))"

    def check_columns(self, columns: Iterable[str], hint: str = "") -> None:
        """Raise ValueError for a column that the source does not have."""
        for column in columns:
            if column not in self.types:
                raise ValueError(
                    f"{self.where} has no column {column!r}; found: {', '.join(self.types)}{hint}{self.hint}"
                )


def create_entities(
    con: ibis.BaseBackend, source: Source, columns: Mapping[str, str], *, key: str, log: ibis.Table | None
) -> ibis.Table:
    """Create a table of items or users with one row per id, the first in the source.

    columns: SQL per column, including the id under the name ``key``. With a log (for items), ids that only the log
    contains get a row too, and an item without a title gets its id as title.
    """
    selection = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
    select = f"SELECT {selection} FROM {source.sql} AS source"
    if source.problem != "NULL":
        _warn_of_problems(con, source)
        select += f" WHERE ({source.problem}) IS NULL"
    table = create_table(con, select, where=source.where)
    if source.rejects:
        check_encoding(con, source)
        if rejected := count_rows(con, source.rejects, "DISTINCT (file_id, line)"):
            logger.warning("%s: %d lines left out, they do not have its columns", source.where, rejected)
    _warn_of_repeats(con, table, key, source.where)
    first = f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY rowid) = 1"
    described = f"SELECT * FROM {table} WHERE trim({key}) <> '' {first}"
    if log is None:
        return create_view(con, described)
    logged = f"SELECT DISTINCT item_id FROM {identifier(log.get_name())} WHERE problem IS NULL AND trim(item_id) <> ''"
    missing = f"SELECT * FROM ({logged}) ANTI JOIN ({described}) USING (item_id)"
    titled = "* REPLACE (coalesce(title, item_id) AS title)" if "title" in columns else "*, item_id AS title"
    union = f"SELECT {titled} FROM ({described} UNION ALL BY NAME ({missing})) ORDER BY item_id"
    return create_view(con, f"SELECT * FROM {create_table(con, union, where=source.where)}")


def _warn_of_problems(con: ibis.BaseBackend, source: Source) -> None:
    """Log the number of rows that are no record, by reason, with an example each."""
    problems = f"SELECT {source.problem} AS problem FROM {source.sql} AS source"
    query = (
        f"SELECT count(*), first(problem) FROM ({problems}) WHERE problem IS NOT NULL "
        "GROUP BY split_part(problem, ':', 1) ORDER BY 1 DESC, 2"
    )
    with errors_with_file(source.where):
        rows = con.raw_sql(query).fetchall()
    if rows:
        reasons = "; ".join(f"{n:,} times {problem}" for n, problem in rows)
        logger.warning("%s: %s rows left out: %s", source.where, f"{sum(n for n, _ in rows):,}", reasons)


def _warn_of_repeats(con: ibis.BaseBackend, table: str, key: str, where: str) -> None:
    """Log the number of rows with an id that an earlier row has, and the first of these ids."""
    repeats = f"""SELECT {key} AS id, count(*) - 1 AS dropped, min(rowid) AS place FROM {table}
        WHERE trim({key}) <> '' GROUP BY {key} HAVING count(*) > 1"""
    query = f"SELECT sum(dropped), count(*), list(id ORDER BY place)[:3] FROM ({repeats})"
    total, ids, first = con.raw_sql(query).fetchall()[0]
    if total:
        what = {"item_id": "items repeat an item_id", "user_id": "users repeat a user_id"}[key]
        examples = ", ".join(first) + (", …" if ids > 3 else "")
        logger.warning("%s: %s rows of %s, the first of each counts: %s", where, f"{total:,}", what, examples)


def check_encoding(con: ibis.BaseBackend, source: Source) -> None:
    if lines := count_rows(con, f"{source.rejects} WHERE error_type = 'INVALID ENCODING'"):
        raise ValueError(f"cannot read {source.where}: {lines} lines are not in the encoding expected. {ENCODING_HINT}")


def create_view(con: ibis.BaseBackend, select: str) -> ibis.Table:
    name = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return con.table(name)


def count_rows(con: ibis.BaseBackend, selection: str, what: str = "*") -> int:
    return int(con.raw_sql(f"SELECT count({what}) FROM {selection}").fetchall()[0][0])


def identifier(name: str) -> str:
    """Quote a column or table name. Raises ValueError for a name that no column can have."""
    if not isinstance(name, str) or not name or "\x00" in name:
        raise ValueError(f"{name!r} is not a column name: give the name as text, as the file's header has it")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string constant. Raises ValueError for a null byte, at which a statement would end."""
    if "\x00" in text:
        raise ValueError(f"{text!r} holds a null byte")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """Quote string constants as an SQL list."""
    return "[" + ", ".join(literal(text) for text in texts) + "]"


def create_table(con: ibis.BaseBackend, select: str, *, where: str) -> str:
    """Store the result of a query in a temporary table in row order; return the quoted table name."""
    name = identifier(gen_name("raw"))
    before = con.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall()[0][0]
    con.raw_sql("SET preserve_insertion_order = true")
    try:
        with errors_with_file(where):
            con.raw_sql(f"CREATE TEMP TABLE {name} AS {select}")
    finally:
        con.raw_sql(f"SET preserve_insertion_order = {before}")
    return name


def reason_with_value(reason: str, value: str) -> str:
    """Return SQL of a reason followed by a value (SQL too), cut to 60 characters and in quotation marks."""
    return f"{literal(reason + ': ')} || chr(39) || left(CAST({value} AS VARCHAR), 60) || chr(39)"


@contextmanager
def errors_with_file(where: str) -> Iterator[None]:
    """Convert DuckDB errors to a ValueError that names the file; out of memory or disk space passes unchanged."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if isinstance(error, duckdb.OutOfMemoryException | duckdb.InterruptException) or "No space left" in text:
            raise
        reason = " ".join(text.split("\n\n", maxsplit=1)[0].split())
        hint = ""
        if "unicode" in text or "utf-8" in text.lower() or "encod" in text.lower():
            hint = f". {ENCODING_HINT}"
        elif any(sign in text for sign in ("GZIP", "magic bytes", "ZSTD", "zstd", "footer")):
            hint = ". The file is cut short or is not what its name says: fetch it again"
        raise ValueError(f"cannot read {where}: {reason}{hint}") from error


def file_list(paths: Iterable[str]) -> str:
    """Quote file paths as an SQL list in which brackets, ``*`` and ``?`` are no patterns."""
    return literals(re.sub(r"[*?\[]", r"[\g<0>]", path) for path in paths)


def path_summary(paths: Sequence[str]) -> str:
    """Summarise paths for an error message: the first and the number of others."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def column_types(con: ibis.BaseBackend, source: str, *, where: str) -> dict[str, str]:
    """Return column names and DuckDB types of a FROM clause."""
    with errors_with_file(where):
        columns = con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
    return {str(column[0]): str(column[1]) for column in columns}
