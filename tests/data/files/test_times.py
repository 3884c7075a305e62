"""Times to the last character: zones, AM and PM, fractions, numbers, typed columns; anything else is no time."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from ibis.backends.duckdb import Backend

from recpipe.data.files.tables import literal
from recpipe.data.files.times import readable_times, time_sql


def seconds(con: Backend, texts: list[str], unit: str) -> list[float | None]:
    """Read texts in a time zone that must not matter; return seconds with fractions."""
    con.raw_sql("SET TimeZone = 'America/New_York'")
    time = time_sql("x", "VARCHAR", unit)
    values = ", ".join(f"({n}, {literal(text)})" for n, text in enumerate(texts))
    query = f"SELECT {time.ticks}, {time.part or 0} FROM (VALUES {values}) AS t(n, x) ORDER BY n"
    rows = con.raw_sql(query).fetchall()
    return [None if ticks is None else ticks / time.per_second + part / 1e9 for ticks, part in rows]


def utc(year: int, month: int, day: int, hour: int = 0, minute: int = 0, second: int = 0) -> float:
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


ISO = {
    "2019-10-01 00:00:00 EST": utc(2019, 10, 1, 5),
    "2020-01-01 10:00:00 PST": utc(2020, 1, 1, 18),
    "2017-07-14 02:40:00 PST": utc(2017, 7, 14, 10, 40),  # PST is not PDT, whatever the season
    "2017-07-14 02:40:00 PDT": utc(2017, 7, 14, 9, 40),
    "2017-07-14 02:40:00 CEST": utc(2017, 7, 14, 0, 40),
    "2017-07-14 02:40:00 Europe/Berlin": utc(2017, 7, 14, 0, 40),
    "2020-01-01 10:00:00 America/Argentina/Buenos_Aires": utc(2020, 1, 1, 13),
    "2020-01-01 10:00:00 Etc/GMT+2": utc(2020, 1, 1, 12),
    "2017-07-14 02:40:00 UTC": utc(2017, 7, 14, 2, 40),
    "2017-07-14 02:40:00GMT": utc(2017, 7, 14, 2, 40),
    "2017-07-14T02:40:00 Z": utc(2017, 7, 14, 2, 40),
    "2017-07-14T02:40:00z": utc(2017, 7, 14, 2, 40),
    "2017-07-14T02:40:00+02": utc(2017, 7, 14, 0, 40),
    "2017-07-14T02:40:00+0200": utc(2017, 7, 14, 0, 40),
    "2017-07-14 02:40:00 -09:30": utc(2017, 7, 14, 12, 10),
    "2017-07-14 02:40:00 UTC+2": utc(2017, 7, 14, 0, 40),
    "2017-07-14T02:40:00+02:00[Europe/Berlin]": utc(2017, 7, 14, 0, 40),
    "2017-07-14 02:40:00 PM": utc(2017, 7, 14, 14, 40),
    "2017-07-14 12:00 AM": utc(2017, 7, 14),
    "2017-07-14 12:30:00pm": utc(2017, 7, 14, 12, 30),
    "2017-07-14 10:00 PM EST": utc(2017, 7, 15, 3),
    "2017-7-4 2:40:00": utc(2017, 7, 4, 2, 40),
    "2017/07/14": utc(2017, 7, 14),
    " 2017-07-14 02:40 ": utc(2017, 7, 14, 2, 40),
    "2017-07-14 02:40:00.25": utc(2017, 7, 14, 2, 40) + 0.25,
    "2017-07-14 02:40:00,25": utc(2017, 7, 14, 2, 40) + 0.25,  # the decimal sign of ISO 8601 and of Python's logging
    "2017-07-14t02:40:00,123456789z": utc(2017, 7, 14, 2, 40) + 0.123456789,
    "2017-07-14 24:00:00": utc(2017, 7, 15),
    "2017-07-14T02:40:00.123456789Z": utc(2017, 7, 14, 2, 40) + 0.123456789,
}
NO_ISO = [
    "2017-07-14 02:40:00 CST", "2017-07-14 02:40:00 IST", "2017-07-14 02:40:00 BST",  # several meanings
    "2017-07-14 02:40:00 FOO", "2017-07-14 02:40:00 Foo/Bar", "2017-07-14 02:40:00 Europe/Berlin x",
    "2017-07-14 13:00 PM", "2017-07-14 00:30 AM", "2017-07-14 02:40:00 P", "2017-07-14 02:40:0P",
    "2017-07-14 02:40:00+25:00", "2017-07-14 02:40:00+02:00:30", "2017-07-14 02:40:00 5", "2017-07-14 02:40:00;",
    "2021-03-28 02:30:00 Europe/Berlin",  # left out by summer time
    "2017-02-30", "2017-07-14 25:00", "2017-07-14x", "20170714T024000", "infinity", "epoch", "now", "", " ",
    "2016-12-31T23:59:60Z", "2017-W28-5", "2017-195",
    "0044-03-15 (BC)", "290000-01-10 00:00:00", "1500000000",
]  # fmt: skip


def test_what_follows_the_seconds_of_an_iso_time_is_heeded(con: Backend) -> None:
    assert dict(zip(ISO, seconds(con, list(ISO), "iso"), strict=True)) == pytest.approx(ISO, abs=1e-6)


def test_other_words_after_a_time_make_it_none(con: Backend) -> None:
    assert [text for text, value in zip(NO_ISO, seconds(con, NO_ISO, "iso"), strict=True) if value is not None] == []


def test_random_times_in_cities_and_offsets_are_those_of_python(con: Backend) -> None:
    draw = random.Random(3)
    texts, expected = [], []
    for _ in range(300):
        moment = datetime(1990, 1, 1, tzinfo=UTC) + timedelta(seconds=draw.randrange(10**9))
        if draw.random() < 0.5:
            minutes = draw.randrange(-12 * 60, 14 * 60, 15)
            local = moment.astimezone(timezone(timedelta(minutes=minutes)))
            texts.append(local.strftime(draw.choice(["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%d %I:%M:%S %p %z"])))
        else:
            zone = draw.choice(["Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
            local = moment.astimezone(ZoneInfo(zone))
            if local.replace(fold=0).utcoffset() != local.replace(fold=1).utcoffset():
                continue  # the hour that autumn repeats
            texts.append(f"{local:%Y-%m-%d %H:%M:%S} {zone}")
        expected.append(moment.timestamp())
    assert seconds(con, texts, "iso") == expected


@pytest.mark.parametrize(
    "text", ["12 PM", "0b11", "0x10", "true", "1_000", "nan", "inf", "1e300", "1,5", "", "١٢", "-"]
)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_only_decimal_numbers_are_numbers(con: Backend, text: str, unit: str) -> None:
    assert seconds(con, [text], unit) == [None]


def test_numbers_keep_their_fractions(con: Backend) -> None:
    values = {"1500000000": 1.5e9, "1.5E9": 1.5e9, "1500000000.75": 1500000000.75, " 0012 ": 12, "12.7": 12.7, "+5": 5}
    assert seconds(con, list(values), "s") == pytest.approx(list(values.values()), abs=1e-6)
    assert seconds(con, ["1500000000123.5"], "ms") == pytest.approx([1500000000.1235], abs=1e-6)


FORMATS = [
    ("%Y-%m-%d %H:%M %Z", "2017-07-14 10:00 PST", utc(2017, 7, 14, 18)),
    ("%Y-%m-%d %H:%M %Z", "2017-07-14 10:00 Europe/Berlin", utc(2017, 7, 14, 8)),
    ("%Y-%m-%d %H:%M %Z", "2017-07-14 10:00 BST", None),
    ("%a %b %d %H:%M:%S %Z %Y", "Fri Jul 14 02:40:00 PDT 2017", utc(2017, 7, 14, 9, 40)),
    ("%Y-%m-%dT%H:%M:%S%z", "2017-07-14T10:00:00Z", utc(2017, 7, 14, 10)),
    ("%Y-%m-%dT%H:%M:%S%z", "2017-07-14T10:00:00-0700", utc(2017, 7, 14, 17)),
    ("%d/%m/%Y %I:%M %p", "14/07/2017 10:00 PM", utc(2017, 7, 14, 22)),
    ("%d/%m/%Y %H:%M", "14/07/2017 10:00 PM", None),
    ("%Y-%m-%d", "2017-07-14 EST", None),
    ("%Y-%m-%d %H:%M:%S.%f", "2017-07-14 00:00:00.250000", utc(2017, 7, 14) + 0.25),
]


@pytest.mark.parametrize(("unit", "text", "expected"), FORMATS)
def test_strptime_formats_heed_zones_and_refuse_other_words(
    con: Backend, unit: str, text: str, expected: float | None
) -> None:
    assert seconds(con, [text], unit) == [expected]


@pytest.mark.parametrize(
    ("kind", "unit", "message"),
    [
        ("BIGINT", "iso", "number: set `timestamp`"), ("FLOAT", "s", "24 bits"), ("BOOLEAN", "s", "no time"),
        ("TIME", "iso", "no time"), ("INTERVAL", "iso", "no time"), ("VARCHAR[]", "s", "no time"),
        ("VARCHAR", "minutes", "unknown timestamp unit"),
    ],
)  # fmt: skip
def test_types_that_are_no_times_are_refused(kind: str, unit: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        time_sql("x", kind, unit)


@pytest.mark.parametrize(
    ("value", "kind", "unit", "expected"),
    [
        ("20170714::INTEGER", "INTEGER", "%Y%m%d", utc(2017, 7, 14)),
        ("20170714::DOUBLE", "DOUBLE", "%Y%m%d", utc(2017, 7, 14)),
        ("1500000000.25::DOUBLE", "DOUBLE", "s", 1500000000.25),
        ("1500000000250.5::DECIMAL(20, 1)", "DECIMAL(20,1)", "ms", 1500000000.2505),
        ("'nan'::DOUBLE", "DOUBLE", "s", None),
        ("1e300::DOUBLE", "DOUBLE", "s", None),
        ("DATE '2017-07-14'", "DATE", "s", utc(2017, 7, 14)),
        ("DATE 'infinity'", "DATE", "s", None),
        ("TIMESTAMP '2017-07-14 00:00:00.5'", "TIMESTAMP", "s", utc(2017, 7, 14) + 0.5),
        ("TIMESTAMP 'infinity'", "TIMESTAMP", "s", None),
        ("TIMESTAMPTZ '2017-07-14 02:00:00+02'", "TIMESTAMP WITH TIME ZONE", "s", utc(2017, 7, 14)),
        ("'2017-07-14 00:00:00.5'::TIMESTAMP_NS", "TIMESTAMP_NS", "s", utc(2017, 7, 14) + 0.5),
        ("'2017-07-14 00:00:00+00'::TIMESTAMPTZ_NS", "TIMESTAMPTZ_NS", "s", utc(2017, 7, 14)),
        ("""'{"$date": "2017-07-14T00:00:00Z"}'::JSON""", "JSON", "iso", utc(2017, 7, 14)),
        ("""'{"$date": {"$numberLong": "1500000000250"}}'::JSON""", "JSON", "ms", 1500000000.25),
        ("""'{"time": 5}'::JSON""", "JSON", "ms", None),
        ("{'$date': 1500000000250}", 'STRUCT("$date" BIGINT)', "ms", 1500000000.25),
    ],
)
def test_typed_columns(con: Backend, value: str, kind: str, unit: str, expected: float | None) -> None:
    time = time_sql("x", kind, unit)
    ((ticks, part),) = con.raw_sql(f"SELECT {time.ticks}, {time.part or 0} FROM (SELECT {value} AS x)").fetchall()
    assert expected == (None if ticks is None else pytest.approx(ticks / time.per_second + part / 1e9, abs=1e-6))


def test_readable_times_keep_the_order_of_the_values():
    days = [f"{day:02}.02.2023" for day in range(1, 32)]  # February of 2023 has 28 days
    assert readable_times([*days, "", "?"], "%d.%m.%Y") == [True] * 28 + [False] * 5
    assert readable_times(["1700000000", "1.5", "x", "1_000"], "s") == [True, True, False, False]
