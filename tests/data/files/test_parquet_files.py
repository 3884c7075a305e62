"""Parquet files that differ in columns and types, columns that nobody asked for, folders and file names."""

from __future__ import annotations

import datetime
import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import Reading, ReadLog, rows

from recpipe.data.files.parquet_files import parquet_source

OPTIONS = {"columns": {"user_id": "user", "item_id": "item"}}
BIG = 2**53 + 1


def write(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def write_parts(folder: Path, parts: list[pa.Array]) -> list[Path]:
    return [
        write(folder / f"part-{number}.parquet", user=pa.array(["u"] * len(part)), item=part)
        for number, part in enumerate(parts)
    ]


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([pa.array([BIG, BIG + 1]), pa.array([5.0, None, 7.0])], [str(BIG), str(BIG + 1), "5", None, "7"]),
        ([pa.array([1, 2]), pa.array([2.0, 2.5])], ["1", "2", "2", "2.5"]),
        ([pa.array([1], pa.int32()), pa.array([2**64 - 1], pa.uint64())], ["1", str(2**64 - 1)]),
        ([pa.array([1, BIG]), pa.array([2.0, float("nan")]), pa.array([float("inf"), 3.0])],
         ["1", str(BIG), "2", None, None, "3"]),
        ([pa.array([1]), pa.array(["1", "007"]), pa.array([1.0])], ["1", "1", "007", "1"]),
        ([pa.array([1]), pa.nulls(1), pa.array([BIG])], ["1", None, str(BIG)]),
        ([pa.array([1]), pa.array([Decimal("1.00"), Decimal("2.50")])], ["1", "1", "2.5"]),
        ([pa.array(["a"]).dictionary_encode(), pa.array(["a"], pa.large_string()), pa.array([b"\xc3\xa9"])],
         ["a", "a", "é"]),
        ([pa.array([True]), pa.array([1])], ["true", "1"]),
    ],
)  # fmt: skip
def test_ids_stay_exact_where_parts_differ_in_type(
    tmp_path: Path, read_log: ReadLog, parts: list[pa.Array], expected: list[str | None]
) -> None:
    assert [row["item_id"] for row in read_log(OPTIONS, write_parts(tmp_path, parts))] == expected


@pytest.mark.parametrize("values", [pa.array([float(BIG)]), pa.array([2.0**24], pa.float32())])
def test_ids_that_are_no_longer_exact_are_refused(tmp_path: Path, read_log: ReadLog, values: pa.Array) -> None:
    paths = write_parts(tmp_path, [pa.array([1]), values])
    with pytest.raises(ValueError, match=r"part-1\.parquet: column 'item' .* not exact"):
        read_log(OPTIONS, paths)


def test_sequences_of_other_types(tmp_path: Path, read_log: ReadLog) -> None:
    paths = write_parts(
        tmp_path, [pa.array([[BIG, 2]]), pa.array([[1.0]]), pa.array([["a"], None]), pa.array([[None]])]
    )
    log = read_log({**OPTIONS, "sequence_per_row": True}, paths)
    assert [row["item_id"] for row in log] == [str(BIG), "2", "1", "a", None, None]


def test_times_of_other_types_are_utc(tmp_path: Path, read_log: ReadLog, con: Backend) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    noon = datetime.datetime(2024, 5, 1, 12)
    parts = [
        pa.array([noon], kind)
        for kind in (pa.date32(), pa.timestamp("ms"), pa.timestamp("us", "Europe/Rome"), pa.timestamp("s"))
    ]
    paths = [
        write(tmp_path / f"{number}.parquet", user=["u"], item=["i"], time=part) for number, part in enumerate(parts)
    ]
    log = read_log({"columns": {**OPTIONS["columns"], "timestamp": "time"}}, paths)
    seconds = int(noon.replace(tzinfo=datetime.UTC).timestamp())
    assert [row["timestamp"] for row in log] == [seconds - 12 * 3600, seconds, seconds, seconds]


def test_columns_are_matched_by_name(tmp_path: Path, con: Backend) -> None:
    paths = [
        str(write(tmp_path / "a.parquet", User=["u"], item=["i"])),
        str(write(tmp_path / "b.parquet", item=["j"], USER=["v"], price=[1])),
    ]
    source = parquet_source(con, paths, requested=["USER"])
    assert source.types == {"USER": "VARCHAR", "item": "VARCHAR", "price": "BIGINT"}
    assert con.raw_sql(f'SELECT "USER", item, price FROM {source.sql}').fetchall() == [("u", "i", None), ("v", "j", 1)]


def test_a_column_twice_is_named_where_it_is_in_use(
    tmp_path: Path, read_log: ReadLog, caplog: pytest.LogCaptureFixture
) -> None:
    columns = [pa.array(["u"]), pa.array(["i"]), pa.array(["j"]), pa.array(["v"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["User", "item", "item", "user"]), tmp_path / "log.parquet")
    with pytest.raises(ValueError, match=r"log\.parquet has the columns 'item' and 'item'"):
        read_log(OPTIONS, tmp_path / "log.parquet")
    pq.write_table(pa.Table.from_arrays(columns, names=["User", "item", "x", "user"]), tmp_path / "log.parquet")
    with caplog.at_level(logging.WARNING):
        assert read_log(OPTIONS, tmp_path / "log.parquet")[0]["user_id"] == "v"
    assert "'User' is left out" in caplog.text


def test_columns_that_nobody_asked_for_cannot_stop_a_run(
    tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    log = write(tmp_path / "log.parquet", user=["u"], item=["1"], junk=pa.array([{"a": b"\xff"}]))
    items = {
        "id": ["1"], "null": pa.nulls(1), "nulls": pa.array([[None]], pa.list_(pa.null())), "image": [b"\xff\xd8"],
        "name": [b"caf\xc3\xa9"], "struct": pa.array([{"a": 1, "b": None}]), "tags": [["x", "y"]],
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), "records": pa.array([[{"a": [1]}]]),
        "wait": pa.array([1], pa.duration("s")), "empty": pa.array([None], pa.struct([("a", pa.null())])),
        "colour": pa.array(["red"]).dictionary_encode(), "price": [Decimal("1.50")], "time": [datetime.time(12)],
    }  # fmt: skip
    options = {**OPTIONS, "items": {"columns": {"item_id": "id", "title": "name"}}}
    with caplog.at_level(logging.WARNING):
        tables = reading("files", options, interactions=log, items=write(tmp_path / "items.parquet", **items))
    row = rows(tables.items)[0]
    assert row["title"] == "café" and row["tags"] == ["x", "y"] and row["colour"] == "red" and row["null"] is None
    assert (row["struct"], row["map"], row["empty"]) == ('{"a":1,"b":null}', '{"k":1}', None)
    assert "image" not in row and '"image" is left out' in caplog.text
    assert rows(tables.interactions)[0]["problem"] is None


@pytest.mark.parametrize("damage", ["cut short", "footer", "no Parquet file"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, read_log: ReadLog, damage: str) -> None:
    path = write(tmp_path / "log.parquet", user=["u"], item=["i"])
    content = path.read_bytes()
    damaged = {"cut short": content[:-9], "footer": content[:-8] + b"\xff" + content[-7:], "no Parquet file": b"u,i\n"}
    path.write_bytes(damaged[damage])
    with pytest.raises(ValueError, match=r"cannot read .*log\.parquet"):
        read_log(OPTIONS, path)


def test_a_duration_is_no_time(tmp_path: Path, read_log: ReadLog) -> None:
    path = write(tmp_path / "log.parquet", user=["u"], item=["i"], time=pa.array([1], pa.duration("s")))
    with pytest.raises(ValueError, match="column 'time' is a duration"):
        read_log({"columns": {**OPTIONS["columns"], "timestamp": "time"}}, path)


# Folders and names, alike for all formats ---------------------------------------------------------------------------


def write_rows(path: Path, **columns: list[Any]) -> Path:
    """Write columns as Parquet, CSV or JSON lines, by the name of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        return write(path, **columns)
    if path.suffix == ".csv":
        lines = [",".join(columns), *(",".join(record.values()) for record in records)]
    else:
        lines = [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_folders_are_columns_only_if_asked_for(tmp_path: Path, read_log: ReadLog, suffix: str) -> None:
    paths = [
        write_rows(tmp_path / f"user={n}" / f"day=2024-05-0{n}" / f"log.{suffix}", user=[f"00{n}"], item=["i"])
        for n in (1, 2)
    ]
    options = {"columns": {**OPTIONS["columns"], "timestamp": "day"}, "timestamp": "%Y-%m-%d"}
    assert [row["user_id"] for row in read_log(OPTIONS, paths)] == ["001", "002"]
    with pytest.raises(ValueError, match="no column 'day'"):
        read_log(options, paths)
    with pytest.raises(ValueError, match="has a column 'user' and lies in a folder user="):
        read_log({**options, "folder_columns": True}, paths)
    moved = [path.rename(path.with_name(f"{n}.{suffix}")) for n, path in enumerate(paths)]
    targets = [tmp_path / f"x={n}%20y" / f"day=2024-05-0{n}" / f"log.{suffix}" for n in (1, 2)]
    for path, target in zip(moved, targets, strict=True):
        target.parent.mkdir(parents=True)
        path.rename(target)
    options["columns"] = {"user_id": "x", "item_id": "item", "timestamp": "day"}
    log = read_log({**options, "folder_columns": True}, targets)
    assert [(row["user_id"], row["timestamp"]) for row in log] == [("1 y", 1714521600), ("2 y", 1714608000)]
    with pytest.raises(ValueError, match="all files need the same"):
        read_log(
            {**options, "folder_columns": True},
            [*targets, write_rows(tmp_path / f"z.{suffix}", user=["u"], item=["i"])],
        )


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", ["events[1]", "a*", "what?", "[!a]", "[2024] logs/x", "a{b,c}", "it's", "%41"])
def test_names_are_taken_literally(tmp_path: Path, read_log: ReadLog, suffix: str, name: str) -> None:
    for decoy in ("events1", "ab", "whatx", "b", "2 logs/x", "ac", "A"):
        write_rows(tmp_path / f"{decoy}.{suffix}", user=["other"], item=["i"])
    path = write_rows(tmp_path / f"{name}.{suffix}", user=["u"], item=["i"])
    assert [row["user_id"] for row in read_log(OPTIONS, path)] == ["u"]


@pytest.mark.parametrize("other", [("s", None), ("us", "UTC"), ("ns", "Europe/Berlin"), ("ms", "+02:00")])
@pytest.mark.parametrize("first", [("ns", "UTC"), ("us", "Asia/Tokyo"), ("ns", None)])
def test_parts_may_differ_in_unit_and_zone_of_times(
    tmp_path: Path, con: Backend, reading: Reading, first: tuple[str, str | None], other: tuple[str, str | None]
) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    paths = [
        write(
            tmp_path / f"{n}.parquet",
            user=["u"],
            item=["i"],
            time=pa.array([second], pa.timestamp("s")).cast(pa.timestamp(*kind)),
        )
        for n, (kind, second) in enumerate([(first, 1_714_557_600), (other, 1_714_557_601)])
    ]
    options = {"columns": {**OPTIONS["columns"], "timestamp": "time"}}
    log = rows(reading("files", options, interactions=paths).interactions)
    assert [row["timestamp"] for row in log] == [1_714_557_600, 1_714_557_601]


def test_a_far_time_beside_nanoseconds_is_a_bad_row(tmp_path: Path, read_log: ReadLog) -> None:
    times = [datetime.datetime(9999, 12, 31), datetime.datetime(2024, 5, 1)]
    paths = [
        write(tmp_path / f"{unit}.parquet", user=["u"], item=["i"], time=pa.array([time], pa.timestamp(unit)))
        for unit, time in zip(("us", "ns"), times, strict=True)
    ]
    log = read_log({"columns": {**OPTIONS["columns"], "timestamp": "time"}}, paths[::-1])
    assert [row["problem"] for row in log] == [None, "timestamp after 2100: '9999-12-31 00:00:00'"]
