"""What faiss learns for us: k-means and the rotation of optimised product quantization.

faiss runs on one thread here. It ships an OpenMP and a BLAS of its own beside torch's, and on two cores two threads
took 2.4 times as long as one (k-means of 12,101 x 384, 256 codes: 1.97 s and .81 s); one thread is also repeatable.

What the quantizers with k-means codebooks share: settings, scaling of the input, tensors by name.

Shape letters: N items, D width, L levels, V codes per level.

Residual k-means, product and optimised product quantization: codebooks learned by faiss, used without it.

Shape letters: N items, D width, L levels, V codes per level.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recpipe.semantic_ids.codebooks import additive_codes, nearest, scaling, squared_distances
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, QuantizerConfig


def kmeans(x_ND: Tensor, codes: int, *, iterations: int, steps: int, sample: int, seed: int) -> Tensor:
    """(V, D) centroids of at most about ``sample`` rows. Empty clusters take half of a full one.

    With ``steps`` above 1 it clusters first in a few principal components and then, step by step, in all, with
    ``iterations`` each (faiss' progressive clustering, the default of its ResidualQuantizer).
    """
    import faiss

    settings = {
        "niter": iterations,
        "seed": _short(seed),
        "min_points_per_centroid": 1,
        "max_points_per_centroid": max(1, math.ceil(sample / codes)),
    }
    if steps > 1 and len(x_ND) >= x_ND.shape[1]:  # principal components of fewer rows are not defined
        settings["progressive_dim_steps"] = steps
    clustering = faiss.Kmeans(x_ND.shape[1], codes, **settings)
    with one_thread():
        clustering.train(np.ascontiguousarray(x_ND.numpy()))
    return torch.from_numpy(np.array(clustering.centroids, np.float32).reshape(codes, -1))


def opq_rotation(x_ND: Tensor, sizes: tuple[int, ...], *, iterations: int, sample: int, seed: int) -> Tensor:
    """(D, D) orthonormal R; the sub-vectors of ``x @ R.T`` suit a product quantizer (Ge et al. 2013).

    D must be a multiple of the levels. Codes per level count as the power of two below the smallest of them.
    """
    import faiss

    width, levels = x_ND.shape[1], len(sizes)
    pq = faiss.ProductQuantizer(width, levels, min(sizes).bit_length() - 1)
    pq.cp.min_points_per_centroid, pq.cp.seed = 1, _short(seed)
    opq = faiss.OPQMatrix(width, levels)
    opq.pq, opq.niter, opq.max_train_points = pq, iterations, max(sample, width)
    # With fewer rows than dimensions faiss 1.15 writes past its memory; the same rows several times mean the same.
    x_ND = x_ND.repeat(math.ceil(width / len(x_ND)), 1)
    with one_thread():
        opq.train(np.ascontiguousarray(x_ND.numpy()))
    return torch.from_numpy(faiss.vector_to_array(opq.A).reshape(width, width).copy())


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss on one thread inside, as before afterwards."""
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def _short(seed: int) -> int:
    return seed % (1 << 31)


@dataclass(frozen=True)
class CodebookConfig(QuantizerConfig):
    """Settings of all quantizers learned by k-means."""

    standardise: bool = True  # every dimension to mean 0 and variance 1 first
    iterations: int = 10  # of k-means at each of its steps
    steps: int = 10  # k-means in growing numbers of principal components; 1: plain k-means
    sample: int = 65_536  # k-means looks at no more rows than this

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("iterations", self.iterations, least=1)
        check_count("steps", self.steps, least=1)
        check_count("sample", self.sample, least=max(self.sizes))


def check_count(name: str, value: object, *, least: int) -> None:
    """ValueError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is needed")


class Codebooks(Quantizer):
    """What the three share: scaling, and tensors by name."""

    Config: ClassVar[type[QuantizerConfig]] = CodebookConfig
    config: CodebookConfig

    def _fit(self, x_ND: NDArray[np.float32], *, seed: int, on_epoch: OnEpoch | None) -> None:
        x = torch.from_numpy(x_ND)
        self.mean, self.scale = scaling(x, self.config.standardise)
        if len(x) > self.config.sample:
            rows = np.random.default_rng(seed).choice(len(x), self.config.sample, replace=False)
            x = x[torch.from_numpy(np.sort(rows))]
        self.books = self._learn((x - self.mean) / self.scale, seed)

    @abstractmethod
    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        """The books (V, D) of each level, of standardised vectors."""

    def _centroids(self, z_ND: Tensor, level: int, seed: int) -> Tensor:
        conf = self.config
        settings = {"iterations": conf.iterations, "steps": conf.steps, "sample": conf.sample}
        return kmeans(z_ND, self.sizes[level], seed=seed + level, **settings)

    def _scaled(self, x_ND: NDArray[np.float32]) -> Tensor:
        return (torch.from_numpy(x_ND) - self.mean) / self.scale

    def _unscaled(self, z_ND: Tensor) -> NDArray[np.float32]:
        return (z_ND * self.scale + self.mean).numpy()

    def tensors(self) -> dict[str, Tensor]:
        books = {f"codebooks.{level}": book for level, book in enumerate(self.books)}
        return {"mean": self.mean, "scale": self.scale, **books}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        self.mean, self.scale = tensors["mean"], tensors["scale"]
        self.books = [tensors[f"codebooks.{level}"] for level in range(len(self.sizes))]
        shapes = [tuple(book.shape) for book in self.books]
        if shapes != self._shapes() or self.mean.shape != (self.width,) or self.scale.shape != (self.width,):
            raise RuntimeError(f"codebooks of shapes {shapes}, expected {self._shapes()}")

    def _shapes(self) -> list[tuple[int, int]]:
        return [(size, self.width) for size in self.sizes]


class ResidualKMeans(Codebooks):
    """k-means on the vectors, then on what is left of them, and so on: a vector is near the sum of its codes.

    Fitting takes the nearest code at every level. Encoding does so too, or with ``beam`` above 1 keeps that many ways
    at every level, as faiss.ResidualQuantizer does. That one also fits on all of its beams, which with three levels
    makes all of it worse: on Amazon Beauty .389 of the variance is lost at beam 5, .385 our way.
    """

    type = "residual_kmeans"

    @dataclass(frozen=True)
    class Config(CodebookConfig):
        """``beam``: ways of writing a vector that encoding keeps at every level."""

        beam: int = 1

        def __post_init__(self) -> None:
            super().__post_init__()
            check_count("beam", self.beam, least=1)

    config: Config

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        books: list[Tensor] = []
        for level in range(len(self.sizes)):
            books.append(book := self._centroids(z_ND, level, seed))
            z_ND = z_ND - book[nearest(z_ND, book)]
        return books

    def _encode(self, x_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        return additive_codes(self._scaled(x_ND), self.books, self.config.beam).int().numpy()

    def _decode(self, codes_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        return self._unscaled(self._sum(codes_NL))

    def _level_distances(
        self, x_ND: NDArray[np.float32], codes_NL: NDArray[np.int32], level: int
    ) -> NDArray[np.float32]:
        rest = self._scaled(x_ND) - self._sum(codes_NL)
        return squared_distances(rest, self.books[level]).numpy()

    def _sum(self, codes_NL: NDArray[np.int32]) -> Tensor:
        """(N, D) sum of the codes given; fewer levels than there are will do."""
        codes, total = torch.from_numpy(codes_NL).long(), torch.zeros(len(codes_NL), self.width)
        for level in range(codes.shape[1]):
            total += self.books[level][codes[:, level]]
        return total


class PQ(Codebooks):
    """Product quantization (Jégou et al. 2011): the vector cut in L pieces, each with a codebook of its own.

    Where D is no multiple of L the first pieces are one dimension wider; nothing is padded or projected.
    """

    type = "pq"

    def _fit(self, x_ND: NDArray[np.float32], *, seed: int, on_epoch: OnEpoch | None) -> None:
        if self.width < (levels := len(self.sizes)):
            raise ValueError(
                f"vectors of width {self.width} cannot be cut into {levels} pieces; ask for fewer levels"
            )
        super()._fit(x_ND, seed=seed, on_epoch=on_epoch)

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        return [self._centroids(piece, level, seed) for level, piece in enumerate(self._pieces(z_ND))]

    def _encode(self, x_ND: NDArray[np.float32]) -> NDArray[np.int32]:
        pieces = self._pieces(self._space(x_ND))
        codes = [nearest(piece, book) for piece, book in zip(pieces, self.books, strict=True)]
        return torch.stack(codes, 1).int().numpy()

    def _decode(self, codes_NL: NDArray[np.int32]) -> NDArray[np.float32]:
        codes = torch.from_numpy(codes_NL).long()
        pieces = [book[codes[:, level]] for level, book in enumerate(self.books)]
        return self._back(torch.cat(pieces, 1))

    def _level_distances(
        self, x_ND: NDArray[np.float32], codes_NL: NDArray[np.int32], level: int
    ) -> NDArray[np.float32]:
        return squared_distances(self._pieces(self._space(x_ND))[level], self.books[level]).numpy()

    def _space(self, x_ND: NDArray[np.float32]) -> Tensor:
        return self._scaled(x_ND)

    def _back(self, z_ND: Tensor) -> NDArray[np.float32]:
        return self._unscaled(z_ND)

    def _pieces(self, z_ND: Tensor) -> tuple[Tensor, ...]:
        return z_ND.tensor_split(len(self.sizes), dim=1)

    def _shapes(self) -> list[tuple[int, int]]:
        widths = [piece.shape[1] for piece in self._pieces(torch.empty(0, self.width))]
        return list(zip(self.sizes, widths, strict=True))


class OPQ(PQ):
    """Optimised product quantization (Ge et al. 2013): a rotation learned so that the pieces lose least, then PQ.

    Where D is no multiple of L, zeros are appended before the rotation and dropped after its inverse.
    """

    type = "opq"

    @dataclass(frozen=True)
    class Config(CodebookConfig):
        """``rotations``: alternations of rotation and codebooks."""

        rotations: int = 50

        def __post_init__(self) -> None:
            super().__post_init__()
            check_count("rotations", self.rotations, least=1)

    config: Config

    def _learn(self, z_ND: Tensor, seed: int) -> list[Tensor]:
        z_ND = functional.pad(z_ND, (0, self._padded - self.width))
        settings = {"iterations": self.config.rotations, "sample": self.config.sample, "seed": seed}
        self.rotation = opq_rotation(z_ND, self.sizes, **settings)
        return super()._learn(z_ND @ self.rotation.T, seed)

    def _space(self, x_ND: NDArray[np.float32]) -> Tensor:
        return functional.pad(self._scaled(x_ND), (0, self._padded - self.width)) @ self.rotation.T

    def _back(self, z_ND: Tensor) -> NDArray[np.float32]:
        return self._unscaled((z_ND @ self.rotation)[:, : self.width])

    @property
    def _padded(self) -> int:
        return -(-self.width // len(self.sizes)) * len(self.sizes)

    def _shapes(self) -> list[tuple[int, int]]:
        return [(size, self._padded // len(self.sizes)) for size in self.sizes]

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "rotation": self.rotation}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        super().load_tensors(tensors)
        self.rotation = tensors["rotation"]
        if self.rotation.shape != (self._padded, self._padded):
            raise RuntimeError(
                f"a rotation of shape {tuple(self.rotation.shape)}, expected {self._padded} square"
            )
