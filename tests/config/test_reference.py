"""Every setting of the conf has a type and a meaning."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

import recpipe.config.schema
import recpipe.data.readers
from recpipe.config import ConfigError
from recpipe.config.__main__ import main
from recpipe.config.comments import file_comments
from recpipe.config.fields import field_meanings, fields, show, words
from recpipe.config.files import leaves, read_parameters
from recpipe.config.reference import NAME, Reference
from recpipe.config.reference_sections import COMMON, EXTRA, LOSSES, QUANTIZERS, READERS, SECTIONS, SHAPES
from recpipe.config.schema import Block
from recpipe.models.registry import model_class, types
from recpipe.training.losses import loss_names
from recpipe.training.optimisers import OPTIMISERS
from recpipe.training.optimisers import SHAPES as SCHEDULES

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(CONF)


def test_every_setting_has_a_type_and_a_meaning(reference: Reference):
    assert [setting.key for setting in reference.settings if not setting.type or not setting.meaning] == []


def test_every_key_of_the_conf_is_described(reference: Reference):
    keys = [setting.key.split(".") for setting in reference.settings]

    def is_described(path: str) -> bool:
        parts = path.split(".")
        return any(
            len(key) <= len(parts) and all(a in (NAME, b) for a, b in zip(key, parts, strict=False)) for key in keys
        )

    paths = [path for path, _ in leaves(reference.tree) if not path.startswith("models.")]
    assert [path for path in paths if not is_described(path)] == []


def test_every_class_of_the_schema_is_described():
    described = {section.cls.rpartition(":")[2] for section in SECTIONS}
    classes = [cls for _, cls in inspect.getmembers(recpipe.config.schema, inspect.isclass)]
    blocks = {cls.__name__ for cls in classes if issubclass(cls, Block) and cls is not Block}
    assert len(blocks) > 15
    assert blocks <= described


def test_all_readers_losses_schedules_and_quantizers_are_described():
    modules = {module.name for module in pkgutil.iter_modules(recpipe.data.readers.__path__)}
    assert set(READERS) == modules
    assert set(LOSSES) == set(loss_names())
    assert set(SHAPES) == set(SCHEDULES)
    assert set(QUANTIZERS) | {"pqvae"} == set(
        re.findall("[a-z_]+", EXTRA["semantic_ids.quantizers.<name>.type"][0])
    ) - {"or"}
    assert all(f"`{name}`" in EXTRA["train.optimiser.name"][0] for name in OPTIMISERS)


def test_every_setting_of_a_model_has_a_meaning():
    for type_ in types():
        cls = model_class(type_).Config
        explained = {*field_meanings(cls), *COMMON}
        assert [field.name for field in dataclasses.fields(cls) if field.name not in explained] == [], type_


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (int | None, "whole number or null"),
        (Annotated[float, Field(gt=0, lt=1)], "number above 0 below 1"),
        (Literal["a", "b"], "`a` or `b`"),
        (list[int], "list of whole numbers"),
        (tuple[str, ...] | None, "list of texts or null"),
        (dict[str, float], "block"),
        (int | float, "number"),
        (bool, "true or false"),
    ],
)
def test_types_are_written_in_words(annotation: object, text: str):
    assert words(annotation) == text


def test_values_are_written_as_in_yaml():
    assert show({"name": "adam", "learning_rate": 1e-4, "betas": [0.9, 0.95]}) == (
        "{name: adam, learning_rate: 1e-4, betas: [0.9, 0.95]}"
    )
    assert show(None) == "null"
    assert show(True) == "true"
    assert show("") == '""'


@dataclasses.dataclass
class Settings:
    """Settings of a test. ``width`` is in pixels.

    depth: in metres, two lines
        of text.
    """

    width: int = 1
    depth: int = 2
    height: int = 3  # in feet


def test_meanings_come_from_comments_entries_and_sentences_of_a_docstring(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Settings, "__module__", "recpipe.config.test_settings")
    monkeypatch.setitem(sys.modules, "recpipe.config.test_settings", sys.modules[__name__])
    assert field_meanings(Settings)["width"] == "`width` is in pixels."
    assert field_meanings(Settings)["depth"] == "in metres, two lines of text."
    assert field_meanings(Settings)["height"] == "in feet"
    assert fields(Settings)["height"] == ("whole number", "`3`")


def test_describe_prints_type_default_and_meaning(capsys: pytest.CaptureFixture[str]):
    assert main(["describe", "train.window", "--conf", str(CONF)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("train.window: whole number or null, default null")
    assert file_comments(CONF / "base/parameters/train.yml")["train.window"][:40] in out


def test_describe_names_the_nearest_spelling(capsys: pytest.CaptureFixture[str], reference: Reference):
    assert main(["describe", "train.windw", "--conf", str(CONF)]) == 1
    assert "train.window" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"serve\.port"):
        reference.find("serve.prt")


@pytest.mark.parametrize("key", ["nonsense", "", ".", "train.", "*", "(", "<name>", "train.window.x", "serve..port"])
def test_a_key_that_is_no_setting_is_an_error_with_the_blocks(key: str, capsys: pytest.CaptureFixture[str]):
    assert main(["describe", key, "--conf", str(CONF)]) == 1
    error = capsys.readouterr().err
    assert repr(key) in error and "train" in error and error.count("\n") == 1


@pytest.mark.parametrize("key", ["models", "models.", "models.sasrec", "models.sasrec.heads"])
def test_settings_of_a_model_itself_are_in_its_file(key: str, reference: Reference):
    with pytest.raises(ConfigError, match=r"`recpipe config show models\.(sasrec|<model>) "):
        reference.find(key)


def test_a_key_of_a_model_is_that_of_its_block(reference: Reference):
    assert reference.find("models.sasrec.train.ema") == reference.find("train.ema")
    assert read_parameters(CONF, "base").keys() == reference.tree.keys()
