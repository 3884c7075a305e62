"""Text that becomes SQL, always quoted, and statements whose errors name the file instead of the engine.

Times in every form a log has them, as SQL: seconds since 1970 UTC, and the reasons why a value is none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import duckdb
from ibis.util import gen_name

if TYPE_CHECKING:
    from ibis.backends.duckdb import Backend

# ruff: noqa: S608 -- names and constants enter a statement only through sql.identifier and sql.literal


def identifier(name: str) -> str:
    """A column or table name, quoted; ValueError for a name no column can have."""
    if not isinstance(name, str) or not name or "\x00" in name:
        raise ValueError(f"{name!r} is not a column name: give the name as text, as the file's header has it")
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A string constant, quoted; null bytes are refused, since a statement would end at them."""
    if "\x00" in text:
        raise ValueError(f"{text!r} holds a null byte")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """A list of string constants."""
    return "[" + ", ".join(literal(text) for text in texts) + "]"


def column_types(con: Backend, source: str, *, where: str) -> dict[str, str]:
    """Column names and DuckDB types of what stands after FROM."""
    with errors_name(where):
        return {
            str(row[0]): str(row[1]) for row in con.raw_sql(f"DESCRIBE SELECT * FROM {source}").fetchall()
        }


def create(con: Backend, select: str, *, where: str) -> str:
    """Run a query once into a temporary table that keeps the row order, and return the table's name,
    quoted.
    """
    name = identifier(gen_name("raw"))
    with errors_name(where), _insertion_order(con):
        con.raw_sql(f"CREATE TEMP TABLE {name} AS {select}")
    return name


def shown(reason: str, value: str) -> str:
    """SQL for a reason that shows a value (SQL too), shortened and in quotation marks."""
    return f"{literal(reason + ': ')} || chr(39) || left(CAST({value} AS VARCHAR), 60) || chr(39)"


def view(con: Backend, select: str) -> str:
    """A temporary view of a query; its name, unquoted, for `con.table`."""
    name = gen_name("source")
    con.raw_sql(f"CREATE TEMP VIEW {identifier(name)} AS {select}")
    return name


def number(con: Backend, query: str) -> int:
    """The single number that a query gives."""
    return int(con.raw_sql(query).fetchall()[0][0])


@contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Turn what DuckDB says about a file into one ValueError that names it; lack of memory or disk stays
    what it is.
    """
    try:
        yield
    except (duckdb.OutOfMemoryException, duckdb.InterruptException):
        raise
    except duckdb.Error as error:
        text = str(error)
        if "No space left" in text:
            raise
        reason = " ".join(text.split("\n\n", maxsplit=1)[0].split())
        hint = ""
        if "unicode" in text or "utf-8" in text.lower() or "encod" in text.lower():
            hint = ". Say how the file is encoded: `encoding: latin-1`, or utf-16, in the options"
        elif any(sign in text for sign in ("GZIP", "magic bytes", "ZSTD", "zstd", "footer")):
            hint = ". The file is cut short or is not what its name says: fetch it again"
        raise ValueError(f"cannot read {where}: {reason}{hint}") from error


@contextmanager
def _insertion_order(con: Backend) -> Iterator[None]:
    """Row numbers are the source's order only while DuckDB keeps it; a connection may have given that up."""
    before = con.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall()[0][0]
    con.raw_sql("SET preserve_insertion_order = true")
    try:
        yield
    finally:
        con.raw_sql(f"SET preserve_insertion_order = {'true' if before else 'false'}")


def names(paths: Sequence[str]) -> str:
    """Paths for an error message: the first, and how many more."""
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"


UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
FIRST_BELIEVED, LAST_BELIEVED = 315_532_800, 4_102_444_800  # 1980 and 2100: outside, the unit is wrong
TYPED = "typed"  # the unit of a column that is a date or a time already


def seconds(text: str, unit: str) -> str:
    """SQL for int64 seconds, null where `text` (SQL too) is no time of that form.

    unit: s, ms, us, ns since 1970; iso; a strptime format; or `TYPED`. Times without a zone are UTC,
    whatever the connection's zone is.
    """
    if unit == TYPED:
        return f"epoch_us({text}) // 1000000"
    if unit in UNITS:
        whole = f"TRY_CAST({text} AS BIGINT)"
        fraction = f"TRY_CAST(floor(TRY_CAST({text} AS DOUBLE)) AS BIGINT)"  # '12.7' as BIGINT would be 13
        value = f"CASE WHEN contains(CAST({text} AS VARCHAR), '.') THEN {fraction} ELSE {whole} END"
        return value if unit == "s" else f"({value}) // {UNITS[unit]}"
    if unit == "iso":
        # A cast to TIMESTAMPTZ heeds an offset, but without one takes the session's zone; TIMESTAMP neither.
        # An offset follows the minutes at the earliest; these tests look at bytes, and cost next to nothing.
        offset = (
            f"(strlen({text}) > 16 AND (suffix({text}, 'Z') OR contains({text}, '+') OR {text} LIKE '%:%-%'))"
        )
        zoned = f"epoch_us(TRY_CAST({text} AS TIMESTAMPTZ))"
        naive = f"epoch_us(TRY_CAST({text} AS TIMESTAMP))"
        return f"(CASE WHEN {offset} THEN {zoned} ELSE {naive} END) // 1000000"
    if "%" not in unit:
        raise ValueError(f"unknown timestamp unit {unit!r}: s, ms, us, ns, iso or a format, '%Y-%m-%d %H:%M'")
    return f"epoch_us(try_strptime({text}, {literal(unit)})) // 1000000"


def problems(text: str, unit: str, time: str) -> list[str]:
    """CASE arms that say what is wrong with a time. text: the source's; time: its seconds (both SQL)."""
    expected = "timestamp not a number" if unit in UNITS else f"timestamp not as {unit} has it"
    late = f"timestamp after 2100, in another unit than {unit}"
    early = f"timestamp before 1980, in another unit than {unit}"
    arms = [
        f"WHEN {text} IS NULL OR CAST({text} AS VARCHAR) = '' THEN 'timestamp is empty'",
        f"WHEN {time} IS NULL THEN {shown(expected, text)}",
        f"WHEN {time} < 0 THEN {shown('timestamp before 1970', text)}",
        f"WHEN {time} >= {LAST_BELIEVED} THEN {shown(late, text)}",
    ]
    if unit in UNITS and unit != "s":
        arms.append(f"WHEN {time} < {FIRST_BELIEVED} THEN {shown(early, text)}")
    return arms
