"""Nodes of ingest on files of one's own: the manifest of the raw files, and how their ids join."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
from recpipe.evaluation.profile import join_warnings
from recpipe.pipelines.ingest import fetch_source, ingest_log


def manifest_of(tmp_path: Path, pattern: str, **options: Any) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries by file name."""
    paths = DataPaths(tmp_path / "data", tmp_path, "raw")
    dataset = DatasetConfig(title="T", source="files", files={"interactions": pattern}, options=options)
    files = fetch_source(dataset, paths)
    *_, manifest = ingest_log(files, dataset, {"engine": {"threads": 1, "memory_limit": "500MB"}}, paths)
    return {Path(entry["path"]).name: entry for entry in manifest["files"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


COLUMNS = {"user_id": "u", "item_id": "i", "timestamp": "t"}


def test_rows_read_and_taken_of_every_text_file(tmp_path: Path, folder: Path) -> None:
    parts = {"part-'1'.csv": (30, 3, 2), "part-[2].csv": (20, 0, 1), "part-3.csv": (10, 0, 0)}
    for name, (good, without_user, too_long) in parts.items():
        lines = ["u,i,t", *(f"u{n},i{n},{n + 10**9}" for n in range(good))]
        lines += ["  ,i1,1000000000"] * without_user + ["u1,i1,1000000000,9,9"] * too_long
        (folder / name).write_text("\n".join(lines) + "\n")
    manifest = manifest_of(tmp_path, "part-*.csv", columns=COLUMNS)
    for name, (good, without_user, too_long) in parts.items():
        entry = manifest[name]
        assert (entry["rows_read"], entry["rows_taken"]) == (good + without_user + too_long, good)
        content = (folder / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_rows_of_parts_of_every_kind_of_text(tmp_path: Path, folder: Path) -> None:
    lines = ["café,i1,1000000000", '"a b",i2,1000000001', "u3,i3,1000000002"]
    (folder / "part-0.csv").write_text("")
    (folder / "part-1.csv").write_text("u,i,t\n")
    (folder / "part-2.csv").write_bytes("\r\n".join(["u,i,t", *lines]).encode())
    (folder / "part-3.csv.gz").write_bytes(gzip.compress("\n".join(["u,i,t", *lines[1:]]).encode()))
    (folder / "part-4.csv").write_text("\n".join(["t,u,i", "1000000004,u4,i4"]))
    (folder / "part-5.csv").write_text("\n".join(["u,i,t", 'u5,"i5', 'i6",1000000005', "u7,i7,1000000006"]))
    manifest = manifest_of(tmp_path, "part-*", columns=COLUMNS)
    assert [entry["rows_taken"] for entry in manifest.values()] == [0, 0, 3, 2, 1, 1]
    assert [entry["rows_read"] for entry in manifest.values()][:5] == [0, 0, 3, 2, 1]


def test_rows_of_parquet_files_and_of_a_single_file(tmp_path: Path, folder: Path) -> None:
    for number in (1, 2):
        table = pa.table({"u": [f"u{n}" for n in range(9)], "i": ["i"] * 8 + [""], "t": [10**9 + number] * 9})
        pq.write_table(table, folder / f"part-{number}.parquet", write_page_checksum=True)
    manifest = manifest_of(tmp_path, "part-*.parquet", columns=COLUMNS)
    counts = [(entry["rows_read"], entry["rows_taken"], entry["checksums"]) for entry in manifest.values()]
    assert counts == [(9, 8, "parquet")] * 2
    single = manifest_of(tmp_path, "part-1.parquet", columns=COLUMNS)["part-1.parquet"]
    assert (single["rows_read"], single["rows_taken"]) == (9, 8)


def test_rows_of_json_files_of_several_layouts(tmp_path: Path, folder: Path) -> None:
    records = [{"u": "u", "i": n, "t": 10**9 + n} for n in range(5)]
    (folder / "part-1.json").write_text(json.dumps(records))
    (folder / "part-2.json").write_text("\n".join(map(json.dumps, records[:3])))
    manifest = manifest_of(tmp_path, "part-?.json", columns=COLUMNS)
    assert [entry["rows_read"] for entry in manifest.values()] == [5, 3]


def test_rows_of_sequences_are_events(tmp_path: Path, folder: Path) -> None:
    for number in (1, 2):
        (folder / f"part-{number}.txt").write_text(f"u{number} a b c\n" * number)
    manifest = manifest_of(tmp_path, "part-*.txt", format="lines", sequence_per_row=True)
    assert [entry["rows_taken"] for entry in manifest.values()] == [3, 6]


def test_a_file_that_changed_after_its_verification_is_refused(tmp_path: Path, folder: Path) -> None:
    paths = DataPaths(tmp_path / "data", tmp_path, "raw")
    dataset = DatasetConfig(source="files", files={"interactions": "log.csv"}, options={"columns": COLUMNS})
    (folder / "log.csv").write_text("u,i,t\nu1,i1,1000000000\n")
    files = fetch_source(dataset, paths)
    (folder / "log.csv").write_text("u,i,t\nu1,i1,1000000000\nu2,i2,1000000000\n")
    for listing in (files, {"files": files["files"]}):  # the second by an earlier version
        with pytest.raises(
            ValueError, match=r"log\.csv was not verified or has changed since: run the pipeline ingest"
        ):
            ingest_log(listing, dataset, {"engine": {"threads": 1}}, paths)
    (folder / "log.csv").unlink()
    with pytest.raises(ValueError, match=r"log\.csv is gone since it was verified: run the pipeline ingest"):
        ingest_log(files, dataset, {"engine": {}}, paths)


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path, folder: Path) -> None:
    text = "u,i,t\n" + "".join(f"u{n % 70},i{n * 7919 % 997},{10**9 + n}\n" for n in range(5000))
    content = bytearray(gzip.compress(text.encode()))
    content[len(content) // 2] ^= 1
    (folder / "log.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.csv\.gz is damaged or cut short: gzip"):
        manifest_of(tmp_path, "log.csv.gz", columns=COLUMNS)


def write(path: Path, table: pl.DataFrame) -> str:
    if path.suffix == ".parquet":
        table.write_parquet(path)
    elif path.suffix == ".jsonl":
        table.write_ndjson(path)
    else:
        table.write_csv(path)
    return path.name


def joins_of(
    tmp_path: Path,
    log: pl.DataFrame,
    items: pl.DataFrame,
    *,
    suffixes: Sequence[str] = (".csv", ".csv"),
    table: str = "items",
) -> dict[str, Any]:
    """Return the entry of the manifest about the join of a log and a table with the columns id, name."""
    paths = DataPaths(tmp_path / "data", tmp_path, "raw")
    files: dict[str, Any] = {"interactions": write(tmp_path / "raw" / f"log{suffixes[0]}", log)}
    files[table] = write(tmp_path / "raw" / f"{table}{suffixes[1]}", items)
    columns = {"item_id": "id", "title": "name"} if table == "items" else {"user_id": "id"}
    options = {"columns": {"user_id": "u", "item_id": "i"}, table: {"columns": columns}}
    dataset = DatasetConfig(title="T", source="files", files=files, options=options)
    *_, manifest = ingest_log(fetch_source(dataset, paths), dataset, {"engine": {"threads": 1}}, paths)
    (join,) = manifest["joins"]
    return join  # type: ignore[no-any-return]


FORMS = {
    "zeros that Parquet dropped": (["010877", "010878"], [10877, 10878], (".csv", ".parquet"), "leading zeros"),
    "case": (["b00x", "b01x"], ["B00X", "B01X"], (".csv", ".csv"), "in lower case"),
    "floats as text": (["1.0", "2.0"], ["1", "2"], (".csv", ".csv"), "without `.0`"),
    "letters": (["1", "2"], ["U1", "U2"], (".csv", ".csv"), "first letters"),
    "blanks inside": (["a b", "c d"], ["ab", "cd"], (".csv", ".csv"), "without blanks"),
    "nothing in common": (["x", "y"], ["1", "2"], (".csv", ".csv"), ""),
}  # fmt: skip


@pytest.mark.parametrize(("log_ids", "file_ids", "suffixes", "hint"), FORMS.values(), ids=FORMS)
def test_ids_of_another_form_are_warned_of_with_the_form(
    tmp_path: Path, folder: Path, log_ids: list[Any], file_ids: list[Any], suffixes: tuple[str, str], hint: str
) -> None:
    log, items = pl.DataFrame({"u": ["1"] * 2, "i": log_ids}), pl.DataFrame({"id": file_ids, "name": ["One", "Two"]})
    join = joins_of(tmp_path, log, items, suffixes=suffixes)
    assert (join["ids"], join["matched"], join["log_examples"], join["file_examples"]) == (
        2, 0, log_ids, list(map(str, file_ids))
    )  # fmt: skip
    assert hint in join["hint"] and (hint or not join["hint"])
    (warning,) = join_warnings([join])
    assert (
        f"0 of 2 items of the log are in items{suffixes[1]}: the log has {log_ids[0]!r}" in warning and hint in warning
    )


@pytest.mark.parametrize(
    ("log_ids", "file_ids", "suffixes"),
    [
        ([Decimal(1), Decimal(2)], ["1", "2"], (".parquet", ".csv")),
        ([1.0, 2.0], ["1", "2"], (".jsonl", ".csv")),
        ([" a", "b\t"], ["a ", "\u00a0b"], (".csv", ".csv")),
        ([1, 2], [1.0, 2.0], (".csv", ".parquet")),
    ],
    ids=["decimals", "floats in JSON", "blanks", "floats in Parquet"],
)
def test_ids_of_other_types_join(
    tmp_path: Path, folder: Path, log_ids: list[Any], file_ids: list[Any], suffixes: tuple[str, str]
) -> None:
    log, items = pl.DataFrame({"u": ["1"] * 2, "i": log_ids}), pl.DataFrame({"id": file_ids, "name": ["One", "Two"]})
    join = joins_of(tmp_path, log, items, suffixes=suffixes)
    assert (join["ids"], join["matched"]) == (2, 2) and join_warnings([join]) == []


def test_a_table_of_users_and_a_wrong_column_are_warned_of(tmp_path: Path, folder: Path) -> None:
    log = pl.DataFrame({"u": ["1", "2", "3"], "i": ["a", "b", "c"]})
    users = pl.DataFrame({"id": ["U1", "U2", "U3"], "age": [21, 22, 23]})
    (warning,) = join_warnings([joins_of(tmp_path, log, users, table="users")])
    assert "0 of 3 users of the log are in users.csv: the log has '1', '2', the file 'U1', 'U2'" in warning
    items = pl.DataFrame({"id": ["901", "902", "903"], "name": ["A", "B", "C"], "sku": ["a", "b", "c"]})
    (warning,) = join_warnings([joins_of(tmp_path, log, items)])
    assert "the column 'sku' has 3 of 3: perhaps set `columns: {item_id: sku}`" in warning
    half = pl.DataFrame({"id": ["a", "b"], "name": ["A", "B"]})
    assert join_warnings([joins_of(tmp_path, log, half)]) == []


def test_rows_of_the_files_of_items_and_users(tmp_path: Path, folder: Path) -> None:
    paths = DataPaths(tmp_path / "data", tmp_path, "raw")
    (folder / "log.csv").write_text("u,i,t\nu1,i1,1000000000\n")
    (folder / "items-1.csv").write_text("id,name\ni1,One\ni2,Two\n,None\nNA,x\ni1,again\ni3,too,long\n")
    (folder / "items-2.csv").write_text("id,name\ni2,Other\ni4,Four\n")
    (folder / "items-3.csv").write_text("id,name\n")
    (folder / "users.jsonl").write_text('{"id": "u1"}\n[1]\n{"id": "u2"}\n')
    options = {"columns": COLUMNS, "items": {"columns": {"item_id": "id"}}, "users": {"columns": {"user_id": "id"}}}
    files = {"interactions": "log.csv", "items": "items-*.csv", "users": "users.jsonl"}
    dataset = DatasetConfig(title="T", source="files", files=files, options=options)
    *_, manifest = ingest_log(fetch_source(dataset, paths), dataset, {"engine": {"threads": 1}}, paths)
    counts = {Path(entry["path"]).name: (entry["rows_read"], entry["rows_taken"]) for entry in manifest["files"]}
    assert counts == {
        "log.csv": (1, 1), "items-1.csv": (6, 2), "items-2.csv": (2, 1), "items-3.csv": (0, 0), "users.jsonl": (3, 2),
    }  # fmt: skip
