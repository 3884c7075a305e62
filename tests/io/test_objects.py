"""Objects of the library as Kedro datasets: sequences, quantizers and bundles are whole or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from kedro.io.core import DatasetError, Version
from tests.io.test_files import names

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.io.objects import BundleDataset, ObjectDataset, QuantizerDataset
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle

CURVE = [{"epoch": 1, "step": 5, "loss": 2.0, "valid_ndcg@10": None}, {"epoch": 2, "step": 10, "loss": 1.5}]


def sequences(*lengths: int) -> Sequences:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    users = np.array([f"user {n}" for n in range(len(lengths))], dtype=object)
    return Sequences(users, np.arange(1, offsets[-1] + 1, dtype=np.int32), None, offsets)


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


@pytest.fixture
def bundle() -> Bundle:
    """An untrained SASRec with a curve."""
    model = build("sasrec", {"dim": 8, "layers": 1}, n_items=3, max_length=5)
    vocabulary = Vocabulary(np.array(["a", "b", "c"], object))
    events, protocol = np.arange(3), Protocol(dataset="d")
    return Bundle("sasrec", "sasrec", model, vocabulary, [None] * 3, events, protocol, {"seed": 1}, CURVE)


def test_a_bundle_is_saved_as_a_version_with_its_curve_beside_it(tmp_path, bundle) -> None:
    path, curves = str(tmp_path / "bundle"), tmp_path / "reporting" / "curves.parquet"
    for version in ("v1", "v2"):
        dataset = BundleDataset(filepath=path, curves={"path": str(curves)}, version=Version(None, version))
        dataset.save(replace(bundle, training={"seed": version}))
    latest = BundleDataset(filepath=path, version=Version(None, None))
    assert latest.exists() and latest.load().training == {"seed": "v2"}
    assert sorted(latest.list_versions(full_path=False)) == ["v1", "v2"]
    table = pq.read_table(curves)
    assert table.column_names == ["epoch", "step", "loss", "valid_ndcg@10"]
    assert table["loss"].to_pylist() == [2.0, 1.5] and table["valid_ndcg@10"].to_pylist() == [None, None]
    assert names(curves.parent) == ["curves.parquet"]


def test_the_curve_of_a_model_that_has_none_has_no_rows(tmp_path, bundle) -> None:
    curves = tmp_path / "curves.parquet"
    dataset = BundleDataset(filepath=str(tmp_path / "bundle"), curves={"path": str(curves)})
    dataset.save(replace(bundle, curve=[]))
    table = pq.read_table(curves)
    assert table.num_rows == 0 and {"epoch", "step", "loss"} <= set(table.column_names)


def test_without_a_place_for_it_no_curve_is_saved(tmp_path, bundle) -> None:
    BundleDataset(filepath=str(tmp_path / "bundle")).save(bundle)
    assert names(tmp_path) == ["bundle"]


def test_where_there_is_no_bundle_its_command_is_named_or_none_is_loaded(tmp_path) -> None:
    path = str(tmp_path / "06_models" / "shop" / "mf" / "seed_7" / "bundle")
    with pytest.raises(
        DatasetError,
        match=r"bundle does not exist: `kedro run --pipelines=train,evaluate "
        r"--params dataset=shop,model=mf,seed=7` trains it",
    ):
        BundleDataset(filepath=path, version=Version(None, None)).load()
    assert BundleDataset(filepath=path, version=Version(None, None), optional=True).load() is None
