"""Ids: one text per value whatever its type, exact, without blanks; what cannot be an id is refused or set aside."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.data.conftest import MAPPING, Reading, ReadLog, rows

from recpipe.data.interactions import ingest


def write(path: Path, values: pa.Array | list[Any], **columns: Any) -> Path:
    """Write a log with ``values`` as users."""
    table = {"who": values, "what": [f"i{n}" for n in range(len(values))], "when": list(range(1, len(values) + 1))}
    pq.write_table(pa.table(table | columns), path)
    return path


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        (pa.array([1.0, 2.5, -0.0, 123456789012345.0]), ["1", "2.5", "0", "123456789012345"]),
        (pa.array([2**63 - 1, -(2**63)], pa.int64()), [str(2**63 - 1), str(-(2**63))]),
        (pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
        (pa.array([Decimal("1.0000000000"), Decimal("1.50")], pa.decimal128(38, 10)), ["1", "1.5"]),
        (pa.array([Decimal(10**37)], pa.decimal128(38, 0)), [str(10**37)]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([18000], pa.int32()).cast(pa.date32()), ["2019-04-14"]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.array(["é".encode(), b"x "], pa.binary()), ["é", "x"]),
        (pa.array([" a", "b\t", "\u00a0c\u3000", "d e", "日本 "]), ["a", "b", "c", "d e", "日本"]),
        (pa.array(["1.0", "007", "1e5"]), ["1.0", "007", "1e5"]),
    ],
)  # fmt: skip
def test_an_id_has_one_text(tmp_path: Path, read_log: ReadLog, values: pa.Array, texts: list[str]) -> None:
    log = read_log({"columns": MAPPING}, write(tmp_path / "log.parquet", values))
    assert [(row["user_id"], row["problem"]) for row in log] == [(text, None) for text in texts]


def test_uuids_have_their_usual_text(tmp_path: Path, read_log: ReadLog) -> None:
    uuid = UUID("12345678-1234-5678-1234-567812345678")
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([uuid.bytes], pa.binary(16)))
    log = read_log({"columns": MAPPING}, write(tmp_path / "log.parquet", values))
    assert [row["user_id"] for row in log] == [str(uuid)]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (pa.array([float("nan"), 1.0]), "user_id is NaN or infinite"),
        (pa.array([float("nan"), 1.0, 2.0]), "user_id is NaN or infinite"),
        (pa.array([float("-inf"), 1.0]), "user_id is NaN or infinite"),
        (pa.array([1e300, 1.0]), "user_id is a float above 2^53, whose neighbours are one with it: '1e+300'"),
        (pa.array([2.0**53, 1.0]), "user_id is a float above 2^53"),
        (pa.array([2.0**24, 1.0], pa.float32()), "user_id is a float above 2^24"),
        (pa.array([b"\xc3", b"x"], pa.binary()), r"user_id is binary and no UTF-8: '\xC3'"),
    ],
)
def test_values_that_are_no_ids_are_set_aside(
    tmp_path: Path, read_log: ReadLog, values: pa.Array, problem: str
) -> None:
    first, *others = read_log({"columns": MAPPING}, write(tmp_path / "log.parquet", values))
    assert first["problem"].startswith(problem)
    assert {row["problem"] for row in others} == {None}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([["a", "b"]]), r"column 'who' is VARCHAR\[\], no id, such as \['\[a, b\]'\].*sequence_per_row"),
        (pa.array([{"aid": 7}]), r"column 'who' is of lists or records.*\{\"aid\":7\}"),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())), "column 'who' is of lists or records, no id"),
        (pa.array([0], pa.timestamp("us")), "column 'who' is TIMESTAMP, no id"),
    ],
)
def test_types_that_are_no_ids_are_refused(tmp_path: Path, read_log: ReadLog, values: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_log({"columns": MAPPING}, write(tmp_path / "log.parquet", values))


def test_lists_of_records_are_no_items(tmp_path: Path, reading: Reading) -> None:
    items = pa.table({"user": ["a"], "items": [[{"aid": 1, "ts": 5}]]})
    pq.write_table(items, tmp_path / "log.parquet")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    with pytest.raises(ValueError, match=r"records with the fields aid, ts: map one.*item_id: items\.aid"):
        reading("files", options, interactions=tmp_path / "log.parquet")


def test_words_for_null_are_quarantined_and_counted(tmp_path: Path, reading: Reading) -> None:
    words = ["NULL", "null", "NaN", "nan", "None", "\\N", "NA", "N/A", "<NA>", " NULL "]
    lines = [f"{word},i,5\n" for word in words] + ["u,None,5\n", *(f"u{n},i{n},5\n" for n in range(20))]
    (tmp_path / "log.csv").write_text("who,what,when\n" + "".join(lines))
    done = ingest(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv"), [])
    assert sorted(done.interactions.user_id.execute()) == sorted(f"u{n}" for n in range(20))
    reasons = json.loads(done.steps["detail"][1].as_py())["reasons"]
    assert reasons == {"word for null as user_id": 10, "word for null as item_id": 1}


def test_words_for_null_can_be_ids(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nNA,i,5\nnobody,i,5\n")
    log = read_log({"columns": MAPPING, "null_words": ["nobody"]}, tmp_path / "log.csv")
    assert [row["problem"] for row in log] == [None, "word for null as user_id: 'nobody'"]


def test_a_column_is_not_user_and_item_at_once(tmp_path: Path, read_log: ReadLog) -> None:
    columns = {"user_id": "who", "item_id": "who"}
    with pytest.raises(ValueError, match="maps user_id and item_id to the same column 'who'"):
        read_log({"columns": columns}, write(tmp_path / "log.parquet", ["a"]))


@pytest.mark.parametrize(
    "name",
    ["id", "user_id", "timestamp", "order", "rowid", "position", "problem", "source", "ticks", "__user", "p", "x"],
)
def test_names_of_columns_do_not_clash(tmp_path: Path, reading: Reading, name: str) -> None:
    """A column of any name may be the item, beside columns that would be read wrongly in its place."""
    table = pa.table({name: ["i1", "i2"], "who": ["u", "u"], "item_id": ["x", "y"], "when": [2000.5, 2000.25]})
    pq.write_table(table, tmp_path / "log.parquet")
    columns = {"user_id": "who", "item_id": name, "timestamp": "when"}
    log = rows(reading("files", {"columns": columns}, interactions=tmp_path / "log.parquet").interactions)
    assert [(row["item_id"], row["timestamp"], row["problem"]) for row in log] == [
        ("i2", 2000, None),
        ("i1", 2000, None),
    ]
