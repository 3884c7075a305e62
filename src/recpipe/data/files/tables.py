"""Tables that every reader returns, the log with a problem per bad row, and the SQL that they are built with.

Names and constants enter a statement only through ``identifier`` and ``literal``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

import duckdb
import ibis
from ibis.util import gen_name

from recpipe.data.files.times import NANOSECONDS, TYPED, UNITS, Time, time_sql

logger = logging.getLogger(__name__)

MAX_NUMBER = 1e15  # of ratings and weights: squares of more would not fit into a float32
MIN_PLACEHOLDERS = 20  # rows of one time, from which it can be suspected
ENCODING_HINT = "Say how the file is encoded: `encoding: cp1252`, latin-1 or utf-16, in the options of the data set"
EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE = 315_532_800, 4_102_444_800  # 1980 and 2100: beyond, the unit is wrong


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


@dataclass(frozen=True)
class LogColumns:
    """SQL expressions over a source for the columns of the log."""

    user: str
    item: str
    timestamp: str | None = None
    unit: str = "s"
    numbers: Mapping[str, str] = field(default_factory=dict)  # rating and weight
    order: str | None = None  # by default the row number
    event: str | None = None  # type of the event
    extra: Mapping[str, str] = field(default_factory=dict)  # further columns, for the steps
    problems: Sequence[str] = ()  # CASE arms of the reader, evaluated before the general ones
    time_type: str = "VARCHAR"  # DuckDB type of the timestamp; a date or timestamp needs no unit
    null_words: Sequence[str] = ()  # ids that mean "no id"
    null_times: Sequence[object] = ()  # times that mean "unknown"


def create_log(con: ibis.BaseBackend, source: Source, columns: LogColumns) -> ibis.Table:
    """Parse the log once into a temporary table with the columns of ``RawTables.interactions``.

    Events of one second exchange their values of ``order``, so that (timestamp, order) follows the source's full
    resolution.
    """
    names = ("user", "item", "ticks", "file", "position", "fraction", "place")  # none that a column of the source has
    user, item, ticks, file, position, fraction, place = (identifier(gen_name(name)) for name in names)
    time = _time(columns) if columns.timestamp else Time("CAST(NULL AS BIGINT)", 1, "NULL")
    seconds = f"{ticks} // {time.per_second}"
    below = f"{ticks} % {time.per_second} * {NANOSECONDS // time.per_second} + {time.part or 0}"
    selection = [f"TRY_CAST({sql} AS DOUBLE) AS {name}" for name, sql in columns.numbers.items()]
    selection += [f"{columns.event} AS event"] if columns.event else []
    selection += [f"{sql} AS {identifier(name)}" for name, sql in columns.extra.items()]
    selection += [f"{file} AS source_file"] if source.file_sql else []
    hidden = {position: _integer(columns.order)} if columns.order else {}
    hidden |= {fraction: f"CAST({below} AS INTEGER)", place: "CAST(NULL AS BIGINT)"} if time.resolution else {}
    selection += [f"{sql} AS {name}" for name, sql in hidden.items()]
    problem = _problem(
        source, columns, time, user=user, item=item, seconds=seconds, unknown=_null_seconds(con, columns)
    )
    select = f"""
        SELECT {user} AS user_id, {item} AS item_id, {seconds} AS timestamp, {"".join(f"{sql}, " for sql in selection)}
            CAST({problem} AS VARCHAR) AS problem
        FROM (
            SELECT *, CAST({columns.user} AS VARCHAR) AS {user}, CAST({columns.item} AS VARCHAR) AS {item},
                {time.ticks} AS {ticks}, {source.file_sql or "NULL"} AS {file}
            FROM {source.sql} AS source
        )"""
    table = create_table(con, select, where=source.where)
    _append_rejects(con, table, source)
    order = f"coalesce({position}, rowid)" if columns.order else "rowid"
    if time.resolution:
        _order_within_seconds(con, table, order, fraction=fraction, place=place)
        order = f"coalesce({place}, {order})"
    if columns.timestamp:
        _warn_of_placeholders(con, table, source.where)
    shown = f"* EXCLUDE ({', '.join(hidden)})" if hidden else "*"
    return _view(con, f'SELECT {shown}, CAST({order} AS BIGINT) AS "order" FROM {table}')


def _time(columns: LogColumns, value: object = None) -> Time:
    """Return the SQL of the timestamp, or of a value of the configuration in the same notation."""
    if value is None:
        return time_sql(str(columns.timestamp), columns.time_type, columns.unit, literal(columns.unit))
    unit = "iso" if columns.time_type.startswith(TYPED) else columns.unit
    return time_sql(literal(str(value)), "VARCHAR", unit, literal(unit))


def _null_seconds(con: ibis.BaseBackend, columns: LogColumns) -> list[int]:
    """Return the seconds of ``null_times``. Raises ValueError for a value that is no time in the log's notation."""
    seconds = []
    for value in columns.null_times:
        time = _time(columns, value)
        number = con.raw_sql(f"SELECT {time.ticks} // {time.per_second}").fetchall()[0][0]
        if number is None:
            raise ValueError(f"null_times of the data set's options: {value!r} is no time as `timestamp` has it")
        seconds.append(int(number))
    return seconds


def _order_within_seconds(con: ibis.BaseBackend, table: str, order: str, *, fraction: str, place: str) -> None:
    """Store in ``place`` the order of good rows whose fractions of a second contradict their order."""
    good = "problem IS NULL AND user_id <> '' AND item_id <> ''"
    seconds = f"SELECT timestamp FROM {table} WHERE {good} GROUP BY timestamp HAVING min({fraction}) < max({fraction})"
    con.raw_sql(
        f"""UPDATE {table} SET {place} = moved.place FROM (
            WITH events AS (
                SELECT rowid AS event, timestamp, {order} AS place,
                    row_number() OVER (PARTITION BY timestamp ORDER BY {order}, rowid) AS old,
                    row_number() OVER (PARTITION BY timestamp ORDER BY {fraction}, {order}, rowid) AS new
                FROM {table} SEMI JOIN ({seconds}) USING (timestamp) WHERE {good}
            )
            SELECT events.event, other.place FROM events
            JOIN events AS other ON events.timestamp = other.timestamp AND events.new = other.old
            WHERE events.new <> events.old
        ) AS moved WHERE {table}.rowid = moved.event"""
    )


def _warn_of_placeholders(con: ibis.BaseBackend, table: str, where: str) -> None:
    """Log times that stand for unknown ones: 0, or one that is far more frequent than all others."""
    counts = f"SELECT timestamp, count(*) AS n FROM {table} WHERE problem IS NULL GROUP BY timestamp"
    query = f"SELECT timestamp, n, sum(n) OVER () AS total FROM ({counts}) ORDER BY timestamp = 0 DESC, n DESC LIMIT 2"
    rows = con.raw_sql(query).fetchall()
    if not rows:
        return
    (time, n, total), second = rows[0], rows[1][1] if len(rows) > 1 else 0
    outlier = time != 0 and len(rows) > 1 and n >= MIN_PLACEHOLDERS and n > total / 20 and n > 10 * second
    if time == 0 or outlier:
        logger.warning(
            "%s: %s of %s rows have the time %s, as if it were unknown. `null_times: [<the value>]` in the options of "
            "the data set puts them into quarantine",
            where, f"{n:,}", f"{total:,}", datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        )  # fmt: skip


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
        _check_encoding(con, source)
        if rejected := _count(con, source.rejects, "DISTINCT (file_id, line)"):
            logger.warning("%s: %d lines left out, they do not have its columns", source.where, rejected)
    _warn_of_repeats(con, table, key, source.where)
    first = f"QUALIFY row_number() OVER (PARTITION BY {key} ORDER BY rowid) = 1"
    described = f"SELECT * FROM {table} WHERE trim({key}) <> '' {first}"
    if log is None:
        return _view(con, described)
    logged = f"SELECT DISTINCT item_id FROM {identifier(log.get_name())} WHERE problem IS NULL AND trim(item_id) <> ''"
    missing = f"SELECT * FROM ({logged}) ANTI JOIN ({described}) USING (item_id)"
    titled = "* REPLACE (coalesce(title, item_id) AS title)" if "title" in columns else "*, item_id AS title"
    union = f"SELECT {titled} FROM ({described} UNION ALL BY NAME ({missing})) ORDER BY item_id"
    return _view(con, f"SELECT * FROM {create_table(con, union, where=source.where)}")


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
        WHERE trim({key}) <> '' GROUP BY id HAVING count(*) > 1"""
    query = f"SELECT sum(dropped), count(*), list(id ORDER BY place)[:3] FROM ({repeats})"
    total, ids, first = con.raw_sql(query).fetchall()[0]
    if total:
        what = {"item_id": "items repeat an item_id", "user_id": "users repeat a user_id"}[key]
        examples = ", ".join(first) + (", …" if ids > 3 else "")
        logger.warning("%s: %s rows of %s, the first of each counts: %s", where, f"{total:,}", what, examples)


def _problem(
    source: Source, columns: LogColumns, time: Time, *, user: str, item: str, seconds: str, unknown: Sequence[int]
) -> str:
    """Return SQL of the reason why a row is bad by its raw values; ids are checked further in `interactions`.

    user, item, seconds: SQL of the values read; unknown: seconds that stand for no time.
    """
    arms = [f"WHEN ({source.problem}) IS NOT NULL THEN {source.problem}"] if source.problem != "NULL" else []
    arms += columns.problems
    if words := list(map(str, columns.null_words)):
        shortest, longest = (choose(len(word.encode()) for word in words) for choose in (min, max))
        for name, sql in (("user_id", user), ("item_id", item)):
            test = f"strlen({sql}) BETWEEN {shortest} AND {longest} AND {sql} IN ({', '.join(map(literal, words))})"
            arms.append(f"WHEN {test} THEN {reason_with_value(f'{name} is a word for null', sql)}")
    if columns.timestamp:
        arms += _timestamp_checks(columns, time, seconds, unknown)
    for name, sql in columns.numbers.items():
        value = f"TRY_CAST({sql} AS DOUBLE)"
        infinite = f"NOT coalesce(isfinite({value}), false)"
        python = f"(typeof({sql}) = 'VARCHAR' AND contains(CAST({sql} AS VARCHAR), '_'))"
        no_number = reason_with_value(f"{name} not a number", sql)
        arms.append(f"WHEN {sql} IS NOT NULL AND ({infinite} OR {python}) THEN {no_number}")
        arms.append(f"WHEN abs({value}) > {MAX_NUMBER} THEN {reason_with_value(f'{name} above {MAX_NUMBER:.0e}', sql)}")
        if name == "weight":
            arms.append(f"WHEN {value} < 0 THEN {reason_with_value('weight is negative', sql)}")
    if columns.event:
        arms.append(f"WHEN coalesce(trim({columns.event}), '') = '' THEN 'event is empty'")
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


def _timestamp_checks(columns: LogColumns, time: Time, seconds: str, unknown: Sequence[int]) -> list[str]:
    """Return CASE arms with the reasons for a bad timestamp."""
    unit = columns.unit
    if columns.time_type.startswith(TYPED):
        expected, late = "timestamp is infinite", "timestamp after 2100"
    else:
        expected = "timestamp not a number" if unit in UNITS else f"timestamp not as {unit} has it"
        late = f"timestamp after 2100, in another unit than {unit}"
    early = f"timestamp before 1980, in another unit than {unit}"
    arms = [
        f"WHEN {columns.timestamp} IS NULL OR {time.blank} THEN 'timestamp is empty'",
        f"WHEN {seconds} IS NULL THEN {reason_with_value(expected, time.text)}",
    ]
    if unknown:
        placeholder = reason_with_value("timestamp stands for no time", time.text)
        arms.append(f"WHEN {seconds} IN ({', '.join(map(str, unknown))}) THEN {placeholder}")
    arms += [
        f"WHEN {seconds} < 0 THEN {reason_with_value('timestamp before 1970', time.text)}",
        f"WHEN {seconds} >= {LATEST_PLAUSIBLE} THEN {reason_with_value(late, time.text)}",
    ]
    if unit in UNITS and unit != "s" and not columns.time_type.startswith(TYPED):
        arms.append(f"WHEN {seconds} < {EARLIEST_PLAUSIBLE} THEN {reason_with_value(early, time.text)}")
    return arms


def _append_rejects(con: ibis.BaseBackend, table: str, source: Source) -> None:
    """Append the lines that the parser rejected, with a reason each, after the good rows."""
    if not source.rejects:
        return
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
    file = "" if source.file_sql is None else f", {source.file_sql} AS source_file"
    con.raw_sql(
        f"""INSERT INTO {table} BY NAME SELECT problem{file} FROM (
            SELECT file_id AS file_index, line, first({reason} ORDER BY column_idx) AS problem
            FROM {source.rejects} GROUP BY file_id, line
        ) ORDER BY file_index, line"""
    )
    if _count(con, source.rejects) and not _count(con, f"{table} WHERE user_id IS NOT NULL"):
        columns = ", ".join(source.types)
        raise ValueError(f"cannot read {source.where}: no line has the columns {columns}. Is the delimiter right?")


def _check_encoding(con: ibis.BaseBackend, source: Source) -> None:
    if lines := _count(con, f"{source.rejects} WHERE error_type = 'INVALID ENCODING'"):
        raise ValueError(f"cannot read {source.where}: {lines} lines are not in the encoding expected. {ENCODING_HINT}")


def _view(con: ibis.BaseBackend, select: str) -> ibis.Table:
    name = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return con.table(name)


def _count(con: ibis.BaseBackend, selection: str, what: str = "*") -> int:
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
