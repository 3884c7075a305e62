"""Engines: Parquet files are complete or absent, memory limits hold, wrong settings are refused."""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import names

from recpipe.data.engines import connect, engine_errors, read_parquet, write_parquet


@pytest.fixture
def con(tmp_path: Path) -> Any:
    return connect({"memory_limit": "500MB", "threads": 1, "spill_folder": str(tmp_path / "spill")})


def view(con: Any, query: str) -> Any:
    con.raw_sql(f"CREATE TEMP VIEW numbers AS {query}")
    return con.table("numbers")


def test_parquet_is_compressed_and_read_back(con: Any, tmp_path: Path) -> None:
    path = tmp_path / "it's" / 'a "name".parquet'
    write_parquet(con.create_table("t", pa.table({"order": [1, 2]})).order_by("order"), path)
    assert read_parquet(path).to_pyarrow()["order"].to_pylist() == [1, 2]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"


def test_a_late_failure_leaves_the_old_file_only(con: Any, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    write_parquet(con.create_table("t", pa.table({"order": [1]})), folder / "log.parquet")
    before = (folder / "log.parquet").read_bytes()
    late = "SELECT CAST(CASE WHEN range = 399999 THEN 'x' ELSE range::VARCHAR END AS BIGINT) AS n FROM range(400000)"
    log = view(con, late)
    for _ in range(20):  # DuckDB 2.0.0 can wait forever here: not with our settings
        with pytest.raises(Exception, match="Could not convert string 'x'"):
            write_parquet(log, folder / "log.parquet")
    assert names(folder) == ["log.parquet"]
    assert (folder / "log.parquet").read_bytes() == before


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, where this user may mount one."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tiny file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_no_file(con: Any, tiny_disk: Path) -> None:
    log = view(con, "SELECT md5(CAST(range AS VARCHAR)) AS item_id FROM range(500000)")
    with pytest.raises(OSError, match="No space left on device; nothing was written"):
        write_parquet(log, tiny_disk / "log.parquet")
    assert list(tiny_disk.iterdir()) == []


def test_a_full_disk_while_spilling_and_a_small_memory_limit_are_named_with_what_helps(tiny_disk: Path) -> None:
    engine = {"memory_limit": "30MB", "threads": 1, "spill_folder": str(tiny_disk / "spill")}
    con: Any = connect(engine)
    with (
        engine_errors(engine),
        pytest.raises(OSError, match="disk full.*free space, or set ingest.engine.spill_folder"),
    ):
        write_parquet(
            view(con, "SELECT md5(CAST(range AS VARCHAR)) AS id FROM range(3000000) ORDER BY id"),
            tiny_disk.parent / "out" / "x.parquet",
        )
    small: Any = connect({**engine, "memory_limit": "1MB"})
    with pytest.raises(ValueError, match="more memory than ingest.engine.memory_limit, .*raise it, or lower"):
        write_parquet(
            view(small, "SELECT md5(CAST(range AS VARCHAR)) AS id FROM range(300000) ORDER BY id"),
            tiny_disk.parent / "out" / "x.parquet",
        )


def test_the_spill_folder_may_lie_in_folders_that_do_not_exist_yet(tmp_path: Path) -> None:
    con: Any = connect({"memory_limit": "60MB", "threads": 1, "spill_folder": str(tmp_path / "a" / "b" / "spill")})
    big = view(con, "SELECT md5(CAST(range AS VARCHAR)) AS item_id FROM range(2000000)").cache()
    assert big.count().to_pyarrow().as_py() == 2_000_000


def test_the_engine_spills_at_its_memory_limit_and_cleans_up(tmp_path: Path) -> None:
    con: Any = connect({"memory_limit": "60MB", "threads": 1, "spill_folder": str(tmp_path)})
    big = view(con, "SELECT md5(CAST(range AS VARCHAR)) AS item_id FROM range(2000000)").cache()
    assert big.count().to_pyarrow().as_py() == 2_000_000
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > 10**6
    assert con.raw_sql("SELECT current_setting('threads')").fetchall() == [(1,)]
    del big, con
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"name": "flink"}, "unknown ingest.engine.name 'flink'.*duckdb, spark"),
        ({"memory": "4GB"}, "unknown setting of ingest.engine 'memory'.*memory_limit"),
        ({"memory_limit": "plenty"}, "memory_limit"),
        ({"name": "spark", "memory_limit": "plenty"}, "memory_limit 'plenty': write a number"),
        ({"settings": {"no_such_setting": 1}}, "no_such_setting"),
    ],
)
def test_a_wrong_engine_is_refused(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        connect(engine)
