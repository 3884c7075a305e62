"""What vectors and codes a quantizer takes: everything else is refused with the rows and the reason.

The interface of every quantizer, and how one is built, saved and loaded.

Shape letters: N items, D width of the vectors, L levels, V codes per level.
"""

from __future__ import annotations

import builtins
import dataclasses
import hashlib
import importlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.config import check_arguments, check_known

log = logging.getLogger(__name__)

ITEMS_PER_CODE = 4  # at least; with a code for nearly every item later levels have nothing to tell


def check_vectors(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    """``x_ND`` as contiguous float32. Raises ValueError for less than two rows, NaN or infinity, or all rows equal."""
    x_ND = _matrix(x_ND)
    if not x_ND.size:
        raise ValueError("no item has content: nothing to quantize; see content in the data set's conf")
    if len(x_ND) < 2:
        raise ValueError(
            "one item alone has content, a quantizer needs at least 2 to tell apart; see content in the data set's conf"
        )
    _check_finite(x_ND)
    if (x_ND == x_ND[0]).all():
        raise ValueError(
            f"all {len(x_ND)} vectors are equal, so all items have the same text or the same image: see which columns "
            "content.text.template or content.image of the data set's conf reads"
        )
    return x_ND


def check_new_vectors(x_ND: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """``x_ND`` as contiguous float32. Raises ValueError for another width than ``width``, NaN or infinity."""
    x_ND = _matrix(x_ND)
    if x_ND.shape[1] != width:
        raise ValueError(
            f"vectors have width {x_ND.shape[1]}, the quantizer was fitted to width {width}: other embeddings? "
            "Fit anew with semantic_ids.refit=true"
        )
    _check_finite(x_ND)
    return x_ND


def check_codes(codes_NL: NDArray[np.int32], sizes: tuple[int, ...]) -> NDArray[np.int32]:
    """``codes_NL`` as int32. Raises ValueError if they are not (N, L) or out of range."""
    codes_NL = np.asarray(codes_NL)
    if codes_NL.ndim != 2 or codes_NL.shape[1] != len(sizes) or codes_NL.dtype.kind not in "iu":
        raise ValueError(
            f"codes must be whole numbers of shape (N, {len(sizes)}), got {codes_NL.dtype} {codes_NL.shape}"
        )
    wrong = (codes_NL < 0) | (codes_NL >= np.array(sizes, np.int64))
    if wrong.any():
        row, level = np.argwhere(wrong)[0]
        raise ValueError(
            f"row {row} has code {codes_NL[row, level]} at level {level + 1}, allowed 0 to {sizes[level] - 1}"
        )
    return codes_NL.astype(np.int32, copy=False)


def fitting_sizes(
    x_ND: NDArray[np.float32], sizes: tuple[int, ...], *, few_items: str = "shrink"
) -> tuple[int, ...]:
    """The codes per level that ``x_ND`` has enough distinct rows for: ``ITEMS_PER_CODE`` of them per code.

    ``few_items="refuse"`` changes no size: it raises ValueError for fewer distinct rows than codes of a level.
    """
    distinct = count_distinct(x_ND)
    if few_items == "refuse":
        _refuse_few(distinct, max(sizes))
        return sizes
    if distinct >= ITEMS_PER_CODE * max(sizes):
        return sizes
    room = max(2, distinct // ITEMS_PER_CODE)
    shrunk = tuple(min(size, room) for size in sizes)
    log.warning(
        "%s distinct vectors are fewer than %s for each of the %s codes of a level: codes shrink to %s",
        f"{distinct:,}", ITEMS_PER_CODE, max(sizes), " x ".join(map(str, shrunk)),
    )  # fmt: skip
    return shrunk


def _refuse_few(distinct: int, codes: int) -> None:
    if distinct < codes:
        raise ValueError(
            f"{distinct:,} distinct vectors are fewer than the {codes} codes of a level: ask for fewer codes, "
            "or let few_items shrink them"
        )


def count_distinct(x_ND: NDArray[np.float32]) -> int:
    """Number of different rows."""
    return len(np.unique(_hashes(x_ND)))


def distinct_rows(x_ND: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of every kind, and (N,) for every row which of these it equals."""
    _, first, same = np.unique(_hashes(x_ND), return_index=True, return_inverse=True)
    return first, same


def _hashes(x_ND: NDArray[np.float32]) -> NDArray[np.uint64]:
    """(N,) 64 bits of each row."""
    odd = np.random.default_rng(0).integers(1 << 62, size=x_ND.shape[1], dtype=np.uint64) * 2 + 1
    parts = (
        x_ND[i : i + 16_384] + np.float32(0) for i in range(0, len(x_ND), 16_384)
    )  # + 0: -0.0 equals 0.0
    return np.concatenate([(part.view(np.uint32) * odd).sum(1, dtype=np.uint64) for part in parts])


def _matrix(x_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    if x_ND.ndim != 2:
        raise ValueError(f"vectors must have shape (N, D), got {x_ND.shape}")
    return x_ND


def _check_finite(x_ND: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(~np.isfinite(x_ND).all(1))
    if len(bad):
        raise ValueError(
            f"{len(bad)} of {len(x_ND)} vectors hold NaN or infinity: rows {', '.join(map(str, bad[:5]))}"
        )


FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
COMMAND = "kedro run --pipelines=semantic_ids --params semantic_ids.refit=true"
TYPES = {
    "rqvae": "recpipe.semantic_ids.rqvae.RQVAE",
    "pqvae": "recpipe.semantic_ids.rqvae.PQVAE",
    "residual_kmeans": "recpipe.semantic_ids.faiss_quantizers.ResidualKMeans",
    "pq": "recpipe.semantic_ids.faiss_quantizers.PQ",
    "opq": "recpipe.semantic_ids.faiss_quantizers.OPQ",
}
OnEpoch = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class QuantizerConfig:
    """Settings that all quantizers have; the keys of a block under ``semantic_ids.quantizers``."""

    levels: int = 3
    codes: int | tuple[int, ...] = 256  # of every level, or one number per level
    few_items: str = "shrink"  # with a warning, below 4 distinct items per code; refuse: an error below 1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # YAML has lists, a frozen config tuples
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        if self.few_items not in ("shrink", "refuse"):
            raise ValueError(f"few_items is {self.few_items!r}; allowed: shrink, refuse")
        if not isinstance(self.levels, int) or self.levels < 1:
            raise ValueError(f"levels is {self.levels!r}; a whole number of at least 1 is needed")
        if len(self.sizes) != self.levels or not all(
            isinstance(size, int) and size >= 2 for size in self.sizes
        ):
            raise ValueError(
                f"codes is {self.codes!r}; with levels {self.levels} give one number, or {self.levels} of them, "
                "of at least 2"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """(L,) codes per level that are asked for."""
        return (self.codes,) * self.levels if isinstance(self.codes, int) else self.codes


class Quantizer(ABC):
    """Vectors to L codes and back. What is public here checks its input; subclasses write the underscored half."""

    type: ClassVar[str]
    Config: ClassVar[builtins.type[QuantizerConfig]] = QuantizerConfig

    def __init__(self, config: Any) -> None:
        self.config = config
        self.sizes: tuple[int, ...] = ()
        self.width = 0
        self.history: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}

    @abstractmethod
    def _fit(self, x_ND: NDArray[np.float32], *, seed: int, on_epoch: OnEpoch | None) -> None:
        """Learns codebooks of ``self.sizes``; appends to ``self.history`` and calls ``on_epoch`` with the same row."""

    @abstractmethod
    def _encode(self, x_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N, L) codes."""

    @abstractmethod
    def _decode(self, codes_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """(N, D) vectors in the units of x."""

    @abstractmethod
    def _level_distances(
        self, x_ND: NDArray[np.float32], codes_NL: NDArray[np.int32], level: int
    ) -> NDArray[np.float32]:
        """(N, V)"""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that fitting found, by name."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse; sizes and width are known. Raises KeyError or RuntimeError for tensors that do not fit."""

    def fit(self, x_ND: NDArray[np.float32], *, seed: int, on_epoch: OnEpoch | None = None) -> None:
        """Learns from all rows. Raises ValueError for vectors that cannot be quantized; see ``check_vectors``."""
        x_ND = check_vectors(x_ND)
        self.sizes = fitting_sizes(x_ND, self.config.sizes, few_items=self.config.few_items)
        self.width, self.history = x_ND.shape[1], []
        self._fit(x_ND, seed=seed, on_epoch=on_epoch)

    def encode(self, x_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        """(N, L) codes, level 1 first."""
        return self._encode(check_new_vectors(x_ND, self._fitted_width()))

    def decode(self, codes_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        """(N, D) reconstruction in the units of the vectors that were fitted."""
        self._fitted_width()
        return self._decode(check_codes(codes_NL, self.sizes))

    def level_distances(
        self, x_ND: NDArray[np.float32], codes_NL: NDArray[np.int32], level: int
    ) -> NDArray[np.float32]:
        """(N, V) squared distances of x to the codes of ``level`` (from 0), where that level chooses.

        The codes before ``level`` are taken as given; those from it on do not matter (they may be absent).
        """
        x_ND = check_new_vectors(x_ND, self._fitted_width())
        if not 0 <= level < len(self.sizes):
            raise ValueError(f"level is {level}; allowed: 0 to {len(self.sizes) - 1}")
        earlier = check_codes(np.asarray(codes_NL)[:, :level], self.sizes[:level])
        if len(earlier) != len(x_ND):
            raise ValueError(f"{len(x_ND)} vectors, but codes of {len(earlier)} items")
        return self._level_distances(x_ND, earlier, level)

    @property
    def settings(self) -> dict[str, Any]:
        """The config as JSON has it: two quantizers with equal type and settings were asked for the same."""
        return json.loads(json.dumps(dataclasses.asdict(self.config)))

    @property
    def hash(self) -> str:
        """Hex digest of type, settings, sizes and tensors."""
        described = [self.type, self.settings, self.sizes, self.width, _digest(self.tensors())]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()

    def _fitted_width(self) -> int:
        if not self.sizes:
            raise ValueError(
                f"this {self.type} quantizer was not fitted: call fit first, or load a saved one"
            )
        return self.width


def quantizer_types() -> list[str]:
    """All quantizer types there are."""
    return sorted(TYPES)


def quantizer_class(type_: str) -> type[Quantizer]:
    """The class of a conf block's ``type``. Raises ValueError with the nearest spelling for an unknown one."""
    check_known(type_, quantizer_types(), what="quantizer type")
    module, name = TYPES[type_].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def build_quantizer(type_: str, config: Mapping[str, Any]) -> Quantizer:
    """A quantizer that is not fitted yet. Raises ValueError that names unknown settings and the known ones."""
    cls = quantizer_class(type_)
    check_arguments(cls.Config, config, what=f"quantizer type {type_}")
    return cls(cls.Config(**config))


def save_quantizer(quantizer: Quantizer, folder: Path) -> None:
    """Writes model.safetensors and config.json into ``folder``."""
    from safetensors.torch import save_file

    quantizer._fitted_width()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in quantizer.tensors().items()}
    described = {
        "format": FORMAT,
        "type": quantizer.type,
        "config": quantizer.settings,
        "sizes": quantizer.sizes,
        "width": quantizer.width,
        "tensors": _digest(tensors),
        "about": quantizer.about,
        "history": quantizer.history,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1, allow_nan=False), encoding="utf-8")


def load_quantizer(folder: Path) -> Quantizer:
    """What ``save_quantizer`` wrote. Raises ValueError that says what is missing or not whole, and what to run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    if missing := [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} holds no quantizer: {' and '.join(missing)} missing; run `{COMMAND}`")
    try:
        described = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if described["format"] != FORMAT:
            raise ValueError(f"format {described['format']!r}, this version reads {FORMAT}")
        quantizer = build_quantizer(described["type"], described["config"])
        quantizer.sizes = tuple(described["sizes"])
        quantizer.width = described["width"]
        quantizer.about, quantizer.history = described["about"], described["history"]
        tensors = load_file(folder / WEIGHTS)
        if _digest(tensors) != described["tensors"]:
            raise ValueError(f"{WEIGHTS} is not the file that {DESCRIPTION} was written with")
        quantizer.load_tensors(tensors)
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no whole quantizer ({error}); run `{COMMAND}`") from error
    return quantizer


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(torch.uint8).numpy().tobytes() if array.ndim else array.numpy().tobytes())
    return digest.hexdigest()
