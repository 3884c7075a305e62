"""Times in every form a log has them, as SQL: seconds since 1970 UTC, and the reasons why a value is none."""

from __future__ import annotations

from recpipe.data.sources.sql import literal, shown

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
