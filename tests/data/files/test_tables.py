"""Problems of bad rows, values that must be numbers, repeated ids, timestamps in every unit, quoting of names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, ReadLog, log_tuples, rows

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


def test_repeated_ids_are_counted_in_a_warning(
    tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,s1,1\nu,s3,2\n")
    (tmp_path / "users.csv").write_text("user_id,name\nu,a\nv,b\nv,c\n")
    items, options = tmp_path / "items.csv", {"columns": MAPPING, "items": {}}
    items.write_text("item_id,title\ns3,first\ns1,one\ns3,second\ns3,third\ns3,\n,none\n,none\n")
    users = tmp_path / "users.csv"
    options["users"] = {}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=items, users=users)
    assert {row["item_id"]: row["title"] for row in rows(tables.items)} == {"s1": "one", "s3": "first"}
    assert [record.message for record in caplog.records] == [
        f"{items}: 3 rows of items repeat an item_id, the first of each counts: s3",
        f"{users}: 1 rows of users repeat a user_id, the first of each counts: v",
    ]
    items.write_text("item_id,title\n" + "".join(f"s{n},x\n" for n in (9, 8, 7, 6, 5)) * 2)
    caplog.clear()
    reading("files", options, interactions=tmp_path / "log.csv", items=items)
    assert "5 rows of items repeat an item_id, the first of each counts: s9, s8, s7, …" in caplog.text


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


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_datetime_columns(tmp_path: Path, read_log: ReadLog, con: Backend, zone: str | None) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    when = pa.array([datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)], pa.timestamp("us", "UTC")).cast(
        pa.timestamp("us", zone)
    )
    pq.write_table(pa.table({"who": [1.0], "what": [2], "when": when}), tmp_path / "log.parquet")
    row = read_log({"columns": MAPPING}, tmp_path / "log.parquet")[0]
    assert (row["user_id"], row["item_id"], row["timestamp"]) == ("1", "2", 1700000000)


def test_column_names_are_quoted(tmp_path: Path, reading: Reading, con: Backend) -> None:
    con.raw_sql("CREATE TABLE other AS SELECT 1")
    evil = 'x" FROM other; DROP TABLE other; --'
    (tmp_path / "log.jsonl").write_text(json.dumps({evil: "u", "it'em": "i", "rowid": 7}) + "\n")
    columns = {"user_id": evil, "item_id": "it'em", "rating": "rowid"}
    assert log_tuples(reading("files", {"columns": columns}, interactions=tmp_path / "log.jsonl")) == [
        ("u", "i", None, 0)
    ]
    assert con.raw_sql("SELECT count(*) FROM other").fetchall() == [(1,)]
