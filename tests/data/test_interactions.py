"""Ingestion: bad rows are quarantined, dropped or refused, each with its reason; items and users are completed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.data.engines import connect, write_parquet
from recpipe.data.files.tables import RawTables
from recpipe.data.interactions import ingest

NOW = 1_700_000_000


SCHEMA = pa.schema(
    {
        "user_id": pa.string(),
        "item_id": pa.string(),
        "timestamp": pa.int64(),
        "order": pa.int64(),
        "problem": pa.string(),
    }
)


BAD: dict[str, dict[str, Any]] = {
    "empty user_id": {"user_id": ""},
    "null user_id": {"user_id": None},
    "blank item_id": {"item_id": " \t"},
    "null byte": {"item_id": "a\0b"},
    "line break": {"item_id": "a\nb"},
    "negative": {"timestamp": -1},
    "milliseconds": {"timestamp": NOW * 10**3},
    "microseconds": {"timestamp": NOW * 10**6},
    "nanoseconds": {"timestamp": NOW * 10**9},
    "reader": {"timestamp": None, "problem": "timestamp not a number: '12x'"},
}


REASONS = [
    "empty user_id",
    "empty user_id",
    "empty item_id",
    "null byte in item_id",
    "line break in item_id",
    "negative timestamp",
    "timestamp looks like milliseconds",
    "timestamp looks like microseconds",
    "timestamp looks like nanoseconds",
    "timestamp not a number: '12x'",
]


@pytest.fixture
def con(tmp_path: Path) -> Any:
    return connect({"memory_limit": "500MB", "threads": 1, "spill_folder": str(tmp_path / "spill")})


def good(number: int) -> dict[str, Any]:
    return {"user_id": f"u{number % 3}", "item_id": f"i{number}", "timestamp": NOW, "problem": None}


def raw(con: Any, rows: list[dict[str, Any]], **tables: pa.Table) -> RawTables:
    numbered = [row | {"order": order} for order, row in enumerate(rows)]
    log = con.create_table("log", pa.Table.from_pylist(numbered, schema=SCHEMA))
    return RawTables(log, **{name: con.create_table(name, table) for name, table in tables.items()})


def mixed() -> list[dict[str, Any]]:
    """Every kind of bad row once, among as many good ones and one more."""
    return [row for n, bad in enumerate(BAD.values()) for row in (good(n), good(n) | bad)] + [good(20)]


def test_every_kind_of_bad_row_is_quarantined_with_its_reason(con: Any) -> None:
    done = ingest(raw(con, mixed()), [])
    aside = sorted(done.quarantine.to_pyarrow().to_pylist(), key=lambda row: row["order"])
    assert [row["reason"] for row in aside] == REASONS
    assert [row["order"] for row in aside] == list(range(1, 20, 2))
    assert aside[6]["timestamp"] == str(NOW * 1000)  # as text, as it was
    assert "problem" not in aside[0]
    log = done.interactions.to_pyarrow()
    assert log["order"].to_pylist() == [*range(0, 20, 2), 20]
    assert log.column_names == ["user_id", "item_id", "timestamp", "order"]


@pytest.mark.parametrize("has_bad_rows", [True, False])
@pytest.mark.parametrize("is_sorted", [True, False])
def test_the_file_is_that_of_a_sort_by_order_and_a_sorted_log_is_written_without_one(
    con: Any, tmp_path: Path, is_sorted: bool, has_bad_rows: bool
) -> None:
    n = 300_000  # more than two row groups
    numbers = "range" if is_sorted else f"(range * 7919) % {n}"
    columns = "'u' || range % 1000 AS user_id, 'i' || range % 77 AS item_id, range AS timestamp"
    bad = f"CASE WHEN {has_bad_rows} AND range % 1000 = 3 THEN 'broken' END AS problem"
    con.raw_sql(f'CREATE TEMP TABLE log AS SELECT {columns}, {bad}, {numbers} AS "order" FROM range({n})')
    log = ingest(RawTables(con.table("log")), []).interactions
    assert ("ORDER BY" in con.compile(log)) != is_sorted
    write_parquet(log, tmp_path / "ours.parquet")
    rows = con.table("log").filter(con.table("log").problem.isnull()).drop("problem").order_by("order")
    write_parquet(rows, tmp_path / "sorted.parquet")
    ours, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("ours", "sorted"))
    assert ours.equals(expected) and len(ours) == n - (n // 1000 if has_bad_rows else 0)
    if not has_bad_rows:
        assert (tmp_path / "ours.parquet").read_bytes() == (tmp_path / "sorted.parquet").read_bytes()


def test_the_step_table_counts_bad_rows_by_reason(con: Any) -> None:
    before, after = ingest(raw(con, mixed()), []).steps.to_pylist()
    assert (before["name"], before["rows"], before["last_timestamp"]) == ("raw", 21, NOW * 10**9)
    assert (after["name"], after["rows"], after["last_timestamp"]) == ("bad_rows", 11, NOW)
    detail = json.loads(after["detail"])
    assert detail["policy"] == "quarantine"
    assert detail["reasons"]["empty user_id"] == 2
    assert detail["reasons"]["timestamp not a number"] == 1  # one kind, whatever the value was
    assert sum(detail["reasons"].values()) == 10


def test_dropped_rows_are_counted_but_not_stored(con: Any) -> None:
    done = ingest(raw(con, mixed()), [], bad_rows="drop")
    assert done.quarantine.count().to_pyarrow().as_py() == 0
    assert done.quarantine.columns == ("order", "user_id", "item_id", "timestamp", "reason")
    assert done.steps["rows"].to_pylist() == [21, 11]


def test_policy_fail_reports_counts_and_examples(con: Any) -> None:
    rows = [*map(good, range(9)), good(0) | {"timestamp": -5}, good(0) | {"user_id": ""}]
    message = r"2 of 11 rows are bad \(empty user_id: 1; negative timestamp: 1\).*row 9: .*timestamp='-5'"
    with pytest.raises(ValueError, match=message):
        ingest(raw(con, rows), [], bad_rows="fail")


@pytest.mark.parametrize("policy", ["quarantine", "drop", "fail"])
def test_a_log_in_milliseconds_is_refused_under_every_policy(con: Any, policy: str) -> None:
    rows = [good(n) | {"timestamp": NOW * 1000} for n in range(4)] + [good(5)]
    with pytest.raises(ValueError, match=r"4 of 5 .*looks like milliseconds: 4.*options"):
        ingest(raw(con, rows), [], bad_rows=policy)


def test_rows_of_guests_may_be_most_of_the_log_but_not_all(con: Any) -> None:
    guests = [good(n) | {"user_id": None} for n in range(8)]
    assert ingest(raw(con, [*guests, good(8), good(9)]), []).steps["rows"].to_pylist() == [10, 2]
    con.drop_table("log")
    with pytest.raises(ValueError, match=r"8 of 8 rows are bad \(empty user_id: 8\)"):
        ingest(raw(con, guests), [])


def test_reasons_are_counted_without_their_values(con: Any) -> None:
    reason = "timestamp not in the format %H:%M"
    problems = [f"{reason}: 'a: b'", f"{reason}: 'c'", "not goods: POST"]
    rows = [good(n) | {"problem": problem} for n, problem in enumerate(problems)] + [good(n) for n in range(4)]
    detail = json.loads(ingest(raw(con, rows), []).steps["detail"][1].as_py())
    assert detail["reasons"] == {reason: 2, "not goods": 1}


def test_empty_logs_and_unknown_policies_are_refused(con: Any) -> None:
    with pytest.raises(ValueError, match="no rows"):
        ingest(raw(con, []), [])
    with pytest.raises(ValueError, match="bad_rows.*'ignore'.*quarantine, drop, fail"):
        ingest(RawTables(con.table("log")), [], bad_rows="ignore")


def test_times_and_the_problem_column_are_optional(con: Any) -> None:
    table = pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": pa.nulls(1, pa.int64()), "order": [0]})
    done = ingest(RawTables(con.create_table("bare", table)), [{"step": "last", "k": 5}])
    assert done.interactions.to_pyarrow().num_rows == 1
    assert done.steps["last_timestamp"].to_pylist() == [None] * 3


def test_tables_have_one_row_per_item_and_user_of_the_log(con: Any) -> None:
    items = pa.table({"item_id": ["i1", "i9", "i0"], "title": ["One", "Nine", None], "year": [1999, 2000, 2001]})
    done = ingest(raw(con, [good(0), good(1), good(2)], items=items), [])
    assert done.items.to_pyarrow().to_pylist() == [
        {"item_id": "i0", "title": None, "year": 2001},
        {"item_id": "i1", "title": "One", "year": 1999},
        {"item_id": "i2", "title": "i2", "year": None},
    ]
    assert done.users.to_pyarrow().to_pylist() == [{"user_id": u} for u in ("u0", "u1", "u2")]


def test_users_of_sessions_may_have_a_column_called_owner(con: Any) -> None:
    rows = [good(0) | {"user_id": "ann#1", "owner": "ann", "order": 0}]
    log = con.create_table("log", pa.Table.from_pylist(rows, schema=SCHEMA.append(pa.field("owner", pa.string()))))
    users = con.create_table("users", pa.table({"user_id": ["ann", "bob"], "owner": ["x", "y"], "age": [20, 30]}))
    done = ingest(RawTables(log, users=users), [])
    assert done.users.to_pyarrow().to_pylist() == [{"user_id": "ann#1", "owner": "x", "age": 20}]
    assert [(join["ids"], join["matched"]) for join in done.joins] == [(1, 1)]


def test_items_without_a_row_or_without_text_are_counted(con: Any) -> None:
    items = pa.table({"item_id": ["i1", "i9", "i0"], "text": ["One", None, " "]})
    done = ingest(raw(con, [good(0), good(1), good(2)], items=items), [])
    assert done.joins == [{"table": "items", "file": "the table of items", "ids": 3, "matched": 2, "without_text": 1}]


def test_ids_that_stand_in_two_forms_are_counted(con: Any) -> None:
    ids = ["1", "1.0", "2", "2.0", "03", "3", "Ab", "ab", "c d", "cd", "7.0", "0", "E"]
    done = ingest(raw(con, [good(0) | {"item_id": item} for item in ids]), [])
    counts = {
        entry["form"]: (entry["table"], entry["ids"], entry["pairs"], entry["example"]) for entry in done.duplicate_ids
    }
    assert counts == {
        "in lower case": ("items", 13, 1, "Ab"),
        "without leading zeros": ("items", 13, 1, "03"),
        "without `.0` at their end": ("items", 13, 2, "1.0"),
        "without blanks": ("items", 13, 1, "c d"),
    }


def test_items_without_a_table_have_their_id_as_title(con: Any) -> None:
    done = ingest(raw(con, [good(0), good(0), good(3)]), [])
    assert done.items.to_pyarrow().to_pylist() == [{"item_id": i, "title": i} for i in ("i0", "i3")]
