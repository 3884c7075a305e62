"""Models, losses and readers of installed packages are found by name, and nothing else is imported by one."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.serving.small_service import write_bundle

from recpipe.config import ConfigError
from recpipe.config.entry_points import declared_modules
from recpipe.data.readers import reader_names
from recpipe.models.registry import build, model_class, types
from recpipe.training.bundle import load_bundle
from recpipe.training.losses import loss_names, make_loss

MODEL = """
from recpipe.models.popular import Popular

class Trending(Popular):
    pass
"""
LOSS = """
from recpipe.training.losses import Loss

class Zero(Loss):
    def compute(self, hidden, table, targets, weights):
        return hidden.sum() * 0
"""
DECLARED = """
[recpipe.models]
trending = my_shop.trending
popular = my_shop.trending
[recpipe.training.losses]
zero = my_shop.zero
[recpipe.data.readers]
access_log = my_shop.access_log
"""


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package my_shop on the path, with the metadata that pip writes."""
    package, metadata = tmp_path / "my_shop", tmp_path / "my_shop-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    for name, text in {"__init__": "", "trending": MODEL, "zero": LOSS, "undeclared": MODEL}.items():
        (package / f"{name}.py").write_text(text)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-shop\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(DECLARED)
    monkeypatch.syspath_prepend(tmp_path)
    declared_modules.cache_clear()
    yield package
    declared_modules.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_shop"]:
        del sys.modules[name]


def test_declared_modules_are_found_by_name(installed_package: Path) -> None:
    assert "trending" in types() and "zero" in loss_names() and "access_log" in reader_names()
    model = build("trending", {"days": None}, n_items=5, max_length=3)
    assert type(model).__name__ == "Trending"
    loss = make_loss({"name": "zero"})
    assert loss(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([1, 2])).item() == 0


def test_a_model_of_recpipe_precedes_a_declared_one_of_its_name(installed_package: Path) -> None:
    assert model_class("popular").__module__ == "recpipe.models.popular"


def test_a_name_of_two_packages_is_refused(installed_package: Path) -> None:
    other = installed_package.with_name("other-1.0.dist-info")
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[recpipe.models]\ntrending = other.trending\n")
    declared_modules.cache_clear()
    with pytest.raises(ConfigError, match="'trending' of recpipe.models twice"):
        model_class("trending")


@pytest.mark.parametrize("name", ["my_shop.undeclared", "undeclared", "os", "..data.ids", "my_shop.trending"])
def test_a_bundle_cannot_import_a_module_that_is_not_declared(installed_package: Path, tmp_path: Path, name) -> None:
    folder = write_bundle(tmp_path / "models" / "popular", "2026-01-01T00.00.00.000Z", name="popular")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"type": name, "format": 1}))
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="unknown model type"):
        load_bundle(folder)
    assert "my_shop.undeclared" not in sys.modules
