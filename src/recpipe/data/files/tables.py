"""From a raw source to the tables of every reader: the log, its problems marked; one row per item or user."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from recpipe.data.files.sql import create, identifier, number, seconds, shown, view
from recpipe.data.files.sql import problems as time_problems

if TYPE_CHECKING:
    import ibis
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


logger = logging.getLogger(__name__)

ENCODING = "Say how the file is encoded: `encoding: latin-1`, or utf-16, in the options of the data set"


@dataclass(frozen=True)
class RawTables:
    """What a reader gives.

    interactions: user_id, item_id string; timestamp int64 seconds UTC, null where the source has only
    an order; order int64, the position in the source; rating, weight float64 where there are any; problem
    string, null for a good row.
    """

    interactions: ibis.Table
    items: ibis.Table | None = None
    users: ibis.Table | None = None


class Source(NamedTuple):
    """Something to select from."""

    sql: str  # what stands after FROM
    types: Mapping[str, str]  # its columns, where they are known
    where: str  # the file, for messages
    rejects: str | None = None  # DuckDB's table of the lines it refused
    problem: str = "NULL"  # SQL: why a row is no record at all


@dataclass(frozen=True)
class Columns:
    """SQL expressions, over a source, for the columns of the log."""

    user: str
    item: str
    timestamp: str | None = None
    unit: str = "s"
    rating: str | None = None
    weight: str | None = None
    order: str | None = None  # a column that gives the position; none: the row number
    problems: Sequence[str] = ()  # CASE arms of the reader's own, tried before the general ones


def interactions(con: Backend, source: Source, columns: Columns) -> ibis.Table:
    """Parse the log once into a temporary table; see `RawTables` for what it holds."""
    numbers = {"rating": columns.rating, "weight": columns.weight}
    values = "".join(f", TRY_CAST({sql} AS DOUBLE) AS {name}" for name, sql in numbers.items() if sql)
    position = f", {_whole(columns.order)} AS position" if columns.order else ""
    time = seconds(columns.timestamp, columns.unit) if columns.timestamp else "CAST(NULL AS BIGINT)"
    select = f"""
        SELECT __user AS user_id, __item AS item_id, __time AS timestamp{values}{position},
            CAST({_problem(source, columns)} AS VARCHAR) AS problem
        FROM (
            SELECT *, CAST({columns.user} AS VARCHAR) AS __user, CAST({columns.item} AS VARCHAR) AS __item,
                {time} AS __time
            FROM {source.sql} AS source
        )"""
    table = create(con, select, where=source.where)
    if source.rejects:
        _append_rejects(con, table, source)
    order, hidden = ("coalesce(position, rowid)", " EXCLUDE (position)") if position else ("rowid", "")
    return con.table(view(con, f'SELECT *{hidden}, CAST({order} AS BIGINT) AS "order" FROM {table}'))


def entities(
    con: Backend, source: Source, columns: Mapping[str, str], *, key: str, log: ibis.Table | None
) -> ibis.Table:
    """One row per id, the first in the source. columns: SQL of each, among them the id's, called `key`.

    With a log, which is for items, an item that it alone knows has a row too, and nobody is without a title.
    """
    chosen = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in columns.items())
    staged = create(con, f"SELECT {chosen} FROM {source.sql} AS source", where=source.where)
    if source.rejects:
        _refuse_undecoded(con, source)
        refused = number(con, f"SELECT count(DISTINCT (file_id, line)) FROM {source.rejects}")
        if refused:
            logger.warning("%s: %d lines left out, they do not have its columns", source.where, refused)
    _warn_of_repeats(con, staged, key, source.where)
    first = f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY rowid) = 1"
    known = f"SELECT * FROM {staged} WHERE trim({key}) <> '' {first}"
    if log is None:
        return con.table(view(con, known))
    logged = f"SELECT DISTINCT item_id FROM {identifier(log.get_name())} WHERE problem IS NULL AND trim(item_id) <> ''"
    unknown = f"SELECT * FROM ({logged}) ANTI JOIN ({known}) USING (item_id)"
    titled = "* REPLACE (coalesce(title, item_id) AS title)" if "title" in columns else "*, item_id AS title"
    every = f"SELECT {titled} FROM ({known} UNION ALL BY NAME ({unknown})) ORDER BY item_id"
    return con.table(view(con, f"SELECT * FROM {create(con, every, where=source.where)}"))


def _warn_of_repeats(con: Backend, staged: str, key: str, where: str) -> None:
    """Says how many rows of a table of items or users are dropped, and the first ids they repeat."""
    repeated = f"""SELECT {key} AS id, count(*) - 1 AS more, min(rowid) AS place FROM {staged}
        WHERE trim({key}) <> '' GROUP BY id HAVING count(*) > 1"""
    total, ids, first = con.raw_sql(
        f"SELECT sum(more), count(*), list(id ORDER BY place)[:3] FROM ({repeated})"
    ).fetchall()[0]
    what = {"item_id": "items repeat an item_id", "user_id": "users repeat a user_id"}[key]
    if total:
        shown_ids = ", ".join(first) + (", …" if ids > 3 else "")
        logger.warning(
            "%s: %s rows of %s, the first of each counts: %s", where, f"{total:,}", what, shown_ids
        )


def _problem(source: Source, columns: Columns) -> str:
    """The CASE that gives a row's reason: what only the raw values tell. Ids are judged where all logs are cleaned."""
    arms = [f"WHEN ({source.problem}) IS NOT NULL THEN {source.problem}"] if source.problem != "NULL" else []
    arms += columns.problems
    if columns.timestamp:
        arms += time_problems(columns.timestamp, columns.unit, "__time")
    for name, sql in (("rating", columns.rating), ("weight", columns.weight)):
        if sql:
            finite = f"coalesce(isfinite(TRY_CAST({sql} AS DOUBLE)), false)"
            arms.append(f"WHEN {sql} IS NOT NULL AND NOT {finite} THEN {shown(name + ' not a number', sql)}")
    if columns.order:
        text = f"CAST({columns.order} AS VARCHAR)"
        arms.append(f"WHEN {columns.order} IS NULL OR {text} = '' THEN 'order is empty'")
        arms.append(f"WHEN {_whole(columns.order)} IS NULL THEN {shown('order is not a whole number', text)}")
    return f"CASE {' '.join(arms)} END" if arms else "NULL"


def _whole(sql: str) -> str:
    """SQL for a whole number, null for anything else; a cast alone would round."""
    text = f"CAST({sql} AS VARCHAR)"
    value = f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE WHEN {value} = floor({value}) THEN TRY_CAST({text} AS BIGINT) END"


def _append_rejects(con: Backend, table: str, source: Source) -> None:
    """Lines that the parser refused become rows with a reason, after the good ones."""
    _refuse_undecoded(con, source)
    _refuse_open_quotes(con, source)
    kind = "lower(replace(CAST(error_type AS VARCHAR), '_', ' '))"
    reason = f"{kind} || ': ' || chr(39) || left(csv_line, 60) || chr(39)"
    con.raw_sql(
        f"""INSERT INTO {table} BY NAME SELECT problem FROM (
            SELECT file_id, line, first({reason} ORDER BY column_idx) AS problem
            FROM {source.rejects} GROUP BY file_id, line
        ) ORDER BY file_id, line"""
    )
    refused = number(con, f"SELECT count(*) FROM {source.rejects}")
    if refused and not number(con, f"SELECT count(*) FROM {table} WHERE user_id IS NOT NULL"):
        columns = ", ".join(source.types)
        raise ValueError(
            f"cannot read {source.where}: no line has the columns {columns}. Is the delimiter right?"
        )


def _refuse_undecoded(con: Backend, source: Source) -> None:
    undecoded = number(con, f"SELECT count(*) FROM {source.rejects} WHERE error_type = 'INVALID ENCODING'")
    if undecoded:
        raise ValueError(
            f"cannot read {source.where}: {undecoded} lines are not in the encoding expected. {ENCODING}"
        )


def _refuse_open_quotes(con: Backend, source: Source) -> None:
    """A quotation mark left open swallows lines up to the next one: too much to lose as one bad row."""
    swallowed = "error_type IN ('UNQUOTED VALUE', 'LINE SIZE OVER MAXIMUM') AND contains(csv_line, chr(10))"
    found = con.raw_sql(f"SELECT min(line) FROM {source.rejects} WHERE {swallowed}").fetchall()[0][0]
    if found is not None:
        raise ValueError(
            f"cannot read {source.where}: a quotation mark opens near line {found} and is not closed. "
            "Set `quote: ''` in the options of the data set if the file does not quote"
        )
