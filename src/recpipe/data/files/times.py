"""SQL of event times in every notation: numbers since 1970, ISO 8601, strptime formats, typed columns.

A time is read to the last character or it is null: DuckDB's own cast drops a zone or ``PM`` behind the seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import duckdb
import pyarrow as pa

from recpipe.data.files.tables import literal
from recpipe.data.time_formats import UNITS

NANOSECONDS = 1_000_000_000
INTEGERS = tuple(sign + name for sign in ("", "U") for name in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"))
TYPED = ("TIMESTAMP", "DATE")  # beginnings of the types of columns that are times already

# Hours from UTC. CST, IST, BST and AST have several meanings in use, and are no times. RFC 2822 defines the American.
ZONES = {
    "Z": 0, "UTC": 0, "UT": 0, "UCT": 0, "GMT": 0, "WET": 0, "WEST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3,
    "MSK": 3, "SAST": 2, "PKT": 5, "WIB": 7, "HKT": 8, "SGT": 8, "AWST": 8, "JST": 9, "KST": 9, "ACST": 9.5,
    "ACDT": 10.5, "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13, "EST": -5, "EDT": -4, "CDT": -5, "MST": -7,
    "MDT": -6, "PST": -8, "PDT": -7, "AKST": -9, "AKDT": -8, "HST": -10,
}  # fmt: skip
CITY = r"[A-Za-z]+(?:/[A-Za-z_-]+)+(?:[+-]?\d{1,2})?"  # a zone of the IANA database, such as Europe/Berlin
OFFSET = r"(?:UTC|GMT|UT)?[+-](?:0?\d|1[0-8])(?::?[0-5]\d)?"
CANONICAL = (
    r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-](?:0\d|1[0-8])(?::?[0-5]\d)?)?)?"  # fast
)
DAY = r"\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}\s*"
# Groups: day, clock, AM or PM, zone, a zone in brackets, as Java writes it behind an offset
MOMENT = (
    r"^\s*(\d{4}[-/]\d{1,2}[-/]\d{1,2})(?:\s+|[Tt])(\d{1,2}:\d{1,2}(?::\d{1,2}(?:[.,]\d{1,9})?)?)"
    rf"\s*([AaPp][Mm]\b)?\s*({OFFSET}|{CITY}|[A-Za-z]{{1,4}})?\s*(?:[\[(]({CITY}|[A-Za-z]{{1,4}})[\])])?\s*$"
)
# Day and clock, without fractions of a second and the zone
CLOCK = r"^\s*\d{4}[-/]\d{1,2}[-/]\d{1,2}(?:\s+|[Tt])\d{1,2}:\d{1,2}(?::\d{1,2})?"
UNKNOWN_ZONE = r"\d\s*(?:[B-OQ-Yb-oq-y]|[AaPp][A-LN-Za-ln-z])[A-Za-z]{0,4}\s*$"  # letters at the end, but AM and PM
NUMBER = r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*"
HALF_DAY = 12 * 3600 * 1_000_000  # microseconds


class Time(NamedTuple):
    """SQL of a time as a whole number of ticks since 1970 UTC, null where the value is no time."""

    ticks: str
    per_second: int
    text: str  # the raw value for messages
    part: str | None = None  # nanoseconds below a tick
    blank: str = "false"  # SQL of whether there is no value

    @property
    def resolution(self) -> bool:
        """Whether times may lie within a second."""
        return self.per_second > 1 or self.part is not None


def time_sql(column: str, kind: str, unit: str) -> Time:
    """Return the SQL of a time column. column: SQL; kind: its DuckDB type.

    unit: s, ms, us, ns since 1970; iso; or a strptime format. A column of dates or timestamps needs none. Times without
    a zone are UTC, whatever the connection's. Raises ValueError for another unit and for a type that is no time.
    """
    if kind.startswith(TYPED):
        return _typed(column, kind)
    if unit not in UNITS and unit != "iso" and "%" not in unit:
        raise ValueError(f"unknown timestamp unit {unit!r}: s, ms, us, ns, iso or a format, '%Y-%m-%d %H:%M'")
    number = kind in INTEGERS or kind == "DOUBLE" or kind.startswith("DECIMAL")
    if kind == "FLOAT":
        raise ValueError(
            f"the timestamp {column} is FLOAT, whose 24 bits cannot hold seconds since 1970 (steps of 128 s): "
            "write it as int64, double or timestamp"
        )
    if number and unit == "iso":
        raise ValueError(
            f"the timestamp {column} is {kind}, a number: set `timestamp` in the options of the data set to s, ms, us "
            "or ns since 1970, or to a format such as '%Y%m%d'"
        )
    if number and unit in UNITS:
        return _number(column, kind, UNITS[unit])
    text = _text(column, kind)
    blank = f"trim({text}) = ''"
    if unit in UNITS:
        return _number_text(text, UNITS[unit], blank)
    return _iso(text, blank) if unit == "iso" else _strptime(text, unit, blank)


def readable_times(values: Sequence[str], unit: str) -> list[bool]:
    """Return whether each of a column's values as text is a time in the unit, as in `time_sql`."""
    with duckdb.connect(config={"threads": 1}) as con:
        table = con.from_arrow(pa.table({"time": pa.array(values, pa.string())}))
        rows = table.project(f"({time_sql('time', 'VARCHAR', unit).ticks}) IS NOT NULL").fetchall()
    return [bool(row[0]) for row in rows]


def _text(column: str, kind: str) -> str:
    """Return SQL of a column's value as text; ``{"$date": …}`` of MongoDB gives its value."""
    if kind == "JSON" or (kind.startswith("STRUCT") and '"$date"' in kind):
        json = column if kind == "JSON" else f"to_json({column})"
        return f"""coalesce({json} ->> '$."$date"."$numberLong"', {json} ->> '$."$date"', {json} ->> '$')"""
    if kind == "DOUBLE" or kind.startswith("DECIMAL"):  # 20240131.0
        whole = f"isfinite(CAST({column} AS DOUBLE)) AND {column} = floor({column})"
        return (
            f"CASE WHEN {whole} THEN CAST(TRY_CAST({column} AS HUGEINT) AS VARCHAR) ELSE CAST({column} AS VARCHAR) END"
        )
    if kind == "VARCHAR":
        return column
    if kind in INTEGERS or kind.startswith("ENUM"):
        return f"CAST({column} AS VARCHAR)"
    raise ValueError(
        f"the timestamp {column} is {kind}, no time: map a column of numbers, text, dates or timestamps, or leave "
        "`timestamp` out for a log in the order of its rows"
    )


def _typed(column: str, kind: str) -> Time:
    if kind == "DATE":
        ticks, per_second = f"(CASE WHEN isfinite({column}) THEN datediff('day', DATE '1970-01-01', {column}) END)", 1
        return Time(f"{ticks} * 86400", per_second, f"CAST({column} AS VARCHAR)")
    unit = "ns" if kind.endswith("_NS") else "us"
    ticks, per_second = f"epoch_{unit}({column})", UNITS[unit]
    # DuckDB ends its database where it has to write a timestamp that is out of its range
    seconds = f"{ticks} // {per_second}"
    written = f"CAST(make_timestamp({seconds} * 1000000) AS VARCHAR)"
    text = f"CASE WHEN {seconds} BETWEEN -62135596800 AND 253402300799 THEN {written} ELSE 'out of range' END"
    return Time(ticks, per_second, text)


def _number(column: str, kind: str, per_second: int) -> Time:
    text = f"CAST({column} AS VARCHAR)"
    if kind in INTEGERS:
        return Time(f"TRY_CAST({column} AS BIGINT)", per_second, text)
    part = f"TRY_CAST(CAST({column} - floor({column}) AS DOUBLE) * {NANOSECONDS // per_second} AS BIGINT)"
    finite = f"isfinite(CAST({column} AS DOUBLE))"  # the statistics of a Parquet file leave NaN out
    return Time(f"CASE WHEN {finite} THEN TRY_CAST(floor({column}) AS BIGINT) END", per_second, text, part)


def _number_text(text: str, per_second: int, blank: str) -> Time:
    """Read decimal numbers only: a cast alone takes ``0x10``, ``0b11`` and ``1_000`` too, and rounds ``12.7``."""
    integer, decimal = f"TRY_CAST({text} AS BIGINT)", f"TRY_CAST({text} AS DECIMAL(38, 9))"
    ticks = (
        f"CASE WHEN CAST({integer} AS VARCHAR) = {text} THEN {integer} "
        f"WHEN regexp_full_match({text}, '{NUMBER}') THEN TRY_CAST(floor({decimal}) AS BIGINT) END"
    )
    rest = f"TRY_CAST(CAST({decimal} - floor({decimal}) AS DOUBLE) * {NANOSECONDS // per_second} AS BIGINT)"
    return Time(ticks, per_second, text, f"CASE WHEN contains({text}, '.') THEN {rest} ELSE 0 END", blank)


def _iso(text: str, blank: str) -> Time:
    """Read ISO 8601 and its neighbours in microseconds, and the nanoseconds below them."""
    # An offset follows the minutes at the earliest; these tests look at bytes, and cost next to nothing.
    offset = f"(strlen({text}) > 16 AND (suffix({text}, 'Z') OR contains({text}, '+') OR {text} LIKE '%:%-%'))"
    zoned, naive = (f"epoch_us(TRY_CAST({text} AS {kind}))" for kind in ("TIMESTAMPTZ", "TIMESTAMP"))
    ticks = (
        f"CASE WHEN regexp_full_match({text}, '{CANONICAL}') THEN CASE WHEN {offset} THEN {zoned} ELSE {naive} END "
        f"WHEN regexp_full_match({text}, '{DAY}') THEN {naive} ELSE {_moment(text)} END"
    )
    digits = rf"rpad(regexp_extract({text}, '[.,]\d{{6}}(\d{{1,3}})', 1), 3, '0')"
    part = f"CASE WHEN strlen({text}) > 26 THEN TRY_CAST({digits} AS BIGINT) ELSE 0 END"
    return Time(ticks, 1_000_000, text, part, blank)


def _moment(text: str) -> str:
    """Return SQL of microseconds of a time with blanks, AM or PM, or a zone by name; null for anything else."""
    parts = f"regexp_extract({text}, '{MOMENT}', ['day', 'clock', 'half', 'zone', 'bracket'])"
    moment = (
        "{'clock': epoch_us(TRY_CAST(p.day || ' ' || replace(p.clock, ',', '.') AS TIMESTAMP)), "
        "'half': upper(left(p.half, 1)), 'zone': coalesce(nullif(p.zone, ''), p.bracket)}"
    )
    hour = f"m.clock % {2 * HALF_DAY} // {HALF_DAY // 12}"
    shift = (
        f"CASE WHEN m.half = '' THEN 0 WHEN {hour} NOT BETWEEN 1 AND 12 THEN NULL "
        f"WHEN m.half = 'A' AND {hour} = 12 THEN -{HALF_DAY} "
        f"WHEN m.half = 'P' AND {hour} < 12 THEN {HALF_DAY} ELSE 0 END"
    )
    local = "{'time': " + f"m.clock + {shift}, " + "'zone': m.zone}"
    city, offset = _in_city("l.time", "l.zone"), _offset("l.zone")
    instant = f"CASE WHEN contains(l.zone, '/') THEN {city} ELSE l.time - {offset} END"
    return _bind(parts, "p", _bind(moment, "m", _bind(local, "l", instant)))


def _bind(value: str, name: str, sql: str) -> str:
    """Return SQL of an expression in which ``name`` is a value, computed once: DuckDB has no LET."""
    return f"list_transform([{value}], lambda {name}: {sql})[1]"


def _in_city(local: str, zone: str) -> str:
    """Return SQL of microseconds of a local time; null in the hour that summer time leaves out.

    The hour that autumn repeats counts as standard time.
    """
    written = f"CAST(make_timestamp({local}) AS VARCHAR)"
    instant = f"TRY_CAST({written} || ' ' || {zone} AS TIMESTAMPTZ)"
    exists = f"timezone({zone}, {instant}) = make_timestamp({local})"
    return f"CASE WHEN {instant} IS NOT NULL AND {exists} THEN epoch_us({instant}) END"


def _offset(zone: str) -> str:
    """Return SQL of the microseconds that a zone is ahead of UTC; null for a name that ``ZONES`` does not have."""
    names = " ".join(f"WHEN '{name}' THEN {round(hours * 3600)}" for name, hours in ZONES.items())
    number = rf"regexp_replace(upper({zone}), '^[A-Z]*([+-]\d+)(:?(\d\d))?$', '\1')"
    hours = rf"regexp_extract({zone}, '[+-](\d{{1,2}})', 1)"
    minutes = rf"regexp_extract({zone}, '[+-]\d{{1,2}}:?(\d\d)$', 1)"
    sign = f"CASE WHEN contains({number}, '-') THEN -1 ELSE 1 END"
    seconds = f"({sign}) * (CAST({hours} AS BIGINT) * 3600 + CAST('0' || {minutes} AS BIGINT) * 60)"
    return (
        f"1000000 * CAST(CASE WHEN {zone} = '' THEN 0 WHEN regexp_full_match({zone}, '{OFFSET}') THEN {seconds} "
        f"ELSE CASE upper({zone}) {names} END END AS BIGINT)"
    )


def _strptime(text: str, unit: str, blank: str) -> Time:
    """Read times in a strptime format; ``%Z`` takes the zones of ``ZONES`` and of the IANA database."""
    nanoseconds = "%n" in unit
    epoch, per_second = ("epoch_ns", NANOSECONDS) if nanoseconds else ("epoch_us", 1_000_000)
    value = f"try_strptime({text}, {literal(unit)})"
    ticks = f"{epoch}({value})"
    if "%Z" in unit:
        zone = rf"regexp_extract({text}, '(?:^|\s|\d)({'|'.join(ZONES)})(?:\s|$)', 1)"
        offsets = " ".join(f"WHEN '{name}' THEN '{_numeric(hours)}'" for name, hours in ZONES.items())
        numeric = f"replace({text}, {zone}, CASE {zone} {offsets} END)"
        city = f"regexp_matches({text}, '{CITY}')"
        fixed = f"try_strptime({numeric}, {literal(unit.replace('%Z', '%z'))})"
        ticks = f"CASE WHEN {zone} <> '' THEN {epoch}({fixed}) WHEN {city} THEN {ticks} END"
    elif unit.endswith("%z"):
        utc = f"try_strptime(regexp_replace({text}, '(?:Z|UTC|GMT)\\s*$', '+00'), {literal(unit)})"
        ticks = f"CASE WHEN regexp_matches({text}, '[A-Z]\\s*$') THEN {epoch}({utc}) ELSE {ticks} END"
    return Time(ticks, per_second, text, None, blank)


def _numeric(hours: float) -> str:
    minutes = round(abs(hours) * 60)
    return f"{'-' if hours < 0 else '+'}{minutes // 60:02}:{minutes % 60:02}"
