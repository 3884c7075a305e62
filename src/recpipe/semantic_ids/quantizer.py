"""Quantizers: interface, input checks, shared numerics, saving and loading.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.config import check_arguments, check_known
from recpipe.data.atomic import recover
from recpipe.data.digests import verify_folder, write_manifest
from recpipe.semantic_ids.collisions import Codes, Vectors, check_codes
from recpipe.semantic_ids.vector_rows import VectorRows

log = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS, DESCRIPTION = "model.safetensors", "config.json"
COMMAND = "kedro run --pipelines=semantic_ids --params semantic_ids.refit=true"
TYPES = {
    "opq": "recpipe.semantic_ids.faiss_quantizers.OPQ",
    "pq": "recpipe.semantic_ids.faiss_quantizers.PQ",
    "pqvae": "recpipe.semantic_ids.rqvae.PQVAE",
    "residual_kmeans": "recpipe.semantic_ids.faiss_quantizers.ResidualKMeans",
    "rqvae": "recpipe.semantic_ids.rqvae.RQVAE",
}
ITEMS_PER_CODE = 4  # at least: with a code for nearly every item, later levels carry no information
DEAD_DIMENSION = 1e-4  # spread, as a share of the typical one, below which a dimension holds rounding errors only
CHUNK = 4096  # rows of one distance matrix

OnEpoch = Callable[[dict[str, Any]], None]


class ItemVectors(NamedTuple):
    """Item vectors of a trained model, one row per row that a quantizer is fitted to."""

    vectors: Vectors  # (N, C)
    present: NDArray[np.bool_]  # (N,) whether the item has one

    def select(self, rows: Tensor) -> ItemVectors:
        """Return some of the rows, of which ``rows`` (n,) are the numbers."""
        return ItemVectors(self.vectors[rows.numpy()], self.present[rows.numpy()])


@dataclass(frozen=True)
class QuantizerConfig:
    """Settings of all quantizers; the keys of a block under ``semantic_ids.quantizers``."""

    levels: int = 3  # codes of an id
    codes: int | tuple[int, ...] = 256  # codes of every level, or one number per level
    few_items: str = "shrink"  # below 4 distinct items per code, with a warning; refuse: an error below 1
    standardise: bool = True  # every dimension to mean 0 and variance 1; without it, learned codebooks collapse

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # YAML has lists, a frozen config tuples
            if isinstance(value := getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(value))
        if self.few_items not in ("shrink", "refuse"):
            raise ValueError(f"few_items is {self.few_items!r}; allowed: shrink, refuse")
        if not isinstance(self.levels, int) or self.levels < 1:
            raise ValueError(f"levels is {self.levels!r}; a whole number of at least 1 is needed")
        if len(self.sizes) != self.levels or not all(isinstance(size, int) and size >= 2 for size in self.sizes):
            raise ValueError(
                f"codes is {self.codes!r}; with levels {self.levels} give one number, or {self.levels} of them, "
                "of at least 2"
            )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Configured codes per level (L,)."""
        return (self.codes,) * self.levels if isinstance(self.codes, int) else self.codes


class Quantizer(ABC):
    """Base class of quantizers, from vectors (N, D) to codes (N, L).

    Public methods check their input, subclasses implement the private ones.

    Examples:
        >>> vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
        >>> quantizer = build_quantizer("residual_kmeans", {"levels": 2, "codes": 4})
        >>> quantizer.fit(vectors, seed=0)
        >>> codes = quantizer.encode(vectors)
        >>> codes.shape, quantizer.decode(codes).shape
        ((40, 2), (40, 8))
    """

    type: ClassVar[str]
    mean: Tensor  # (D,) set by `fit`, as is the scale, before `_fit`
    scale: Tensor  # (D,)
    Config: ClassVar[builtins.type[QuantizerConfig]] = QuantizerConfig

    def __init__(self, config: QuantizerConfig) -> None:
        self.config = config
        self.sizes: tuple[int, ...] = ()  # (L,) codes per level, after fitting
        self.width = 0
        self.history: list[dict[str, Any]] = []
        self.about: dict[str, Any] = {}  # JSON: which data it was fitted to

    @abstractmethod
    def _fit(self, x_ND: VectorRows, *, seed: int, on_epoch: OnEpoch | None) -> None:
        """Learn codebooks of ``self.sizes``; append rows to ``self.history`` and pass them to ``on_epoch``."""

    @abstractmethod
    def _encode(self, z_ND: Tensor) -> Tensor:
        """(N, L) codes of scaled vectors."""

    @abstractmethod
    def _decode(self, codes_NL: Tensor) -> Tensor:
        """(N, D) scaled vectors."""

    @abstractmethod
    def _level_distances(self, z_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        """(N, V) squared distances to the codes of ``level``."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return all fitted values by name, each of its own shape (...)."""

    @abstractmethod
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore the tensors (...) of ``tensors``, after sizes and width.

        Raises KeyError or RuntimeError for tensors that do not fit.
        """

    def _fit_aligned(self, x_ND: VectorRows, targets: ItemVectors, *, seed: int, on_epoch: OnEpoch | None) -> None:
        """Learn codebooks that are aligned with ``targets``."""
        raise ValueError(f"a quantizer of type {self.type} cannot be aligned with item vectors; rqvae and pqvae can")

    def fit(
        self,
        x_ND: Vectors | VectorRows,
        *,
        seed: int,
        on_epoch: OnEpoch | None = None,
        targets: ItemVectors | None = None,
    ) -> None:
        """Fit to all rows (N, D), aligned with ``targets`` where they are given.

        Raises ValueError for fewer than 2 rows, NaN or infinity, equal rows only, and ``targets`` of a type that has no
        use for them.
        """
        x_ND = VectorRows.of(x_ND)
        where = "see content in the data set's conf"
        if not len(x_ND) or not x_ND.width:
            raise ValueError(f"no item has content: nothing to quantize; {where}")
        _check_finite(x_ND)
        if len(x_ND) < 2:
            raise ValueError(f"only one item has content, a quantizer needs at least 2; {where}")
        first = x_ND[0:1]
        if all((x_ND[block] == first).all() for block in x_ND.blocks()):
            raise ValueError(
                f"all {len(x_ND)} vectors are equal, so all items have the same text or the same image: see which "
                "columns content.text.template or content.image of the data set's conf reads"
            )
        self.sizes = fitting_sizes(x_ND, self.config.sizes, few_items=self.config.few_items)
        self.width, self.history = x_ND.width, []
        self.mean, self.scale = scaling(x_ND, self.config.standardise)
        if targets is None:
            self._fit(x_ND, seed=seed, on_epoch=on_epoch)
        else:
            self._fit_aligned(x_ND, targets, seed=seed, on_epoch=on_epoch)

    def encode(self, x_ND: Vectors | VectorRows) -> Codes:
        """Return codes (N, L) int32 of vectors (N, D), level 1 first.

        Raises ValueError before ``fit``, and for vectors of another width or with NaN or infinity.
        """
        x_ND, width = VectorRows.of(x_ND), self._fitted_width()
        codes = [np.zeros((0, len(self.sizes)), np.int32)]
        for block in x_ND.blocks():
            codes.append(self._encode(self._scaled(_finite_matrix(x_ND[block], width))).int().numpy())
        return np.concatenate(codes)

    def decode(self, codes_NL: Codes) -> Vectors:
        """Return the reconstruction (N, D) of codes (N, L), in the units of the vectors.

        Raises ValueError before ``fit``, and for codes out of range.
        """
        self._fitted_width()
        check_codes(codes_NL := np.asarray(codes_NL), self.sizes)
        return (self._decode(torch.from_numpy(codes_NL.astype(np.int64))) * self.scale + self.mean).numpy()

    def level_distances(self, x_ND: Vectors, codes_NL: Codes, level: int) -> Vectors:
        """Return squared distances (N, V) to the codes of ``level`` (0-based), after the codes of the earlier levels.

        Columns of ``codes_NL`` from ``level`` on are ignored and may be absent. Raises ValueError for another level or
        number of rows.
        """
        x_ND = _finite_matrix(x_ND, self._fitted_width())
        if not 0 <= level < len(self.sizes):
            raise ValueError(f"level is {level}; allowed: 0 to {len(self.sizes) - 1}")
        check_codes(earlier := np.asarray(codes_NL)[:, :level], self.sizes[:level])
        if len(earlier) != len(x_ND):
            raise ValueError(f"{len(x_ND)} vectors, but codes of {len(earlier)} items")
        return self._level_distances(self._scaled(x_ND), torch.from_numpy(earlier.astype(np.int64)), level).numpy()

    @property
    def settings(self) -> dict[str, Any]:
        """Config as plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self.config)))

    @property
    def hash(self) -> str:
        """Hex digest of type, settings, sizes and tensors."""
        content = [self.type, self.settings, self.sizes, self.width, _digest(self.tensors())]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _scaled(self, x_ND: Vectors) -> Tensor:
        return (torch.from_numpy(x_ND) - self.mean) / self.scale

    def _fitted_width(self) -> int:
        if not self.sizes:
            raise ValueError(f"this {self.type} quantizer was not fitted: call fit first, or load a saved one")
        return self.width


def quantizer_class(type_: str) -> type[Quantizer]:
    """Return the class of a type. Raises ValueError with the nearest spelling for an unknown one."""
    check_known(type_, TYPES, what="quantizer type")
    module, name = TYPES[type_].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def build_quantizer(type_: str, config: Mapping[str, Any]) -> Quantizer:
    """Build a quantizer that is not fitted yet. Raises ValueError with the allowed names for unknown settings."""
    cls = quantizer_class(type_)
    check_arguments(cls.Config, config, what=f"quantizer type {type_}")
    return cls(cls.Config(**config))


def save_quantizer(quantizer: Quantizer, folder: Path) -> None:
    """Write model.safetensors and config.json into ``folder``."""
    from safetensors.torch import save_file

    quantizer._fitted_width()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in quantizer.tensors().items()}
    description = {
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
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, allow_nan=False), encoding="utf-8")
    write_manifest(folder)


def load_quantizer(folder: Path) -> Quantizer:
    """Load a folder of ``save_quantizer``. Raises ValueError for missing or damaged files."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    recover(folder := Path(folder))
    if missing := [name for name in (DESCRIPTION, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is not a quantizer: {' and '.join(missing)} missing; run `{COMMAND}`")
    try:
        verify_folder(folder)
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        if description["format"] != FORMAT:
            raise ValueError(f"format {description['format']!r}, this version reads {FORMAT}")
        quantizer = build_quantizer(description["type"], description["config"])
        quantizer.sizes, quantizer.width = tuple(description["sizes"]), description["width"]
        quantizer.about, quantizer.history = description["about"], description["history"]
        tensors = load_file(folder / WEIGHTS)
        if _digest(tensors) != description["tensors"]:
            raise ValueError(f"{WEIGHTS} is not the file that {DESCRIPTION} was written with")
        quantizer.load_tensors(tensors)
        return quantizer
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a complete quantizer ({error}); run `{COMMAND}`") from error


@contextmanager
def thread_limit(get: Callable[[], int], set_: Callable[[int], None], number: int) -> Iterator[None]:
    """Run with ``number`` threads of a library, by its functions that get and set them."""
    before = get()
    set_(number)
    try:
        yield
    finally:
        set_(before)


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        array = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.view(torch.uint8).numpy().tobytes() if array.ndim else array.numpy().tobytes())
    return digest.hexdigest()


def squared_distances(x_ND: Tensor, book_VD: Tensor) -> Tensor:
    """Return squared distances (N, V) of rows (N, D) to codes (V, D), clamped at 0."""
    lengths = x_ND.square().sum(1, keepdim=True) + book_VD.square().sum(1)
    return torch.addmm(lengths, x_ND, book_VD.T, alpha=-2).clamp_min_(0)


def nearest(x_ND: Tensor, book_VD: Tensor) -> Tensor:
    """Return the index (N,) int64 of the code of (V, D) nearest to each row of (N, D)."""
    return torch.cat([squared_distances(part, book_VD).argmin(1) for part in x_ND.split(CHUNK)])


def scaling(x_ND: Vectors | VectorRows, standardise: bool) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per dimension, each (D,); zeros and ones without ``standardise``.

    Dead dimensions have scale 1: MiniLM has some whose values are rounding errors of 1e-9 and 1e-33, which differ from
    machine to machine.
    """
    x_ND = VectorRows.of(x_ND)
    if not standardise:
        return torch.zeros(x_ND.width), torch.ones(x_ND.width)
    blocks = [*x_ND.blocks()]
    if len(blocks) == 1:
        x = torch.from_numpy(x_ND[blocks[0]]).double()
        mean, spread = x.mean(0), x.std(0, correction=0)
    else:
        mean = torch.stack([_sums(x_ND, block) for block in blocks]).sum(0) / len(x_ND)
        spread = (torch.stack([_sums(x_ND, block, mean) for block in blocks]).sum(0) / len(x_ND)).sqrt()
    dead = spread <= DEAD_DIMENSION * spread.square().mean().sqrt()
    return mean.float(), torch.where(dead, 1.0, spread).float()


def _sums(x_ND: VectorRows, block: slice, mean: Tensor | None = None) -> Tensor:
    """(D,) float64 sums of a block's rows, or of their squared differences from ``mean``."""
    parts = torch.from_numpy(x_ND[block]).split(CHUNK)
    sums = [part.double().sum(0) if mean is None else (part.double() - mean).square().sum(0) for part in parts]
    return torch.stack(sums).sum(0)


def fitting_sizes(x_ND: Vectors | VectorRows, sizes: tuple[int, ...], *, few_items: str = "shrink") -> tuple[int, ...]:
    """Limit the codes per level to one per ``ITEMS_PER_CODE`` distinct rows of ``x_ND``.

    ``few_items="refuse"`` keeps the sizes and raises ValueError for fewer distinct rows than codes of a level.
    """
    distinct = len(np.unique(row_hashes(x_ND)))
    if few_items == "refuse" and distinct < max(sizes):
        raise ValueError(
            f"{distinct:,} distinct vectors are fewer than the {max(sizes)} codes of a level: lower codes, or set "
            "few_items=shrink"
        )
    if few_items == "refuse" or distinct >= ITEMS_PER_CODE * max(sizes):
        return sizes
    largest = max(2, distinct // ITEMS_PER_CODE)
    shrunk = tuple(min(size, largest) for size in sizes)
    log.warning(
        "%s distinct vectors are fewer than %s for each of the %s codes of a level: codes shrink to %s",
        f"{distinct:,}", ITEMS_PER_CODE, max(sizes), " x ".join(map(str, shrunk)),
    )  # fmt: skip
    return shrunk


def distinct_rows(x_ND: Vectors | VectorRows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first row (P,) of each group of equal rows, and the group number (N,) of every row."""
    _, first, group = np.unique(row_hashes(x_ND), return_index=True, return_inverse=True)
    return first, group


def row_hashes(x_ND: Vectors | VectorRows) -> NDArray[np.uint64]:
    """Return a 64-bit hash (N,) of each row."""
    x_ND = VectorRows.of(x_ND)
    odd = np.random.default_rng(0).integers(1 << 62, size=x_ND.width, dtype=np.uint64) * 2 + 1
    starts = range(0, len(x_ND), 16_384)
    chunks = (x_ND[start : start + 16_384] + np.float32(0) for start in starts)  # -0.0 becomes 0.0
    hashes = [(chunk.view(np.uint32) * odd).sum(1, dtype=np.uint64) for chunk in chunks]
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def _check_finite(x_ND: VectorRows) -> None:
    is_bad = np.zeros(len(x_ND), bool)
    for block in x_ND.blocks():
        is_bad[block] = ~np.isfinite(x_ND[block]).all(1)
    if len(bad := np.flatnonzero(is_bad)):
        raise ValueError(f"{len(bad)} of {len(x_ND)} vectors have NaN or infinity: rows {', '.join(map(str, bad[:5]))}")


def _finite_matrix(x_ND: Vectors, width: int) -> Vectors:
    x_ND = np.ascontiguousarray(x_ND, np.float32)
    if x_ND.ndim != 2:
        raise ValueError(f"vectors must have shape (N, D), got {x_ND.shape}")
    if width != x_ND.shape[1]:
        raise ValueError(
            f"vectors have width {x_ND.shape[1]}, the quantizer was fitted to width {width}: other embeddings? "
            "Fit anew with semantic_ids.refit=true"
        )
    _check_finite(VectorRows(x_ND))
    return x_ND
