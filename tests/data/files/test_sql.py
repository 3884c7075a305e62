"""Timestamps in every unit, and quoting of column names."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, ReadLog, log_tuples


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
