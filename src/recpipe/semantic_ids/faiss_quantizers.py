"""Residual k-means, PQ and OPQ: codebooks are learned by faiss, encoding and decoding do not need it.

Shape letters: N items, D width, L levels, V codes per level.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recpipe.semantic_ids.collisions import Rows, Vectors
from recpipe.semantic_ids.quantizer import (
    CHUNK,
    OnEpoch,
    Quantizer,
    QuantizerConfig,
    nearest,
    squared_distances,
    thread_limit,
)
from recpipe.semantic_ids.vector_rows import VectorRows

MAX_SEED = 1 << 31  # of faiss


@dataclass(frozen=True)
class KMeansConfig(QuantizerConfig):
    """Settings of all quantizers learned by k-means."""

    iterations: int = 10  # iterations of k-means at each of its steps
    steps: int = 10  # k-means in growing numbers of principal components; 1: plain k-means
    sample: int = 65_536  # rows for k-means at most

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("iterations", "steps", "sample", "beam", "rotations"):  # the last two only in some types
            value, least = getattr(self, name, 1), max(self.sizes) if name == "sample" else 1
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")


class KMeansQuantizer(Quantizer):
    """Base class of quantizers by k-means: scaling, k-means and tensors."""

    Config: ClassVar[type[QuantizerConfig]] = KMeansConfig
    config: KMeansConfig

    @abstractmethod
    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        """Codebooks (V, D) of each level for scaled vectors."""

    def _fit(self, x_ND: VectorRows, *, seed: int, on_epoch: OnEpoch | None) -> None:
        rows: slice | Rows = slice(None)
        if len(x_ND) > self.config.sample:
            rows = np.sort(np.random.default_rng(seed).choice(len(x_ND), self.config.sample, replace=False))
        self.books = self._learn((torch.from_numpy(x_ND[rows]) - self.mean) / self.scale, seed)

    def tensors(self) -> dict[str, Tensor]:
        """Return mean and scale (D,) and the codebooks (V, D) of the levels, by name."""
        books = {f"codebooks.{level}": book for level, book in enumerate(self.books)}
        return {"mean": self.mean, "scale": self.scale, **books}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore mean and scale (D,) and the codebooks (V, D), after sizes and width.

        Raises KeyError or RuntimeError for tensors that do not fit.
        """
        self.mean, self.scale = tensors["mean"], tensors["scale"]
        self.books = [tensors[f"codebooks.{level}"] for level in range(len(self.sizes))]
        shapes = [tuple(book.shape) for book in self.books]
        if shapes != self._shapes() or self.mean.shape != (self.width,) or self.scale.shape != (self.width,):
            raise RuntimeError(f"codebooks of shapes {shapes}, expected {self._shapes()}")

    def _shapes(self) -> list[tuple[int, int]]:
        return [(size, self.width) for size in self.sizes]


class ResidualKMeans(KMeansQuantizer):
    """Residual quantization by k-means: each level clusters the residuals of the levels before it.

    Fitting takes the nearest code at every level. Encoding does so too, or with ``beam`` above 1 searches the sums of
    codes as faiss.ResidualQuantizer does. Faiss also fits on all of its beams, which is worse with three levels: on
    Amazon Beauty .389 of the variance is lost at beam 5, .385 our way.
    """

    type = "residual_kmeans"

    @dataclass(frozen=True)
    class Config(KMeansConfig):
        """Settings of residual k-means."""

        beam: int = 1  # width of the beam search in encoding

    config: Config

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        books: list[Tensor] = []
        for level, size in enumerate(self.sizes):
            books.append(book := faiss_kmeans(z_ND, size, self.config, seed=seed + level))
            z_ND = z_ND - book[nearest(z_ND, book)]
        return books

    def _encode(self, z_ND: Tensor) -> Tensor:
        return torch.cat([_beam_encode(part, self.books, self.config.beam) for part in z_ND.split(CHUNK)])

    def _decode(self, codes_NL: Tensor) -> Tensor:
        total = torch.zeros(len(codes_NL), self.width)
        for level in range(codes_NL.shape[1]):  # the first ones may be all
            total += self.books[level][codes_NL[:, level]]
        return total

    def _level_distances(self, z_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        return squared_distances(z_ND - self._decode(codes_NL), self.books[level])


class PQ(KMeansQuantizer):
    """Product quantization (Jégou et al. 2011): the vector is cut into L pieces, each with its own codebook.

    Where D is no multiple of L the first pieces are one dimension wider; nothing is padded or projected.
    """

    type = "pq"

    def _fit(self, x_ND: VectorRows, *, seed: int, on_epoch: OnEpoch | None) -> None:
        if self.width < (levels := len(self.sizes)):
            raise ValueError(
                f"vectors of width {self.width} cannot be cut into {levels} pieces; lower "
                "semantic_ids.quantizers.<name>.levels"
            )
        super()._fit(x_ND, seed=seed, on_epoch=on_epoch)

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        levels = enumerate(zip(self._pieces(z_ND), self.sizes, strict=True))
        return [faiss_kmeans(piece, size, self.config, seed=seed + level) for level, (piece, size) in levels]

    def _encode(self, z_ND: Tensor) -> Tensor:
        return torch.stack([*map(nearest, self._pieces(z_ND), self.books)], 1)

    def _decode(self, codes_NL: Tensor) -> Tensor:
        return torch.cat([book[codes_NL[:, level]] for level, book in enumerate(self.books)], 1)

    def _level_distances(self, z_ND: Tensor, codes_NL: Tensor, level: int) -> Tensor:
        return squared_distances(self._pieces(z_ND)[level], self.books[level])

    def _pieces(self, z_ND: Tensor) -> tuple[Tensor, ...]:
        return z_ND.tensor_split(len(self.sizes), dim=1)

    def _shapes(self) -> list[tuple[int, int]]:
        widths = [piece.shape[1] for piece in self._pieces(torch.empty(0, self.width))]
        return list(zip(self.sizes, widths, strict=True))


class OPQ(PQ):
    """Optimised product quantization (Ge et al. 2013): a learned rotation, then PQ.

    Where D is no multiple of L, zeros are appended before the rotation and dropped after its inverse.
    """

    type = "opq"

    @dataclass(frozen=True)
    class Config(KMeansConfig):
        """Settings of OPQ."""

        rotations: int = 50  # alternations of rotation and codebooks

    config: Config

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        import faiss

        width, levels = self._padded_width, len(self.sizes)
        z_ND = F.pad(z_ND, (0, width - self.width))
        # Faiss needs powers of two: the smallest size is rounded down to one.
        pq = faiss.ProductQuantizer(width, levels, min(self.sizes).bit_length() - 1)
        pq.cp.min_points_per_centroid, pq.cp.seed = 1, seed % MAX_SEED
        opq = faiss.OPQMatrix(width, levels)
        opq.pq, opq.niter, opq.max_train_points = pq, self.config.rotations, max(self.config.sample, width)
        # With fewer rows than dimensions faiss 1.15 writes out of bounds; repeated rows give the same rotation.
        with one_thread():
            opq.train(np.ascontiguousarray(z_ND.repeat(math.ceil(width / len(z_ND)), 1).numpy()))
        self.rotation = torch.from_numpy(faiss.vector_to_array(opq.A).reshape(width, width).copy())
        return super()._learn(z_ND @ self.rotation.T, seed)

    def _scaled(self, x_ND: Vectors) -> Tensor:
        """(N, D') scaled, padded and rotated; ``_decode`` undoes the last two."""
        return F.pad(super()._scaled(x_ND), (0, self._padded_width - self.width)) @ self.rotation.T

    def _decode(self, codes_NL: Tensor) -> Tensor:
        return (super()._decode(codes_NL) @ self.rotation)[:, : self.width]

    @property
    def _padded_width(self) -> int:
        return -(-self.width // len(self.sizes)) * len(self.sizes)

    def _shapes(self) -> list[tuple[int, int]]:
        return [(size, self._padded_width // len(self.sizes)) for size in self.sizes]

    def tensors(self) -> dict[str, Tensor]:
        """Return mean and scale (D,), the codebooks of the levels and the rotation (D', D'), by name."""
        return {**super().tensors(), "rotation": self.rotation}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore mean and scale (D,), the codebooks and the rotation (D', D'), after sizes and width.

        Raises KeyError or RuntimeError for tensors that do not fit.
        """
        super().load_tensors(tensors)
        self.rotation = tensors["rotation"]
        if self.rotation.shape != (self._padded_width, self._padded_width):
            raise RuntimeError(f"a rotation of {tuple(self.rotation.shape)}, expected {self._padded_width} square")


def faiss_kmeans(x_ND: Tensor, codes: int, config: KMeansConfig, *, seed: int) -> Tensor:
    """Return centroids (V, D) of rows (N, D). Empty clusters take half of a full one.

    With ``config.steps`` above 1 it clusters first in a few principal components and then, step by step, in all (faiss'
    progressive clustering, the default of its ResidualQuantizer).
    """
    import faiss

    settings = {
        "niter": config.iterations,
        "seed": seed % MAX_SEED,
        "min_points_per_centroid": 1,
        "max_points_per_centroid": max(1, math.ceil(config.sample / codes)),
    }
    if config.steps > 1 and len(x_ND) >= x_ND.shape[1]:  # fewer rows do not define all principal components
        settings["progressive_dim_steps"] = config.steps
    clustering = faiss.Kmeans(x_ND.shape[1], codes, **settings)
    with one_thread():
        clustering.train(np.ascontiguousarray(x_ND.numpy()))
    return torch.from_numpy(np.array(clustering.centroids, np.float32).reshape(codes, -1))


def one_thread() -> AbstractContextManager[None]:
    """Run faiss on one thread: repeatable, and 2.4 times as fast as two threads beside torch's OpenMP."""
    import faiss

    return thread_limit(faiss.omp_get_max_threads, faiss.omp_set_num_threads, 1)


def _beam_encode(x_ND: Tensor, books: list[Tensor], width: int) -> Tensor:
    """(N, L) int64: codes of a near sum of code vectors, by beam search over the levels."""
    residual_NBD, rows = x_ND[:, None], torch.arange(len(x_ND))[:, None]
    codes_NBL = torch.empty(len(x_ND), 1, 0, dtype=torch.int64)
    for book_VD in books:
        distances = squared_distances(residual_NBD.flatten(0, 1), book_VD).reshape(len(x_ND), -1)
        best = distances.topk(min(width, distances.shape[1]), largest=False).indices
        beam, code = best // len(book_VD), best % len(book_VD)
        codes_NBL = torch.cat([codes_NBL[rows, beam], code[..., None]], 2)
        residual_NBD = residual_NBD[rows, beam] - book_VD[code]
    return codes_NBL[:, 0]
