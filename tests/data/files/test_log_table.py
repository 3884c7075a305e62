"""Problems of bad rows, values that must be numbers, order within a second, unknown times, timestamps in every unit."""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from pyarrow.csv import write_csv
from tests.data.conftest import MAPPING, Reading, ReadLog

from recpipe.data.interactions import ingest


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("u,i,12x", "timestamp not a number: '12x'"),
        ("u,i,", "timestamp is empty"),
        ("u,i,-5", "timestamp before 1970: '-5'"),
        ("u,i,1700000000000", "timestamp after 2100, in another unit than s: '1700000000000'"),
        ("u,i,nan", "timestamp not a number: 'nan'"),
        ("u,i", "missing columns: 'u,i'"),
        ("u,i,5,6", "too many columns: 'u,i,5,6'"),
        ("o'brien,\"it's; DROP TABLE x\",oops'", "timestamp not a number: 'oops''"),
    ],
)
def test_a_bad_row_has_a_reason_and_affects_no_other(
    tmp_path: Path, read_log: ReadLog, line: str, problem: str
) -> None:
    (tmp_path / "log.csv").write_text(f"who,what,when\nu,i,1\n{line}\nu,j,2\n")
    log = read_log({"columns": MAPPING}, tmp_path / "log.csv")
    assert [row["problem"] for row in log if row["problem"]] == [problem]
    assert [(row["item_id"], row["timestamp"]) for row in log if not row["problem"]] == [("i", 1), ("j", 2)]


def test_rows_without_an_id_end_in_quarantine(tmp_path: Path, reading: Reading) -> None:
    good = "".join(f"u,i{n},{n}\n" for n in range(9))
    (tmp_path / "log.csv").write_text(f"who,what,when\n{good},i,5\nu, ,5\nu,i\0j,5\nu,i\n")
    result = ingest(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv"), [])
    assert result.interactions.count().execute() == 9
    assert sorted(reason.split(":")[0] for reason in result.quarantine.reason.execute()) == [
        "empty item_id", "empty user_id", "missing columns", "null byte",
    ]  # fmt: skip


def test_ratings_and_weights_must_be_numbers(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text("who,what,stars,n\nu,i,4.5,2\nu,i,good,1\nu,i,,inf\n")
    columns = {"user_id": "who", "item_id": "what", "rating": "stars", "weight": "n"}
    log = read_log({"columns": columns}, tmp_path / "log.csv")
    assert [row["problem"] for row in log] == [None, "rating not a number: 'good'", "weight not a number: 'inf'"]
    assert (log[0]["rating"], log[0]["weight"], log[0]["timestamp"]) == (4.5, 2.0, None)


def test_negative_infinite_and_huge_numbers_are_bad_rows(tmp_path: Path, read_log: ReadLog) -> None:
    weights = [1.0, -1.0, float("nan"), float("inf"), 1e300, None, 0.0]
    table = pa.table({"who": ["u"] * 7, "what": ["i"] * 7, "n": weights, "stars": [1.0] + [-1.0] * 6})
    pq.write_table(table, tmp_path / "log.parquet")
    columns = {"user_id": "who", "item_id": "what", "weight": "n", "rating": "stars"}
    problems = [row["problem"] for row in read_log({"columns": columns}, tmp_path / "log.parquet")]
    assert [problem and problem.split(":")[0] for problem in problems] == [
        None, "weight is negative", "weight not a number", "weight not a number", "weight above 1e+15", None, None,
    ]  # fmt: skip


def test_a_number_with_underscores_or_a_date_is_no_weight(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text("who,what,n\nu,i,1_000\n")
    options = {"columns": {"user_id": "who", "item_id": "what", "weight": "n"}}
    assert [row["problem"] for row in read_log(options, tmp_path / "log.csv")] == ["weight not a number: '1_000'"]
    pq.write_table(pa.table({"who": ["u"], "what": ["i"], "n": [date(2020, 1, 1)]}), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match="column 'n' is DATE, no number"):
        read_log(options, tmp_path / "log.parquet")


SHUFFLED = ["d", "b", "c", "a"]  # in the file; by time they are in alphabetical order
SUBSECONDS = {
    "ms": ["1500001000300", "1500001000100", "1500001000200", "1500001000000"],
    "us": ["1500001000000003", "1500001000000001", "1500001000000002", "1500001000000000"],
    "ns": ["1500001000000000003", "1500001000000000001", "1500001000000000002", "1500001000000000000"],
    "s": ["1500001000.3", "1500001000.1", "1500001000.2", "1500001000"],
    "iso": [f"2017-07-14T02:56:40.{digits}Z" for digits in ("000000003", "000000001", "000000002", "0")],
    "%Y-%m-%d %H:%M:%S.%g": [f"2017-07-14 02:56:40.{digits}" for digits in ("300", "100", "200", "000")],
}


@pytest.mark.parametrize("unit", SUBSECONDS)
def test_events_of_one_second_are_in_the_order_of_their_fractions(tmp_path: Path, read_log: ReadLog, unit: str) -> None:
    lines = [f"{u},{item},{time}\n" for item, time in zip(SHUFFLED, SUBSECONDS[unit], strict=True) for u in "uv"]
    (tmp_path / "log.csv").write_text("who,what,when\n" + ",bad,1\n" + "".join(lines))
    log = read_log({"columns": MAPPING, "timestamp": unit}, tmp_path / "log.csv")
    by_time = sorted(log[1:], key=lambda row: (row["timestamp"], row["order"]))
    assert [row["item_id"] for row in by_time if row["user_id"] == "u"] == ["a", "b", "c", "d"]
    assert [row["item_id"] for row in by_time if row["user_id"] == "v"] == ["a", "b", "c", "d"]
    assert {row["timestamp"] for row in log[1:]} == {1500001000}
    assert (log[0]["item_id"], sorted(row["order"] for row in log)) == ("bad", list(range(9)))


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.timestamp("ns"), pa.float64()])
def test_fractions_of_typed_columns_count(tmp_path: Path, read_log: ReadLog, kind: pa.DataType) -> None:
    seconds = [1500001000.75, 1500001000.25, 1500001000.5, 1500001000.0]
    times = pa.array(seconds)
    if kind != pa.float64():
        times = pa.array([int(second * 1000) for second in seconds]).cast(pa.timestamp("ms")).cast(kind)
    pq.write_table(pa.table({"who": ["u"] * 4, "what": SHUFFLED, "when": times}), tmp_path / "log.parquet")
    log = read_log({"columns": MAPPING}, tmp_path / "log.parquet")
    assert [row["item_id"] for row in log] == ["a", "b", "c", "d"]
    assert [row["order"] for row in log] == [0, 1, 2, 3]


def test_the_time_counts_before_a_column_of_the_order(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text(
        "who,what,when,pos\nu,b,1500001000200,10\nu,a,1500001000100,30\nu,c,1500001000200,20\n"
    )
    log = read_log({"columns": MAPPING | {"order": "pos"}, "timestamp": "ms"}, tmp_path / "log.csv")
    assert [(row["item_id"], row["order"]) for row in log] == [("a", 10), ("b", 20), ("c", 30)]


def test_random_orders_are_those_of_a_sort_by_time(tmp_path: Path, read_log: ReadLog) -> None:
    draw = random.Random(5)
    times = [1_500_001_000_000 + draw.randrange(5_000) for _ in range(2_000)]
    lines = [f"u{draw.randrange(3)},{n},{time}\n" for n, time in enumerate(times)]
    (tmp_path / "log.csv").write_text("who,what,when\n" + "".join(lines))
    log = read_log({"columns": MAPPING, "timestamp": "ms"}, tmp_path / "log.csv")
    by_order = sorted(log, key=lambda row: (row["timestamp"], row["order"]))
    assert [int(row["item_id"]) for row in by_order] == sorted(range(2_000), key=lambda n: (times[n], n))


def test_time_zero_is_reported_and_can_be_quarantined(
    tmp_path: Path, read_log: ReadLog, caplog: pytest.LogCaptureFixture
) -> None:
    lines = "".join(f"u{n % 7},i{n},{0 if n % 10 == 0 else 1500000000 + n}\n" for n in range(50))
    (tmp_path / "log.csv").write_text("who,what,when\n" + lines)
    assert all(row["problem"] is None for row in read_log({"columns": MAPPING}, tmp_path / "log.csv"))
    assert "5 of 50 rows have the time 1970-01-01 00:00:00" in caplog.text
    assert "null_times" in caplog.text
    caplog.clear()
    log = read_log({"columns": MAPPING, "null_times": [0]}, tmp_path / "log.csv")
    assert [row["problem"] for row in log if row["problem"]] == ["timestamp stands for no time: '0'"] * 5
    assert caplog.text == ""
    with pytest.raises(ValueError, match="null_times.*'never' is no time"):
        read_log({"columns": MAPPING, "null_times": ["never"]}, tmp_path / "log.csv")


def test_one_time_far_more_frequent_than_others_is_reported(
    tmp_path: Path, read_log: ReadLog, caplog: pytest.LogCaptureFixture
) -> None:
    options, path = {"columns": MAPPING, "timestamp": "iso"}, tmp_path / "log.csv"
    for minutes, warning in ((10, ""), (540, "60 of 600 rows have the time 2000-01-01 00:00:00")):
        usual = [f"2020-01-01 {n % minutes // 60:02}:{n % minutes % 60:02}" for n in range(540)]
        times = [*usual, *["2000-01-01"] * 60]
        path.write_text("who,what,when\n" + "".join(f"u,i{n},{time}\n" for n, time in enumerate(times)))
        caplog.clear()
        read_log(options, path)
        assert (warning in caplog.text) and (warning or not caplog.text)
    caplog.clear()
    log = read_log(options | {"null_times": [date(2000, 1, 1)]}, path)
    assert (sum(row["problem"] is not None for row in log), caplog.text) == (60, "")


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63) + 1, 2**63 - 2, -(2**63), 4102444800 * 10**6])
def test_a_timestamp_out_of_range_is_one_bad_row(tmp_path: Path, read_log: ReadLog, value: int) -> None:
    times = pa.array([value, 1500000000 * 10**6], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"who": ["u", "u"], "what": ["i", "j"], "when": times}), tmp_path / "log.parquet")
    bad, good = read_log({"columns": MAPPING}, tmp_path / "log.parquet")
    assert bad["problem"].startswith("timestamp")
    assert (good["problem"], good["timestamp"]) == (None, 1500000000)


@pytest.mark.parametrize(
    ("value", "order", "problem"),
    [
        ("90", 90, None),
        ("90.0", 90, None),
        ("9007199254740993", 9007199254740993, None),
        ("", None, "order is empty"),
        ("90.4", None, "order is not a whole number: '90.4'"),
        ("first", None, "order is not a whole number: 'first'"),
        ("1e30", None, "order is not a whole number: '1e30'"),
    ],
)
def test_an_order_must_be_a_whole_number(
    tmp_path: Path, read_log: ReadLog, value: str, order: int | None, problem: str | None
) -> None:
    (tmp_path / "log.csv").write_text(f"who,what,pos\nu,i,{value}\nu,j,5\n")
    columns = {"user_id": "who", "item_id": "what", "order": "pos"}
    log = read_log({"columns": columns}, tmp_path / "log.csv")
    by_item = {row["item_id"]: row for row in log}
    assert (by_item["j"]["order"], by_item["j"]["problem"], by_item["i"]["problem"]) == (5, None, problem)
    assert problem or by_item["i"]["order"] == order


@pytest.mark.parametrize(
    ("values", "problem"), [([1.0, None], "order is empty"), ([1.0, 90.4], "order is not a whole number: '90.4'")]
)
def test_an_order_of_floats(tmp_path: Path, read_log: ReadLog, values: list[float], problem: str) -> None:
    pq.write_table(pa.table({"who": ["u", "u"], "what": ["i", "j"], "pos": values}), tmp_path / "log.parquet")
    columns = {"user_id": "who", "item_id": "what", "order": "pos"}
    log = read_log({"columns": columns}, tmp_path / "log.parquet")
    assert {row["item_id"]: row["problem"] for row in log} == {"i": None, "j": problem}
    assert {row["order"] for row in log if row["item_id"] == "i"} == {1}


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("s", "1700000000", 1700000000),
        ("s", "1700000000.9", 1700000000),
        ("ms", "1700000000999", 1700000000),
        ("us", "1700000000999999", 1700000000),
        ("ns", "1700000000999999999", 1700000000),
        ("iso", "2023-11-14T22:13:20Z", 1700000000),
        ("iso", "2023-11-15 00:13:20.75+02:00", 1700000000),
        ("iso", "2023-11-14 17:13:20-05", 1700000000),
        ("iso", "2023-11-14 22:13:20", 1700000000),
        ("iso", "2023-11-14", 1699920000),
        ("%d.%m.%Y %H:%M", "14.11.2023 22:13", 1699999980),
    ],
)
def test_timestamps_in_every_unit(
    tmp_path: Path, read_log: ReadLog, con: Backend, unit: str, text: str, expected: int
) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    (tmp_path / "log.csv").write_text(f"who,what,when\nu,i,{text}\n")
    row = read_log({"columns": MAPPING, "timestamp": unit}, tmp_path / "log.csv")[0]
    assert (row["timestamp"], row["problem"]) == (expected, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2017-07-14 02:40:00 CST", "timestamp in an unknown or ambiguous zone"),
        ("2017-07-14 02:40:00 AST", "timestamp in an unknown or ambiguous zone"),
        ("2017-07-14 02:40:00.5 CST", "timestamp in an unknown or ambiguous zone"),
        ("2017-13-14 02:40:00Z", "timestamp not in the format iso"),
        ("2017-02-29 02:40:00 CET", "timestamp not in the format iso"),
        ("2017-07-14T25:40 CST", "timestamp not in the format iso"),
        ("2017-07-14 13:40 PM", "timestamp not in the format iso"),
        ("2017-07-14 02:40:00 ?", "timestamp not in the format iso"),
        ("  ", "timestamp is empty"),
    ],
)
def test_a_time_in_an_ambiguous_zone_says_so(tmp_path: Path, read_log: ReadLog, text: str, reason: str) -> None:
    (tmp_path / "log.csv").write_text(f"who,what,when\nu,i,{text}\nu,j,2017-07-14\n")
    log = read_log({"columns": MAPPING, "timestamp": "iso"}, tmp_path / "log.csv")
    assert [(row["problem"] or "").split(":")[0] for row in log] == [reason, ""]


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_datetime_columns(tmp_path: Path, read_log: ReadLog, con: Backend, zone: str | None) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    when = pa.array([datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)], pa.timestamp("us", "UTC")).cast(
        pa.timestamp("us", zone)
    )
    pq.write_table(pa.table({"who": [1.0], "what": [2], "when": when}), tmp_path / "log.parquet")
    row = read_log({"columns": MAPPING}, tmp_path / "log.parquet")[0]
    assert (row["user_id"], row["item_id"], row["timestamp"]) == ("1", "2", 1700000000)


def test_a_number_that_is_no_day_is_a_bad_row(tmp_path: Path, read_log: ReadLog) -> None:
    """A day as a float has text only where it is whole: a reason without text must not make the row good."""
    times = [20240501.0, 20240501.5, float("nan"), float("inf"), None]
    pq.write_table(pa.table({"who": ["u"] * 5, "what": ["i"] * 5, "when": times}), tmp_path / "log.parquet")
    log = read_log({"columns": MAPPING, "timestamp": "%Y%m%d"}, tmp_path / "log.parquet")
    assert [(row["timestamp"], row["problem"]) for row in log] == [
        (1_714_521_600, None), (None, "timestamp not in the format %Y%m%d: '20240501.5'"),
        (None, "timestamp not in the format %Y%m%d: 'nan'"), (None, "timestamp not in the format %Y%m%d: 'inf'"),
        (None, "timestamp is empty"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_order_of_the_rows_is_that_of_the_files_on_several_threads(
    tmp_path: Path, reading: Reading, con: Backend, suffix: str
) -> None:
    con.raw_sql("SET threads = 4")
    files = [tmp_path / f"part-{number}.{suffix}" for number in range(4)]
    for number, file in enumerate(files):
        table = pa.table({"who": [f"u{number}"] * 2000, "what": [str(row) for row in range(2000)]})
        pq.write_table(table, file) if suffix == "parquet" else write_csv(table, file)
    expected = [(f"u{number}", str(row)) for number in range(4) for row in range(2000)]
    words = [f"no id {number}" for number in range(20)]  # so many that DuckDB prefers a join
    options = {"columns": {"user_id": "who", "item_id": "what"}, "null_words": words, "null_times": []}
    for _ in range(3):
        log = reading("files", options, interactions=files).interactions.order_by("order").to_pyarrow()
        assert list(zip(log["user_id"].to_pylist(), log["item_id"].to_pylist(), strict=True)) == expected
    assert con.raw_sql("SELECT current_setting('disabled_optimizers')").fetchall() == [("",)]
