"""Vectors that are read in blocks of rows, so that those of a large catalogue may stay in a memory map.

Shape letters: N rows, D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from recpipe.semantic_ids.collisions import Rows, Vectors

if TYPE_CHECKING:
    from torch import Tensor

BLOCK = 1 << 26  # elements of a block: 256 MiB
MULTIPLE = 8192  # of the rows of a block, as networks and distances go through vectors in parts of 4096 or 8192 rows


class VectorRows:
    """Rows of a matrix, read in blocks: the rows ``rows`` (N,) of ``vectors``, by default all, without a copy.

    Indexing copies only the rows asked for; catalogues of up to ``BLOCK`` elements are a single block. Raises
    ValueError unless ``vectors`` is a matrix.
    """

    def __init__(self, vectors: Vectors, rows: Rows | NDArray[np.bool_] | None = None) -> None:
        if vectors.ndim != 2:
            raise ValueError(f"vectors must have shape (N, D), got {vectors.shape}")
        if rows is not None and rows.dtype == bool:
            rows = None if rows.all() else np.flatnonzero(rows)
        self.vectors, self._rows = vectors, rows

    @classmethod
    def of(cls, vectors: Vectors | VectorRows) -> VectorRows:
        """Return ``vectors`` as such rows."""
        return vectors if isinstance(vectors, VectorRows) else cls(vectors)

    def __len__(self) -> int:
        return len(self.vectors) if self._rows is None else len(self._rows)

    @property
    def width(self) -> int:
        """Width of the vectors (D)."""
        return int(self.vectors.shape[1])

    def __getitem__(self, rows: Rows | slice) -> Vectors:
        """Return float32 vectors (n, D); of a slice a view where that is possible."""
        index = rows if self._rows is None else self._rows[rows]
        return np.ascontiguousarray(self.vectors[index], np.float32)

    def blocks(self) -> Iterator[slice]:
        """Split the rows into blocks of about ``BLOCK`` elements."""
        size = max(BLOCK // max(self.width, 1) // MULTIPLE, 1) * MULTIPLE
        for start in range(0, len(self), size):
            yield slice(start, min(start + size, len(self)))


class StandardisedRows(VectorRows):
    """Rows less ``mean`` (D,), divided by ``scale`` (D,), computed when they are read."""

    def __init__(self, x_ND: VectorRows, mean: Tensor, scale: Tensor) -> None:
        super().__init__(x_ND.vectors, x_ND._rows)
        self._mean, self._scale = mean, scale

    def __getitem__(self, rows: Rows | slice) -> Vectors:
        standardised: Vectors = (super().__getitem__(rows) - self._mean.numpy()) / self._scale.numpy()
        return standardised

    def tensor(self, rows: Tensor | slice) -> Tensor:
        """Return the rows as a tensor (n, D)."""
        import torch

        return torch.from_numpy(self[rows if isinstance(rows, slice) else rows.numpy()])

    def select(self, rows: Tensor) -> StandardisedRows:
        """Return the rows with the numbers ``rows`` (n,), without reading them."""
        index = rows.numpy() if self._rows is None else self._rows[rows.numpy()]
        return StandardisedRows(VectorRows(self.vectors, index), self._mean, self._scale)
