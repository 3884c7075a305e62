"""Bundles: a loaded one recommends the same; incomplete folders are refused; a failed save changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from tests.models.generative import DATA, create
from tests.synthetic import random_sequences

from recpipe.data.atomic import atomic_folder
from recpipe.data.conditions import condition_mask
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.models.registry import build
from recpipe.training.bundle import WEIGHTS, Bundle, load_bundle, save_bundle
from recpipe.training.bundle_folders import CONFIG


@pytest.fixture
def bundle() -> Bundle:
    vocabulary = Vocabulary(np.array([f"i{i}" for i in range(9)], dtype=object))
    model = build("item_knn", {"neighbours": 3}, n_items=9, max_length=5)
    model.fit(random_sequences(40, 9))
    titles, protocol = ["Ω", None] + ["t"] * 7, Protocol(dataset="x")
    return Bundle("knn", "item_knn", model, vocabulary, titles, np.arange(9), protocol, {"seed": 1})


def test_a_loaded_bundle_recommends_the_same(tmp_path, bundle):
    with atomic_folder(tmp_path / "b") as folder:
        save_bundle(bundle, folder)
    loaded = load_bundle(tmp_path / "b")
    data = random_sequences(10, 9, seed=4)
    for ours, theirs in zip(bundle.model.recommend(data, 4), loaded.model.recommend(data, 4), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for name in ("name", "type", "titles", "training", "protocol"):
        assert getattr(loaded, name) == getattr(bundle, name)
    assert loaded.vocabulary.ids.tolist() == bundle.vocabulary.ids.tolist()
    assert loaded.train_events.tolist() == list(range(9))


def test_a_bundle_keeps_its_item_columns_until_current_ones_replace_them(tmp_path, bundle):
    assert load_saved(bundle, tmp_path / "without").item_columns is None
    stock = pa.array([n % 3 for n in range(9)])
    regions = pa.array([["DE", None], [], None] * 3, pa.large_list(pa.large_string()))
    saved = replace(bundle, item_columns=pa.table({"stock": stock, "regions": regions}))
    loaded = load_saved(saved, tmp_path / "with")
    assert loaded.item_columns == saved.item_columns
    assert loaded.item_table().column_names == ["item_id", "title", "train_events", "stock", "regions"]
    in_stock = condition_mask("stock > 0 and train_events >= 4 and 'DE' not in regions", loaded.item_table())
    assert loaded.vocabulary.ids[in_stock].tolist() == ["i4", "i7"]
    current = loaded.with_item_columns(pa.table({"item_id": ["i3", "new"], "sale": [True, True]}))
    assert current.model is loaded.model
    assert loaded.vocabulary.ids[condition_mask("sale", current.item_table())].tolist() == ["i3"]
    assert loaded.item_columns == saved.item_columns


def load_saved(bundle, path):
    with atomic_folder(path) as folder:
        save_bundle(bundle, folder)
    return load_bundle(path)


def test_item_columns_of_another_number_of_items_are_refused(tmp_path, bundle):
    save_bundle(replace(bundle, item_columns=pa.table({"stock": [1, 2]})), tmp_path)
    with pytest.raises(ValueError, match="item_columns.parquet has 2 rows for 9 items"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_a_bundle_without_a_file_is_refused(tmp_path, bundle, file):
    save_bundle(bundle, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=f"{file} missing"):
        load_bundle(tmp_path)


def test_incomplete_weights_are_refused(tmp_path, bundle):
    save_bundle(bundle, tmp_path)
    content = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(content[:-8])
    with pytest.raises(ValueError, match="incomplete"):
        load_bundle(tmp_path)


def test_a_failed_save_leaves_the_old_folder(tmp_path, bundle):
    with atomic_folder(tmp_path / "b") as folder:
        save_bundle(bundle, folder)

    def fail() -> None:
        with atomic_folder(tmp_path / "b") as folder:
            (folder / WEIGHTS).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert load_bundle(tmp_path / "b").name == "knn"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_beam_can_be_changed_after_training_and_nothing_else(bundle):
    model = create("tiger", beam=4)
    training = {"settings": {"type": "tiger", "beam": 4, "dim": 16}}
    trained = replace(bundle, name="tiger", type="tiger", model=model, training=training)
    assert trained.with_search_settings({"beam": 4, "dim": 99}) is trained
    wide = trained.with_search_settings({"beam": 12, "dim": 99})
    assert (wide.model.config.beam, wide.model.config.dim, model.config.beam) == (12, 16, 4)
    assert wide.training["settings"] == {"type": "tiger", "beam": 12, "dim": 16}
    np.testing.assert_array_equal(wide.model.recommend(DATA, 12)[0], create("tiger", beam=12).recommend(DATA, 12)[0])
    with pytest.raises(ValueError, match="models.tiger.beam cannot be 'wide'"):
        trained.with_search_settings({"beam": "wide"})
    assert bundle.with_search_settings({"beam": 4}) is bundle
