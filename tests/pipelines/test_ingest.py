"""Nodes of ingest on files of one's own: the manifest of the raw files."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.config import DataPaths
from recpipe.config.schema import DatasetConfig
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


def test_a_damaged_file_is_refused_before_it_is_read(tmp_path: Path, folder: Path) -> None:
    text = "u,i,t\n" + "".join(f"u{n % 70},i{n * 7919 % 997},{10**9 + n}\n" for n in range(5000))
    content = bytearray(gzip.compress(text.encode()))
    content[len(content) // 2] ^= 1
    (folder / "log.csv.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.csv\.gz is damaged or cut short: gzip"):
        manifest_of(tmp_path, "log.csv.gz", columns=COLUMNS)
