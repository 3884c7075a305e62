"""The Kedro dataset that streams: a table or nothing on disk, a path or an unread table back, a small preview."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError
from tests.artefacts import names

from recpipe.data.engines import connect
from recpipe.io.datasets import LazyParquetDataset


@pytest.fixture
def table() -> Any:
    return connect().create_table("log", pa.table({"user_id": ["a", "b", "c"], "order": [2, 0, 1]}))


def test_saves_an_expression_and_loads_it_unread(table: Any, tmp_path: Path) -> None:
    dataset = LazyParquetDataset(
        filepath=str(tmp_path / "new" / "log.parquet"), load_as="table", engine={"memory_limit": "300MB"}
    )
    assert not dataset.exists()
    dataset.save(table.order_by("order"))
    assert dataset.exists()
    loaded = dataset.load()
    assert loaded.user_id.to_pyarrow().to_pylist() == ["b", "c", "a"]
    limit = loaded.get_backend().raw_sql("SELECT current_setting('memory_limit')").fetchall()[0][0]
    assert limit == "286.1 MiB"


def test_loads_a_path_for_what_reads_parquet_itself(table: Any, tmp_path: Path) -> None:
    entry = {"type": "recpipe.io.datasets.LazyParquetDataset", "filepath": str(tmp_path / "log.parquet")}
    catalog = DataCatalog.from_config({"interactions": entry})
    catalog.save("interactions", table)
    assert catalog.load("interactions") == tmp_path / "log.parquet"


def test_previews_the_first_rows(table: Any, tmp_path: Path) -> None:
    dataset = LazyParquetDataset(filepath=str(tmp_path / "log.parquet"))
    dataset.save(table)
    assert dataset.preview(nrows=2) == {"index": [0, 1], "columns": ["user_id", "order"], "data": [["a", 2], ["b", 0]]}
    dataset.save(table.limit(0))
    assert dataset.preview()["data"] == []


def test_a_failed_save_leaves_what_was_there(table: Any, tmp_path: Path) -> None:
    dataset = LazyParquetDataset(filepath=str(tmp_path / "log.parquet"))
    dataset.save(table)
    with pytest.raises(DatasetError, match="Could not convert string 'a'"):
        dataset.save(table.mutate(user_id=table.user_id.cast("int64")))
    assert dataset.preview()["data"][0] == ["a", 2]
    assert names(tmp_path) == ["log.parquet"]


def test_says_what_it_takes_and_what_is_missing(tmp_path: Path) -> None:
    dataset = LazyParquetDataset(filepath=str(tmp_path / "log.parquet"))
    with pytest.raises(DatasetError, match="takes an Ibis table, not list"):
        dataset.save([1])
    with pytest.raises(DatasetError, match=rf"kedro run --pipelines=ingest --params dataset={tmp_path.name}"):
        dataset.load()
    with pytest.raises(DatasetError, match="allowed: path, table"):
        LazyParquetDataset(filepath="x", load_as="frame")  # type: ignore[arg-type]
