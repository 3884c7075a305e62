"""Tables that every reader returns, the sources that they are read from, and the SQL that they are built with.

Names and constants enter a statement only through ``identifier`` and ``literal``.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import duckdb
import ibis
import pyarrow as pa
from ibis.util import gen_name

from recpipe.config import check_known

logger = logging.getLogger(__name__)

TEXTS = ("title", "text", "image")  # columns of items that are text whatever their values
WHOLE = "-?(0|[1-9][0-9]{0,18})"  # a leading zero makes an id or a postal code
NUMBER = r"-?(0|[1-9][0-9]{0,14})?(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?"  # longer ones would not be exact
KINDS = {"varchar": "text"} | dict.fromkeys(
    ("integer", "uinteger", "float", "double", "decimal"), "number"
)  # in the log
MAX_SHOWN = 20  # columns of a table in the log

ENCODING_HINT = "Say how the file is encoded: `encoding: cp1252`, latin-1 or utf-16, in the options of the data set"


class Entities(NamedTuple):
    """Items or users of a raw log, one row per id."""

    table: ibis.Table
    where: str  # the file, for messages
    file_rows: Sequence[Mapping[str, Any]] = ()  # rows read and rows taken of each file; file is None for a single one


@dataclass(frozen=True)
class RawTables:
    """Lazy tables of a raw log.

    interactions: user_id, item_id string; timestamp int64 seconds UTC, null where the source has only an order;
    order int64, the position in the source; problem string, null for a good row. Where the source has them: rating,
    weight float64; event string, the type of the event; owner string, the user of a session; columns for steps only;
    source_file string, the path of the row's file among several.
    items, users: one row per id. files: their files for messages, file_rows: rows of each file, by "items" and "users".
    """

    interactions: ibis.Table
    items: ibis.Table | None = None
    users: ibis.Table | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    file_rows: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @classmethod
    def of(cls, interactions: ibis.Table, items: Entities | None = None, users: Entities | None = None) -> RawTables:
        """Combine a log with the tables of its items and users."""
        parts = {name: part for name, part in (("items", items), ("users", users)) if part is not None}
        return cls(
            interactions,
            **{name: part.table for name, part in parts.items()},
            files={name: part.where for name, part in parts.items()},
            file_rows={name: part.file_rows for name, part in parts.items()},
        )


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
                    f"{self.where} has no column {column!r}; found: {', '.join(self.types) or 'none'}{hint}{self.hint}"
                )


def create_entities(
    con: ibis.BaseBackend,
    source: Source,
    columns: Mapping[str, str],
    *,
    key: str,
    types: Mapping[str, str] | None = None,
    null_words: Sequence[str] = (),
    infer: bool = False,
) -> Entities:
    """Create a table of items or users with one row per id, the first in the source; log what its columns hold.

    columns: SQL per column, including the id under the name ``key``. An item without a title gets its id as title;
    HTML entities of titles and texts are decoded. types: ``number``, ``text`` or ``boolean`` by column. If not None,
    ``null_words`` and blanks are null in columns of text. infer: columns of text without a type become numbers or
    booleans where all values are.
    """
    _check_types(types or {}, columns, key, source.where)
    names = {name: gen_name(name) if name.lower() == "rowid" else name for name in columns}
    file = identifier(gen_name("file"))
    selection = ", ".join(f"{sql} AS {identifier(names[name])}" for name, sql in columns.items())
    select = f"SELECT {selection}, {source.file_sql or 'NULL'} AS {file} FROM {source.sql} AS source"
    n_problems = 0
    if source.problem != "NULL":
        n_problems = _warn_of_problems(con, source)
        select += f" WHERE ({source.problem}) IS NULL"
    raw = create_table(con, select, where=source.where)
    if source.rejects:
        check_encoding(con, source)
        if rejected := count_rows(con, source.rejects, "DISTINCT (file_id, line)"):
            logger.warning("%s: %d lines left out, they do not have its columns", source.where, rejected)
    words = literal("|".join(["", *map(re.escape, map(str, null_words))]))  # a list would cost memory per column
    has_id = f"NOT regexp_full_match(coalesce(trim({key}), ''), {words})"
    if without_id := count_rows(con, f"{raw} WHERE NOT ({has_id})"):
        logger.warning("%s: %s rows left out, they have no %s", source.where, f"{without_id:,}", key)
    _warn_of_repeats(con, raw, key, source.where, has_id)
    first = f"(SELECT min(rowid) FROM {raw} WHERE {has_id} GROUP BY {key})"
    file_rows = _rows_per_file(con, source, f"SELECT {file} AS file, rowid IN {first} AS taken FROM {raw}", n_problems)
    values = {name: identifier(stored) for name, stored in names.items() if name != key}
    kinds = column_types(con, raw, where=source.where)
    for name in (name for name in values if kinds[names[name]] == "VARCHAR"):
        if types is not None:
            is_value = f"NOT regexp_full_match(trim({values[name]}), {words})"
            values[name] = f"CASE WHEN {is_value} THEN {values[name]} END"
        if name in ("title", "text"):
            values[name] = _without_entities(con, values[name])
        elif types is not None and name != "image" and (infer or name in types):
            values[name] = _typed(con, raw, name, values[name], types.get(name), source.where)
    if key == "item_id":
        values["title"] = f"coalesce({values['title']}, {key})" if "title" in values else key
    selection = ", ".join([key, *(f"{sql} AS {identifier(name)}" for name, sql in values.items())])
    table = create_table(con, f"SELECT {selection} FROM {raw} WHERE rowid IN {first}", where=source.where)
    con.raw_sql(f"DROP TABLE {raw}")
    _log_columns(con, table, key, source.where)
    return Entities(create_view(con, f"SELECT * FROM {table}"), source.where, file_rows)


def _check_types(types: Mapping[str, str], columns: Iterable[str], key: str, where: str) -> None:
    """Raise ValueError for a type or a column that there is not, and for another type than text of ids and texts."""
    for name, kind in types.items():
        check_known(name, columns, what=f"column in `types` of {where}")
        check_known(kind, ("number", "text", "boolean"), what=f"type of the column {name} of {where}")
        if name in (key, *TEXTS) and kind != "text":
            raise ValueError(f"`types` of {where}: {name} is always text; leave it out")


def _typed(con: ibis.BaseBackend, table: str, name: str, text: str, kind: str | None, where: str) -> str:
    """Return SQL of a column of text (SQL, too) as number or boolean, by its type or because all values are.

    Raises ValueError where no value is of the type.
    """
    number, boolean = f"TRY_CAST({text} AS DOUBLE)", f"TRY_CAST({text} AS BOOLEAN)"
    number = f"CASE WHEN isfinite({number}) THEN {number} END"
    whole = f"TRY_CAST(trim({text}) AS BIGINT)"
    tests = (
        f"regexp_full_match(trim({text}), {literal(WHOLE)}) AND {whole} IS NOT NULL",
        f"regexp_full_match(trim({text}), {literal(NUMBER)}) AND {number} IS NOT NULL",
        f"lower(trim({text})) IN ('true', 'false')",
    )
    target = {"number": number, "boolean": boolean}.get(kind or "", text)
    misfit = f"{text} IS NOT NULL AND ({target}) IS NULL"
    selection = [f"bool_and({test}) FILTER ({text} IS NOT NULL)" for test in tests]
    selection += [f"count({text})", f"count(*) FILTER ({misfit})", f"first({text} ORDER BY rowid) FILTER ({misfit})"]
    query = f"SELECT {', '.join(selection)} FROM {table}"
    is_whole, is_number, is_boolean, values, misfits, example = con.raw_sql(query).fetchall()[0]
    if misfits:
        message = f"{where}: {misfits:,} of {values:,} values of {name} are no {kind}, such as {example[:60]!r}"
        if misfits == values:
            raise ValueError(f"{message}. Change `types` in the options of the table")
        logger.warning("%s: they count as empty", message)
    if is_whole and kind in ("number", None):
        return whole
    if kind is not None:
        return target
    return number if is_number else boolean if is_boolean else text


def _without_entities(con: ibis.BaseBackend, sql: str) -> str:
    """Return SQL of a text with HTML entities decoded once."""
    name = gen_name("html_unescape")

    def decode(texts: pa.ChunkedArray) -> pa.Array:
        return pa.array([html.unescape(text) for text in texts.to_pylist()], pa.string())

    con.con.create_function(name, decode, ["VARCHAR"], "VARCHAR", type="arrow")
    return f"CASE WHEN contains({sql}, '&') THEN {name}({sql}) ELSE {sql} END"


def _rows_per_file(con: ibis.BaseBackend, source: Source, rows: str, n_problems: int) -> list[dict[str, Any]]:
    """Count rows read and rows taken by file. rows: SQL of the records, with columns file and taken."""
    file = source.file_sql or "NULL"
    if source.rejects:
        lines = f"(SELECT DISTINCT file_id AS file_index, line FROM {source.rejects})"
        rows += f" UNION ALL SELECT {file}, false FROM {lines}"
    if n_problems:
        rows += f" UNION ALL SELECT {file}, false FROM {source.sql} AS source WHERE ({source.problem}) IS NOT NULL"
    query = f"SELECT CAST(file AS VARCHAR), count(*), count(*) FILTER (taken) FROM ({rows}) GROUP BY ALL"
    counts = con.raw_sql(query).fetchall()
    return [{"file": path, "rows_read": read, "rows_taken": taken} for path, read, taken in counts]


def _log_columns(con: ibis.BaseBackend, table: str, key: str, where: str) -> None:
    """Log the number of rows, and the kind, distinct values and empty values of each column."""
    kinds = {name: kind for name, kind in column_types(con, table, where=where).items() if name != key}
    n_rows = count_rows(con, table)
    shown = list(kinds)[:MAX_SHOWN]
    counts = [f"count({sql}), count(DISTINCT hash({sql}))" for sql in map(identifier, shown)]
    numbers = con.raw_sql(f"SELECT {', '.join(['1', *counts])} FROM {table}").fetchall()[0][1:]
    parts = []
    for name, filled, distinct in zip(shown, numbers[::2], numbers[1::2], strict=True):
        kind = "list" if kinds[name].endswith("]") else kinds[name].split("(")[0].lower()
        kind = KINDS.get(kind, "number" if kind.endswith("int") else kind)
        details = [f"{distinct - (filled < n_rows):,} values"] if kind == "text" and name not in TEXTS else []
        details += [f"{n_rows - filled:,} empty"] if filled < n_rows else []
        parts.append(f"{name} {kind}" + (f" ({', '.join(details)})" if details else ""))
    parts += [f"{len(kinds) - MAX_SHOWN} more columns"] if len(kinds) > MAX_SHOWN else []
    what = {"item_id": "items", "user_id": "users"}[key]
    logger.info("%s: %s %s: %s", where, f"{n_rows:,}", what, ", ".join(parts) or "ids alone")


def _warn_of_problems(con: ibis.BaseBackend, source: Source) -> int:
    """Log the number of rows that are no record, by reason, with an example each; return it."""
    problems = f"SELECT {source.problem} AS problem FROM {source.sql} AS source"
    query = (
        f"SELECT count(*), first(problem) FROM ({problems}) WHERE problem IS NOT NULL "
        "GROUP BY split_part(problem, ':', 1) ORDER BY 1 DESC, 2"
    )
    with errors_with_file(source.where):
        rows = con.raw_sql(query).fetchall()
    total = sum(int(n) for n, _ in rows)
    if rows:
        reasons = "; ".join(f"{n:,} times {problem}" for n, problem in rows)
        logger.warning("%s: %s rows left out: %s", source.where, f"{total:,}", reasons)
    return total


def _warn_of_repeats(con: ibis.BaseBackend, table: str, key: str, where: str, has_id: str) -> None:
    """Log the number of rows with an id that an earlier row has, and the first of these ids."""
    repeats = f"""SELECT {key} AS id, count(*) - 1 AS dropped, min(rowid) AS place FROM {table}
        WHERE {has_id} GROUP BY {key} HAVING count(*) > 1"""
    query = f"SELECT sum(dropped), count(*), list(id ORDER BY place)[:3] FROM ({repeats})"
    total, ids, first = con.raw_sql(query).fetchall()[0]
    if total:
        what = {"item_id": "items repeat an item_id", "user_id": "users repeat a user_id"}[key]
        examples = ", ".join(first) + (", …" if ids > 3 else "")
        logger.warning("%s: %s rows of %s, the first of each counts: %s", where, f"{total:,}", what, examples)


def check_encoding(con: ibis.BaseBackend, source: Source) -> None:
    """Raise ValueError if lines of the source were rejected for their encoding."""
    if lines := count_rows(con, f"{source.rejects} WHERE error_type = 'INVALID ENCODING'"):
        raise ValueError(f"cannot read {source.where}: {lines} lines are not in the encoding expected. {ENCODING_HINT}")


def create_view(con: ibis.BaseBackend, select: str) -> ibis.Table:
    """Create a temporary view of a SELECT statement and return it as a table."""
    name = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return con.table(name)


def count_rows(con: ibis.BaseBackend, selection: str, what: str = "*") -> int:
    """Count the rows of ``selection``, SQL that follows FROM; ``what`` is counted where it is not null."""
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
    settings = {"preserve_insertion_order": True, "disabled_optimizers": "in_clause"}  # it joins, which loses the order
    before = {key: con.raw_sql(f"SELECT current_setting('{key}')").fetchall()[0][0] for key in settings}
    try:
        _set(con, settings)
        with errors_with_file(where):
            con.raw_sql(f"CREATE TEMP TABLE {name} AS {select}")
    finally:
        _set(con, before)
    return name


def _set(con: ibis.BaseBackend, settings: Mapping[str, object]) -> None:
    for key, value in settings.items():
        con.raw_sql(f"SET {key} = {literal(str(value))}")


def reason_with_value(reason: str, value: str) -> str:
    """Return SQL of a reason followed by a value (SQL too), cut to 60 characters and in quotation marks; never null."""
    return f"{literal(reason + ': ')} || chr(39) || coalesce(left(CAST({value} AS VARCHAR), 60), '') || chr(39)"


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
    return literals(map(file_pattern, paths))


def file_pattern(path: str) -> str:
    """Return a pattern of file names that matches ``path`` alone."""
    return re.sub(r"[*?\[]", r"[\g<0>]", path)


def path_summary(paths: Sequence[str]) -> str:
    """Summarise paths for an error message: the first and the number of others."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def column_types(con: ibis.BaseBackend, source: str, *, where: str) -> dict[str, str]:
    """Return column names and DuckDB types of a FROM clause."""
    with errors_with_file(where):
        columns = con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
    return {str(column[0]): str(column[1]) for column in columns}
