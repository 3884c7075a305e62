"""JSON, text and tables as Kedro datasets: whole files, also after a write that fails in the middle."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from kedro.io.core import DatasetError, Version
from polars.testing import assert_frame_equal

from recpipe.io import files

FRAME = pl.DataFrame({"user_id": ["a", "b"], "items": [[1, 2], [3]]})


class Unwritable:
    """Nothing that JSON, polars or a text file can hold."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = [
    pytest.param(files.JSONDataset, {}, {"a": [1, None]}, {"a": 2}, id="json"),
    pytest.param(files.TextDataset, {}, "größer\n", "other", id="text"),
    pytest.param(files.TableDataset, {"file_format": "parquet"}, FRAME, FRAME.head(1), id="table"),
]


def same(found: object, expected: object) -> None:
    if isinstance(expected, pl.DataFrame):
        assert_frame_equal(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize(("kind", "arguments", "first", "second"), FILES)
def test_files_round_trip_and_survive_a_failing_write(tmp_path, kind, arguments, first, second) -> None:
    dataset = kind(filepath=str(tmp_path / "folder" / "file"), **arguments)
    assert not dataset.exists()
    dataset.save(first)
    same(dataset.load(), first)
    with pytest.raises(DatasetError):
        dataset.save(Unwritable())
    same(dataset.load(), first)
    dataset.save(second)
    same(dataset.load(), second)
    assert names(tmp_path / "folder") == ["file"]


def test_a_json_that_breaks_off_in_the_middle_is_never_seen(tmp_path) -> None:
    dataset = files.JSONDataset(filepath=str(tmp_path / "file.json"))
    dataset.save({"whole": True})
    with pytest.raises(DatasetError):
        dataset.save({"first": list(range(10_000)), "then": Unwritable()})
    assert json.loads((tmp_path / "file.json").read_text()) == {"whole": True}
    assert names(tmp_path) == ["file.json"]


def test_a_failed_version_is_no_version(tmp_path) -> None:
    path = str(tmp_path / "metrics.json")
    files.JSONDataset(filepath=path, version=Version(None, "2026-01-01T00.00.00.000Z")).save({"run": 1})
    with pytest.raises(DatasetError):
        files.JSONDataset(filepath=path, version=Version(None, "2026-01-02T00.00.00.000Z")).save(
            {"run": Unwritable()}
        )
    latest = files.JSONDataset(filepath=path, version=Version(None, None))
    assert latest.load() == {"run": 1}
    assert latest.list_versions(full_path=False) == ["2026-01-01T00.00.00.000Z"]


def test_text_is_previewed_as_text(tmp_path) -> None:
    dataset = files.TextDataset(filepath=str(tmp_path / "file.txt"))
    dataset.save("| a |\n<b>\nrest")
    assert dataset.preview(lines=2) == "```\n | a |\n <b>\n```"
