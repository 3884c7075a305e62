"""Repeated ids of items and users; quoting of names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, log_tuples, rows


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


def test_column_names_are_quoted(tmp_path: Path, reading: Reading, con: Backend) -> None:
    con.raw_sql("CREATE TABLE other AS SELECT 1")
    evil = 'x" FROM other; DROP TABLE other; --'
    (tmp_path / "log.jsonl").write_text(json.dumps({evil: "u", "it'em": "i", "rowid": 7}) + "\n")
    columns = {"user_id": evil, "item_id": "it'em", "rating": "rowid"}
    assert log_tuples(reading("files", {"columns": columns}, interactions=tmp_path / "log.jsonl")) == [
        ("u", "i", None, 0)
    ]
    assert con.raw_sql("SELECT count(*) FROM other").fetchall() == [(1,)]


def test_a_column_called_id_may_stand_beside_the_id_of_an_item(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,901,1\n")
    (tmp_path / "items.csv").write_text("row,id,name\n901,x,Thing\n901,y,Other\n")
    options = {"columns": MAPPING, "items": {"columns": {"item_id": "row", "title": "name"}}}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / "items.csv")
    assert [(row["item_id"], row["title"], row["id"]) for row in rows(tables.items)] == [("901", "Thing", "x")]
