"""What the quantizers with k-means codebooks share: settings, scaling of the input, tensors by name.

Shape letters: N items, D width, L levels, V codes per level.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recpipe.semantic_ids.clustering import kmeans
from recpipe.semantic_ids.codebooks import scaling
from recpipe.semantic_ids.quantizer import OnEpoch, Quantizer, QuantizerConfig


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
