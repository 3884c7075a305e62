"""SQL building blocks of the readers: quoting, statements whose errors name the file, timestamps in every unit.

Names and constants enter a statement only through ``identifier`` and ``literal``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import duckdb
import ibis
from ibis.util import gen_name

UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
TYPED = "typed"  # the unit of a column that is a date or timestamp already
ENCODING_HINT = "Say how the file is encoded: `encoding: latin-1`, or utf-16, in the options of the data set"
EARLIEST_PLAUSIBLE, LATEST_PLAUSIBLE = 315_532_800, 4_102_444_800  # 1980 and 2100: beyond, the unit is wrong


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


def path_summary(paths: Sequence[str]) -> str:
    """Summarise paths for an error message: the first and the number of others."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


def column_types(con: ibis.BaseBackend, source: str, *, where: str) -> dict[str, str]:
    """Return column names and DuckDB types of a FROM clause."""
    with errors_with_file(where):
        columns = con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
    return {str(column[0]): str(column[1]) for column in columns}


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


def create_view(con: ibis.BaseBackend, select: str) -> str:
    """Create a temporary view of a query; return its name, unquoted, for ``con.table``."""
    name: str = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return name


def scalar(con: ibis.BaseBackend, query: str) -> int:
    """Run a query with a single integer as its result."""
    return int(con.raw_sql(query).fetchall()[0][0])


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


def timestamp_seconds(text: str, unit: str) -> str:
    """Return SQL of int64 seconds since 1970 UTC, null where ``text`` (SQL too) is no timestamp in ``unit``.

    unit: s, ms, us, ns since 1970; iso; a strptime format; or ``TYPED``. Times without an offset are UTC, whatever the
    connection's time zone. Raises ValueError for another unit.
    """
    if unit == TYPED:
        return f"epoch_us({text}) // 1000000"
    if unit in UNITS:
        integer = f"TRY_CAST({text} AS BIGINT)"
        fraction = f"TRY_CAST(floor(TRY_CAST({text} AS DOUBLE)) AS BIGINT)"  # '12.7' as BIGINT would be 13
        value = f"CASE WHEN contains(CAST({text} AS VARCHAR), '.') THEN {fraction} ELSE {integer} END"
        return value if unit == "s" else f"({value}) // {UNITS[unit]}"
    if unit == "iso":
        # A cast to TIMESTAMPTZ reads an offset, but without one uses the session's time zone; TIMESTAMP does neither.
        # An offset follows the minutes at the earliest; these tests look at bytes, and cost next to nothing.
        offset = f"(strlen({text}) > 16 AND (suffix({text}, 'Z') OR contains({text}, '+') OR {text} LIKE '%:%-%'))"
        zoned = f"epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
        naive = f"epoch_us(TRY_CAST({text} AS TIMESTAMP))"
        return f"(CASE WHEN {offset} THEN {zoned} ELSE {naive} END) // 1000000"
    if "%" not in unit:
        raise ValueError(f"unknown timestamp unit {unit!r}: s, ms, us, ns, iso or a format, '%Y-%m-%d %H:%M'")
    return f"epoch_us(try_strptime({text}, {literal(unit)})) // 1000000"


def timestamp_checks(text: str, unit: str, time: str) -> list[str]:
    """Return CASE arms with the reasons for a bad timestamp. text: the raw value, time: its seconds (both SQL)."""
    expected = "timestamp not a number" if unit in UNITS else f"timestamp not as {unit} has it"
    late = f"timestamp after 2100, in another unit than {unit}"
    early = f"timestamp before 1980, in another unit than {unit}"
    arms = [
        f"WHEN {text} IS NULL OR CAST({text} AS VARCHAR) = '' THEN 'timestamp is empty'",
        f"WHEN {time} IS NULL THEN {reason_with_value(expected, text)}",
        f"WHEN {time} < 0 THEN {reason_with_value('timestamp before 1970', text)}",
        f"WHEN {time} >= {LATEST_PLAUSIBLE} THEN {reason_with_value(late, text)}",
    ]
    if unit in UNITS and unit != "s":
        arms.append(f"WHEN {time} < {EARLIEST_PLAUSIBLE} THEN {reason_with_value(early, text)}")
    return arms
