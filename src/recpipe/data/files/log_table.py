"""The log as a table: ids as text, a reason per bad row, and an order that follows the source's full resolution."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import ibis
from ibis.util import gen_name

from recpipe.data.files.json_files import json_fields, json_is_exact_scalar, json_text
from recpipe.data.files.tables import (
    Source,
    check_encoding,
    count_rows,
    create_table,
    create_view,
    errors_with_file,
    identifier,
    literal,
    literals,
    reason_with_value,
)
from recpipe.data.files.times import CLOCK, INTEGERS, NANOSECONDS, TYPED, UNKNOWN_ZONE, Time, time_sql
from recpipe.data.time_formats import UNITS

logger = logging.getLogger(__name__)

MAX_NUMBER = 1e15  # of ratings and weights: squares of more would not fit into a float32
MIN_PLACEHOLDERS = 20  # rows of one time, from which it can be suspected
PLACEHOLDER_SAMPLE = 100_000  # rows in which such a time is sought
EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE = 315_532_800, 4_102_444_800  # 1980 and 2100: beyond, the unit is wrong
BLANKS = " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\ufeff" + "".join(
    chr(code) for code in range(0x2000, 0x200B)
)
EXACT = {"DOUBLE": 1 << 53, "FLOAT": 1 << 24}  # from here on, several integers have the same float
PLAIN = (*INTEGERS, "BOOLEAN", "DATE", "TIME", "UUID")


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
    time = _time(columns, source.where) if columns.timestamp else Time("CAST(NULL AS BIGINT)", 1, "NULL")
    seconds = f"{ticks} // {time.per_second}"
    below = time.part or "0"
    if time.per_second > 1:
        below = f"{ticks} % {time.per_second} * {NANOSECONDS // time.per_second} + {below}"
    numbers = {name: identifier(gen_name(name)) for name in columns.numbers}
    selection = [f"{number} AS {name}" for name, number in numbers.items()]
    selection += [f"{columns.event} AS event"] if columns.event else []
    selection += [f"{sql} AS {identifier(name)}" for name, sql in columns.extra.items()]
    selection += [f"{file} AS source_file"] if source.file_sql else []
    hidden = {position: _integer(columns.order)} if columns.order else {}
    hidden |= {fraction: f"CAST({below} AS INTEGER)", place: "CAST(NULL AS BIGINT)"} if time.resolution else {}
    selection += [f"{sql} AS {name}" for name, sql in hidden.items()]
    problem = _problem(
        source,
        columns,
        time,
        user=user,
        item=item,
        seconds=seconds,
        numbers=numbers,
        unknown=_null_seconds(con, columns),
    )
    select = f"""
        SELECT {user} AS user_id, {item} AS item_id, {seconds} AS timestamp, {"".join(f"{sql}, " for sql in selection)}
            CAST({problem} AS VARCHAR) AS problem
        FROM (
            SELECT *, CAST({columns.user} AS VARCHAR) AS {user}, CAST({columns.item} AS VARCHAR) AS {item},
                {time.ticks} AS {ticks}, {source.file_sql or "NULL"} AS {file}
                {"".join(f", TRY_CAST({columns.numbers[name]} AS DOUBLE) AS {sql}" for name, sql in numbers.items())}
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
    return create_view(con, f'SELECT {shown}, CAST({order} AS BIGINT) AS "order" FROM {table}')


def _time(columns: LogColumns, where: str, value: object = None) -> Time:
    """Return the SQL of the timestamp, or of a value of the configuration in the same notation."""
    if value is None:
        try:
            return time_sql(str(columns.timestamp), columns.time_type, columns.unit)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    unit = "iso" if columns.time_type.startswith(TYPED) else columns.unit
    return time_sql(literal(str(value)), "VARCHAR", unit)


def _null_seconds(con: ibis.BaseBackend, columns: LogColumns) -> list[int]:
    """Return the seconds of ``null_times``. Raises ValueError for a value that is no time in the log's notation."""
    seconds = []
    for value in columns.null_times:
        time = _time(columns, "", value)
        number = con.raw_sql(f"SELECT {time.ticks} // {time.per_second}").fetchall()[0][0]
        if number is None:
            raise ValueError(f"null_times of the data set's options: {value!r} is no time as `timestamp` has it")
        seconds.append(int(number))
    return seconds


def _order_within_seconds(con: ibis.BaseBackend, table: str, order: str, *, fraction: str, place: str) -> None:
    """Store in ``place`` the order of good rows whose fractions of a second contradict their order."""
    good = "problem IS NULL AND user_id <> '' AND item_id <> ''"
    if order == "rowid":  # most logs with fractions are sorted by time, which one pass tells
        events = f"SELECT rowid AS event, timestamp * {NANOSECONDS} + {fraction} AS time FROM {table} WHERE {good}"
        pairs = f"SELECT *, lag(event) OVER () AS last_event, lag(time) OVER () AS last_time FROM ({events})"
        if not count_rows(con, f"({pairs}) WHERE time < last_time OR event < last_event"):
            return
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
    """Log times that stand for unknown ones: 0, or one that is far more frequent than all others of a sample."""
    good = f"FROM {table} WHERE problem IS NULL"
    total, zeros = con.raw_sql(f"SELECT count(*), count(*) FILTER (timestamp = 0) {good}").fetchall()[0]
    time, n = 0, zeros
    if not zeros:
        sample = f"SELECT timestamp {good} AND rowid % {1 + total // PLACEHOLDER_SAMPLE} = 0"
        query = f"SELECT timestamp, count(*) AS n FROM ({sample}) GROUP BY timestamp ORDER BY n DESC LIMIT 2"
        (time, n), (_, second) = [*con.raw_sql(query).fetchall(), (0, 0), (0, 0)][:2]
        if second and n >= MIN_PLACEHOLDERS and n > min(total, PLACEHOLDER_SAMPLE) / 20 and n > 10 * second:
            n = count_rows(con, f"{table} WHERE problem IS NULL AND timestamp = {time}")
        else:
            n = 0
    if n:
        logger.warning(
            "%s: %s of %s rows have the time %s, as if it were unknown. `null_times: [<the value>]` in the options of "
            "the data set puts them into quarantine",
            where, f"{n:,}", f"{total:,}", datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
        )  # fmt: skip


def _problem(
    source: Source,
    columns: LogColumns,
    time: Time,
    *,
    user: str,
    item: str,
    seconds: str,
    numbers: Mapping[str, str],
    unknown: Sequence[int],
) -> str:
    """Return SQL of the reason why a row is bad by its raw values; ids are checked further in `interactions`.

    user, item, seconds, numbers: SQL of the values read; unknown: seconds that stand for no time.
    """
    arms = list(columns.problems)
    if words := sorted(map(str, columns.null_words), key=str.encode):
        for name, sql in (("user_id", user), ("item_id", item)):  # a comparison costs less than a set
            test = f"{sql} BETWEEN {literal(words[0])} AND {literal(words[-1])}"
            test += f" AND {sql} IN ({', '.join(map(literal, words))})"
            arms.append(f"WHEN {test} THEN {reason_with_value(f'word for null as {name}', sql)}")
    if columns.timestamp:
        arms += _timestamp_checks(columns, time, seconds, unknown)
    for name, sql in columns.numbers.items():
        value = numbers[name]
        infinite = f"NOT coalesce(isfinite({value}), false)"
        python = f"(typeof({sql}) = 'VARCHAR' AND contains(CAST({sql} AS VARCHAR), '_'))"
        no_number = reason_with_value(f"{name} not a number", sql)
        arms.append(f"WHEN {sql} IS NOT NULL AND ({infinite} OR {python}) THEN {no_number}")
        arms.append(f"WHEN abs({value}) > {MAX_NUMBER} THEN {reason_with_value(f'{name} above {MAX_NUMBER:.0e}', sql)}")
        if name == "weight":
            arms.append(f"WHEN {value} < 0 THEN {reason_with_value('weight is negative', sql)}")
    if columns.event:
        empty = literals(["", *map(str, columns.null_words)])
        arms.append(f"WHEN list_contains({empty}, coalesce(trim({columns.event}), '')) THEN 'event is empty'")
    if columns.order:
        text = f"CAST({columns.order} AS VARCHAR)"
        arms.append(f"WHEN {columns.order} IS NULL OR {text} = '' THEN 'order is empty'")
        not_whole = reason_with_value("order is not a whole number", text)
        arms.append(f"WHEN {_integer(columns.order)} IS NULL THEN {not_whole}")
    first_reason = f"CASE {' '.join(arms)} END" if arms else "NULL"
    return f"coalesce({source.problem}, {first_reason})"


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
        expected = "timestamp not a number" if unit in UNITS else f"timestamp not in the format {unit}"
        late = f"timestamp after 2100, in another unit than {unit}"
    early = f"timestamp before 1980, in another unit than {unit}"
    reasons = f"WHEN {columns.timestamp} IS NULL OR {time.blank} THEN 'timestamp is empty'"
    if unit not in UNITS:
        zone = reason_with_value("timestamp in an unknown or ambiguous zone", time.text)
        clock = f"TRY_CAST(regexp_extract({time.text}, '{CLOCK}') AS TIMESTAMP)"
        is_time = f" AND {clock} IS NOT NULL" if unit == "iso" else ""
        reasons += f" WHEN regexp_matches({time.text}, '{UNKNOWN_ZONE}'){is_time} THEN {zone}"
    arms = [f"WHEN {seconds} IS NULL THEN CASE {reasons} ELSE {reason_with_value(expected, time.text)} END"]
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
    check_encoding(con, source)
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
    if count_rows(con, source.rejects) and not count_rows(con, f"{table} WHERE user_id IS NOT NULL"):
        columns = ", ".join(source.types)
        raise ValueError(f"cannot read {source.where}: no line has the columns {columns}. Is the delimiter right?")


# Ids -----------------------------------------------------------------------------------------------------------------


def id_text(con: ibis.BaseBackend, source: Source, column: str) -> str:
    """Return SQL of a column of ids as text; null where `id_problems` has a reason.

    Integers that pandas stored as floats lose their ``.0``, decimals their zeros, binary is decoded as UTF-8. Raises
    ValueError for a type that cannot be an id, such as a list, with an example.
    """
    sql, kind = identifier(column), source.types[column]
    if kind in PLAIN or kind in EXACT or kind.startswith("DECIMAL"):
        return number_text(sql, kind)
    if kind == "VARCHAR" or kind.startswith("ENUM"):
        return _trimmed(sql if kind == "VARCHAR" else f"CAST({sql} AS VARCHAR)")
    if kind == "BLOB":
        return _trimmed(f"TRY(decode({sql}))")
    if kind == "JSON" and not _is_nested(con, source, sql):
        return f"CASE WHEN {json_is_exact_scalar(column)} THEN {_trimmed(json_text(column))} END"
    example = (
        "" if "TIMESTAMP" in kind else f", such as {_values(con, source, f'left(CAST({sql} AS VARCHAR), 60)', sql, 1)}"
    )
    advice = "name a column of single values"
    fields = json_fields(con, source, column) if kind == "JSON" else []
    if fields and not example.startswith(", such as ['["):
        advice = f"name a field of it, such as {column}.{fields[0]}"
    elif kind.endswith("]") or example.startswith(", such as ['["):
        advice = "name another column, or, where a row holds a user's whole sequence, map it to item_id and set "
        advice += "`sequence_per_row: true`"
    what = "of lists or records" if kind == "JSON" else kind[:80]
    raise ValueError(
        f"{source.where}: column {column!r} is {what}, no id{example}. In `columns` of the options, {advice}"
    )


def _is_nested(con: ibis.BaseBackend, source: Source, sql: str) -> bool:
    """Test whether the first values of a JSON column are all lists or objects."""
    values = _values(con, source, f"json_type({sql})", sql, 100)
    return bool(values) and set(values) <= {"ARRAY", "OBJECT"}


def _values(con: ibis.BaseBackend, source: Source, sql: str, column: str, n: int) -> list[str]:
    with errors_with_file(source.where):
        rows = con.raw_sql(f"SELECT {sql} FROM {source.sql} WHERE {column} IS NOT NULL LIMIT {n}").fetchall()
    return [value for (value,) in rows]


def number_text(sql: str, kind: str) -> str:
    """Return SQL of a value of type ``kind`` as text: whole floats and decimals without ``.0``, inexact ones null."""
    text = f"CAST({sql} AS VARCHAR)"
    if kind in EXACT:
        whole = f"CAST(TRY_CAST({sql} AS HUGEINT) AS VARCHAR)"
        # Only isfinite() finds NaN: the statistics of a Parquet file leave it out, and DuckDB 2.0.0 trusts them
        exact = f"isfinite({sql}) AND abs({sql}) < {EXACT[kind]}"
        return f"CASE WHEN NOT ({exact}) THEN NULL WHEN {sql} = floor({sql}) THEN {whole} ELSE {text} END"
    if kind.startswith("DECIMAL") and not kind.endswith(",0)"):
        return f"rtrim(rtrim({text}, '0'), '.')"
    return text


def id_problems(name: str, source: Source, column: str) -> list[str]:
    """Return CASE arms with the reasons why a value of a column is no id. name: user_id or item_id."""
    sql, kind = identifier(column), source.types[column]
    arms = []
    if kind == "JSON":
        reason = reason_with_value(f"{name} is a list, an object or a number that is not exact", sql)
        arms.append(f"WHEN NOT {json_is_exact_scalar(column)} THEN {reason}")
    elif kind == "BLOB":
        arms.append(f"WHEN {sql} IS NOT NULL AND TRY(decode({sql})) IS NULL THEN "
                    + reason_with_value(f"{name} is binary and no UTF-8", sql))  # fmt: skip
    elif kind in EXACT:
        arms.append(f"WHEN NOT isfinite({sql}) THEN '{name} is NaN or infinite'")
        power = EXACT[kind].bit_length() - 1
        inexact = reason_with_value(f"{name} is a float above 2^{power}, whose neighbours are one with it", sql)
        arms.append(f"WHEN abs({sql}) >= {EXACT[kind]} THEN {inexact}")
    return arms


def _trimmed(text: str) -> str:
    """Return SQL of a text without blanks around it. Trimming is slow: most ids are ASCII and end in no blank."""
    suspect = f"{text} < '!' OR ({text})[-1] < '!' OR strlen({text}) <> length({text})"
    return f"CASE WHEN {suspect} THEN trim({text}, {literal(BLANKS)}) ELSE {text} END"
