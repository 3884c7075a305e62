"""Versions of batch lists: complete or absent."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kedro.io import DatasetError
from kedro.io.core import Version
from tests.artefacts import flip_bit, names

from recpipe.io.recommendations import RecommendationsDataset


class Lists:
    """Lists of one user; `fails` after the first file."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails

    def write(self, folder: Path) -> None:
        pq.write_table(pa.table({"user_id": ["ann"], "item_id": ["i1"]}), folder / "recommendations.parquet")
        if self.fails:
            raise ValueError("stopped")
        (folder / "submission.csv").write_text("user_id,item_ids\n")


def dataset(folder: Path, version: str | None) -> RecommendationsDataset:
    path = folder / "recommendations" / "recommendations.parquet"
    return RecommendationsDataset(filepath=str(path), version=Version(None, version))


def test_every_version_is_a_folder_and_the_latest_is_loaded(tmp_path):
    for version in ("2026-01-01T00.00.00.000Z", "2026-02-01T00.00.00.000Z"):
        dataset(tmp_path, version).save(Lists())
        folder = tmp_path / "recommendations" / version
        assert names(folder) == ["recommendations.parquet", "submission.csv"]
        assert dataset(tmp_path, None).load() == folder / "recommendations.parquet"
    assert dataset(tmp_path, None).preview()["data"] == [["ann", "i1"]]


def test_lists_that_stop_leave_nothing(tmp_path):
    with pytest.raises(DatasetError, match="stopped"):
        dataset(tmp_path, "2026-01-01T00.00.00.000Z").save(Lists(fails=True))
    assert names(tmp_path / "recommendations") == []
    with pytest.raises(DatasetError):
        dataset(tmp_path, None).load()


def test_damaged_lists_are_refused(tmp_path):
    dataset(tmp_path, "2026-01-01T00.00.00.000Z").save(Lists())
    flip_bit(next(tmp_path.rglob("recommendations.parquet")), 0)
    with pytest.raises(DatasetError, match="kedro run --pipelines=recommend"):
        dataset(tmp_path, None).load()
