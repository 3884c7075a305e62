"""Tables that every reader returns: the log with a problem per bad row, and one row per item and per user."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import ibis

from recpipe.data.files.sql import (
    ENCODING_HINT,
    create_table,
    create_view,
    identifier,
    reason_with_value,
    scalar,
    timestamp_checks,
    timestamp_seconds,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawTables:
    """Lazy tables of a raw log.

    interactions: user_id, item_id string; timestamp int64 seconds UTC, null where the source has only an order;
    order int64, the position in the source; rating, weight float64 where the source has them; problem string, null for
    a good row. items, users: one row per id.
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

    def check_columns(self, columns: Iterable[str], hint: str = "") -> None:
        """Raise ValueError for a column that the source does not have."""
        for column in columns:
            if column not in self.types:
                raise ValueError(f"{self.where} has no column {column!r}; found: {', '.join(self.types)}{hint}")


@dataclass(frozen=True)
class LogColumns:
    """SQL expressions over a source for the columns of the log."""

    user: str
    item: str
    timestamp: str | None = None
    unit: str = "s"
    numbers: Mapping[str, str] = field(default_factory=dict)  # rating and weight
    order: str | None = None  # by default the row number
    problems: Sequence[str] = ()  # CASE arms of the reader, evaluated before the general ones


def create_log(con: ibis.BaseBackend, source: Source, columns: LogColumns) -> ibis.Table:
    """Parse the log once into a temporary table with the columns of ``RawTables.interactions``."""
    values = "".join(f", TRY_CAST({sql} AS DOUBLE) AS {name}" for name, sql in columns.numbers.items())
    position = f", {_integer(columns.order)} AS position" if columns.order else ""
    time = timestamp_seconds(columns.timestamp, columns.unit) if columns.timestamp else "CAST(NULL AS BIGINT)"
    select = f"""
        SELECT __user AS user_id, __item AS item_id, __time AS timestamp{values}{position},
            CAST({_problem(source, columns)} AS VARCHAR) AS problem
        FROM (
            SELECT *, CAST({columns.user} AS VARCHAR) AS __user, CAST({columns.item} AS VARCHAR) AS __item,
                {time} AS __time
            FROM {source.sql} AS source
        )"""
    table = create_table(con, select, where=source.where)
    if source.rejects:
        _append_rejects(con, table, source)
    order, hidden = ("coalesce(position, rowid)", " EXCLUDE (position)") if position else ("rowid", "")
    return con.table(create_view(con, f'SELECT *{hidden}, CAST({order} AS BIGINT) AS "order" FROM {table}'))


def create_entities(
    con: ibis.BaseBackend, source: Source, columns: Mapping[str, str], *, key: str, log: ibis.Table | None
) -> ibis.Table:
    """Create a table of items or users with one row per id, the first in the source.

    columns: SQL per column, including the id under the name ``key``. With a log (for items), ids that only the log
    contains get a row too, and an item without a title gets its id as title.
    """
    selection = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
    table = create_table(con, f"SELECT {selection} FROM {source.sql} AS source", where=source.where)
    if source.rejects:
        _check_encoding(con, source)
        if rejected := scalar(con, f"SELECT count(DISTINCT (file_id, line)) FROM {source.rejects}"):
            logger.warning("%s: %d lines left out, they do not have its columns", source.where, rejected)
    _warn_of_repeats(con, table, key, source.where)
    first = f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY rowid) = 1"
    described = f"SELECT * FROM {table} WHERE trim({key}) <> '' {first}"
    if log is None:
        return con.table(create_view(con, described))
    logged = f"SELECT DISTINCT item_id FROM {identifier(log.get_name())} WHERE problem IS NULL AND trim(item_id) <> ''"
    missing = f"SELECT * FROM ({logged}) ANTI JOIN ({described}) USING (item_id)"
    titled = "* REPLACE (coalesce(title, item_id) AS title)" if "title" in columns else "*, item_id AS title"
    union = f"SELECT {titled} FROM ({described} UNION ALL BY NAME ({missing})) ORDER BY item_id"
    return con.table(create_view(con, f"SELECT * FROM {create_table(con, union, where=source.where)}"))


def _warn_of_repeats(con: ibis.BaseBackend, table: str, key: str, where: str) -> None:
    """Log the number of rows with an id that an earlier row has, and the first of these ids."""
    repeats = f"""SELECT {key} AS id, count(*) - 1 AS dropped, min(rowid) AS place FROM {table}
        WHERE trim({key}) <> '' GROUP BY id HAVING count(*) > 1"""
    query = f"SELECT sum(dropped), count(*), list(id ORDER BY place)[:3] FROM ({repeats})"
    total, ids, first = con.raw_sql(query).fetchall()[0]
    if total:
        what = {"item_id": "items repeat an item_id", "user_id": "users repeat a user_id"}[key]
        examples = ", ".join(first) + (", …" if ids > 3 else "")
        logger.warning("%s: %s rows of %s, the first of each counts: %s", where, f"{total:,}", what, examples)


def _problem(source: Source, columns: LogColumns) -> str:
    """Return SQL of the reason why a row is bad by its raw values; ids are checked later, in `interactions`."""
    arms = [f"WHEN ({source.problem}) IS NOT NULL THEN {source.problem}"] if source.problem != "NULL" else []
    arms += columns.problems
    if columns.timestamp:
        arms += timestamp_checks(columns.timestamp, columns.unit, "__time")
    for name, sql in columns.numbers.items():
        finite = f"coalesce(isfinite(TRY_CAST({sql} AS DOUBLE)), false)"
        arms.append(f"WHEN {sql} IS NOT NULL AND NOT {finite} THEN {reason_with_value(f'{name} not a number', sql)}")
    if columns.order:
        text = f"CAST({columns.order} AS VARCHAR)"
        arms.append(f"WHEN {columns.order} IS NULL OR {text} = '' THEN 'order is empty'")
        not_whole = reason_with_value("order is not a whole number", text)
        arms.append(f"WHEN {_integer(columns.order)} IS NULL THEN {not_whole}")
    return f"CASE {' '.join(arms)} END" if arms else "NULL"


def _integer(sql: str) -> str:
    """Return SQL of an integer, null for anything else; a cast alone would round."""
    text = f"CAST({sql} AS VARCHAR)"
    value = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN {value} = floor({value}) THEN TRY_CAST({text} AS BIGINT) END"


def _append_rejects(con: ibis.BaseBackend, table: str, source: Source) -> None:
    """Append the lines that the parser rejected, with a reason each, after the good rows."""
    _check_encoding(con, source)
    # An unclosed quotation mark swallows all lines up to the next one
    swallowed = "error_type IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM') AND contains(csv_line, chr(10))"
    line = con.raw_sql(f"SELECT min(line) FROM {source.rejects} WHERE {swallowed}").fetchall()[0][0]
    if line is not None:
        raise ValueError(
            f"cannot read {source.where}: a quotation mark opens near line {line} and is not closed. "
            "Set `quote: ''` in the options of the data set if the file does not quote"
        )
    kind = "lower(replace(CAST(error_type AS VARCHAR), '_', ' '))"
    reason = f"{kind} || ': ' || chr(39) || left(csv_line, 60) || chr(39)"
    con.raw_sql(
        f"""INSERT INTO {table} BY NAME SELECT problem FROM (
            SELECT file_id, line, first({reason} ORDER BY column_idx) AS problem
            FROM {source.rejects} GROUP BY file_id, line
        ) ORDER BY file_id, line"""
    )
    rejected = scalar(con, f"SELECT count(*) FROM {source.rejects}")
    if rejected and not scalar(con, f"SELECT count(*) FROM {table} WHERE user_id IS NOT NULL"):
        columns = ", ".join(source.types)
        raise ValueError(f"cannot read {source.where}: no line has the columns {columns}. Is the delimiter right?")


def _check_encoding(con: ibis.BaseBackend, source: Source) -> None:
    if lines := scalar(con, f"SELECT count(*) FROM {source.rejects} WHERE error_type = 'INVALID ENCODING'"):
        raise ValueError(f"cannot read {source.where}: {lines} lines are not in the encoding expected. {ENCODING_HINT}")
