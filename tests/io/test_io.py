"""Our datasets give back what they took, and a write that fails in the middle leaves what was there before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import polars as pl
import pytest
from kedro.io.core import DatasetError, Version
from polars.testing import assert_frame_equal

from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.io import files
from recpipe.io.figures import FigureDataset
from recpipe.io.objects import BundleDataset, FolderDataset, ObjectDataset, QuantizerDataset

FRAME = pl.DataFrame({"user_id": ["a", "b"], "items": [[1, 2], [3]]})


class Unwritable:
    """Nothing that JSON, polars, plotly or a text file can hold."""


def sequences(*lengths: int) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"user {n}" for n in range(len(lengths))], dtype=object)
    return Sequences(users, np.arange(1, offsets[-1] + 1, dtype=np.int32), None, offsets)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = [
    pytest.param(files.JSONDataset, {}, {"a": [1, None]}, {"a": 2}, id="json"),
    pytest.param(files.OptionalJSONDataset, {}, {"a": [1, None]}, {"a": 2}, id="optional json"),
    pytest.param(files.TextDataset, {}, "größer\n", "other", id="text"),
    pytest.param(files.TableDataset, {"file_format": "parquet"}, FRAME, FRAME.head(1), id="table"),
    pytest.param(FigureDataset, {}, go.Figure(go.Bar(y=[1, 2])), go.Figure(), id="figure"),
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


def test_optional_json_is_none_while_absent_with_and_without_versions(tmp_path) -> None:
    path = str(tmp_path / "metrics.json")
    assert files.OptionalJSONDataset(filepath=path).load() is None
    assert files.OptionalJSONDataset(filepath=path, version=Version(None, None)).load() is None
    files.OptionalJSONDataset(filepath=path, version=Version(None, "v1")).save({"a": 1})
    assert files.OptionalJSONDataset(filepath=path, version=Version(None, None)).load() == {"a": 1}


def test_a_broken_optional_json_is_said_to_be_broken_and_done_without(tmp_path, caplog) -> None:
    (tmp_path / "metrics.json").write_text('{"a": ')
    assert files.OptionalJSONDataset(filepath=str(tmp_path / "metrics.json")).load() is None
    assert "metrics.json cannot be read" in caplog.text


@pytest.mark.parametrize(
    ("holds", "data"),
    [
        ("vocabulary", Vocabulary(np.array(["x", "ÿ"], dtype=object))),
        ("sequences", sequences(3, 1)),
        ("fold", Fold(sequences(2, 1), sequences(1, 1))),
    ],
)
def test_objects_round_trip(tmp_path, holds, data) -> None:
    dataset = ObjectDataset(filepath=str(tmp_path / "deep" / "file.parquet"), holds=holds)
    assert not dataset.exists()
    dataset.save(data)
    assert dataset.exists()
    found = dataset.load()
    for part in ("histories", "targets") if holds == "fold" else (None,):
        mine, theirs = (getattr(each, part) if part else each for each in (data, found))
        for field in ("ids",) if holds == "vocabulary" else ("users", "items", "offsets"):
            np.testing.assert_array_equal(getattr(theirs, field), getattr(mine, field))


def test_objects_of_other_classes_are_refused(tmp_path) -> None:
    with pytest.raises(DatasetError, match="holds is 'os.system' in the catalog; allowed: embeddings, fold"):
        ObjectDataset(filepath=str(tmp_path / "file"), holds="os.system")
    with pytest.raises(DatasetError, match="this entry holds .*Fold, not dict"):
        ObjectDataset(filepath=str(tmp_path / "file"), holds="fold").save({})
    assert not names(tmp_path)


def test_a_quantizer_is_whole_or_absent(tmp_path, monkeypatch) -> None:
    import recpipe.semantic_ids.quantizer as quantizers

    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    fitted = quantizers.build("residual_kmeans", {"levels": 2, "codes": 4})
    fitted.fit(vectors, seed=1)
    here = QuantizerDataset(filepath=str(tmp_path / "quantizer"))
    assert not here.exists()
    with pytest.raises(DatasetError, match="holds no quantizer"):
        here.load()
    here.save(fitted)
    assert here.load().hash == fitted.hash

    def broken(quantizer: object, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(quantizers, "save", broken)
    with pytest.raises(DatasetError, match="No space left"):
        here.save(fitted)
    assert here.load().hash == fitted.hash
    assert names(tmp_path) == ["quantizer"]


def test_objects_preview_their_first_rows_without_vectors(tmp_path) -> None:
    from recpipe.content.embeddings import Embeddings

    data = Vocabulary(np.array(["x", "y", "z"], dtype=object))
    dataset = ObjectDataset(filepath=str(tmp_path / "v.parquet"), holds="vocabulary")
    dataset.save(data)
    assert dataset.preview(2)["data"] == [["x"], ["y"]]
    vectors = Embeddings(
        np.array(["x"], object),
        np.ones((1, 3), np.float32),
        np.ones(1, bool),
        np.array(["aa"], object),
        "s",
        {},
    )
    dataset = ObjectDataset(filepath=str(tmp_path / "e.parquet"), holds="embeddings")
    dataset.save(vectors)
    assert dataset.preview()["columns"] == ["item_id", "key"]


def test_half_a_bundle_is_never_a_version(tmp_path, monkeypatch) -> None:
    import recpipe.training.bundle

    def broken(bundle: object, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recpipe.training.bundle, "save_bundle", broken)
    dataset = BundleDataset(filepath=str(tmp_path / "bundle"), version=Version(None, "v1"))
    with pytest.raises(DatasetError, match="No space left"):
        dataset.save(object())
    assert not BundleDataset(filepath=str(tmp_path / "bundle"), version=Version(None, None)).exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_folder_is_made_where_it_is_asked_for_and_cannot_be_saved(tmp_path) -> None:
    dataset = FolderDataset(filepath=str(tmp_path / "a" / "work"))
    assert dataset.load() == tmp_path / "a" / "work"
    assert dataset.load().is_dir()
    with pytest.raises(DatasetError):
        dataset.save(tmp_path)


def test_text_is_previewed_as_text(tmp_path) -> None:
    dataset = files.TextDataset(filepath=str(tmp_path / "file.txt"))
    dataset.save("| a |\n<b>\nrest")
    assert dataset.preview(lines=2) == "```\n | a |\n <b>\n```"
