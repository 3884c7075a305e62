"""Checkpoint files: nested values without pickle, atomic, and refused where incomplete."""

from __future__ import annotations

import pytest
import torch
from tests.artefacts import forget_digest

from recpipe.training.checkpoint import load_tree, save_tree


def test_saved_trees_are_loaded_unchanged(tmp_path):
    tree = {"a": [1, 2.5, None, True, "x"], 3: {"t": torch.arange(4), "u": (torch.ones(2, 2), "y")}, "__tensor__": 1}
    save_tree(tree, tmp_path / "c.safetensors")
    loaded = load_tree(tmp_path / "c.safetensors")
    assert torch.equal(loaded[3]["t"], tree[3]["t"]) and torch.equal(loaded[3]["u"][0], tree[3]["u"][0])
    assert loaded["a"] == tree["a"] and loaded[3]["u"][1] == "y" and loaded["__tensor__"] == 1


def test_objects_that_need_pickle_and_incomplete_files_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    with pytest.raises(TypeError, match="without pickle"):
        save_tree({"f": len}, path)
    assert list(tmp_path.iterdir()) == []
    save_tree({"t": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="c.safetensors is damaged .*; delete it to start training anew"):
        load_tree(path)
    forget_digest(path)
    with pytest.raises(ValueError, match="not a complete checkpoint"):
        load_tree(path)
