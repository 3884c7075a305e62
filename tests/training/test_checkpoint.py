from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences

from recpipe.data.atomic import atomic_folder
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.models.registry import build
from recpipe.training.bundle import CONFIG, WEIGHTS, Bundle, load_bundle, save_bundle
from recpipe.training.checkpoint import load_tree, save_tree


def test_trees_come_back_as_they_were(tmp_path):
    tree = {
        "a": [1, 2.5, None, True, "x"],
        3: {"t": torch.arange(4), "u": (torch.ones(2, 2), "y")},
        "__tensor__": 1,
    }
    save_tree(tree, tmp_path / "c.safetensors")
    back = load_tree(tmp_path / "c.safetensors")
    assert torch.equal(back[3]["t"], tree[3]["t"]) and torch.equal(back[3]["u"][0], tree[3]["u"][0])
    assert back["a"] == tree["a"] and back[3]["u"][1] == "y" and back["__tensor__"] == 1


def test_what_would_need_pickle_is_refused_and_half_files_are_named(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(TypeError, match="without pickle"):
        save_tree({"f": len}, path)
    assert list(tmp_path.iterdir()) == []
    save_tree({"t": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        load_tree(path)


@pytest.fixture
def bundle() -> Bundle:
    ids = np.array([f"i{i}" for i in range(9)], dtype=object)
    model = build("item_knn", {"neighbours": 3}, n_items=9, max_length=5)
    model.fit(random_sequences(40, 9))
    return Bundle(
        "knn",
        "item_knn",
        model,
        Vocabulary(ids),
        ["Ω", None] + ["t"] * 7,
        np.arange(9),
        Protocol(dataset="x"),
        {"seed": 1},
    )


def test_a_bundle_recommends_the_same_after_loading(tmp_path, bundle):
    with atomic_folder(tmp_path / "b") as folder:
        save_bundle(bundle, folder)
    back = load_bundle(tmp_path / "b")
    data = random_sequences(10, 9, seed=4)
    for mine, other in zip(bundle.model.recommend(data, 4), back.model.recommend(data, 4), strict=True):
        np.testing.assert_array_equal(mine, other)
    assert (back.name, back.titles, back.training, back.protocol) == (
        "knn",
        bundle.titles,
        {"seed": 1},
        bundle.protocol,
    )
    assert back.vocabulary.ids.tolist() == bundle.vocabulary.ids.tolist()
    assert back.train_events.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("file", "message"), [(CONFIG, "config.json missing"), (WEIGHTS, "model.safetensors missing")]
)
def test_an_incomplete_bundle_is_refused(tmp_path, bundle, file, message):
    save_bundle(bundle, tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)


def test_cut_or_foreign_weights_are_refused(tmp_path, bundle):
    save_bundle(bundle, tmp_path)
    whole = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[:-8])
    with pytest.raises(ValueError, match="not whole"):
        load_bundle(tmp_path)


def test_a_failed_save_leaves_the_old_folder(tmp_path, bundle):
    with atomic_folder(tmp_path / "b") as folder:
        save_bundle(bundle, folder)

    def half() -> None:
        with atomic_folder(tmp_path / "b") as folder:
            (folder / WEIGHTS).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        half()
    assert load_bundle(tmp_path / "b").name == "knn"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
