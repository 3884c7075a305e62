"""Dense item × item matrices of linear models (EASE, SLIM), within a limit of memory. U users, I items."""

from __future__ import annotations

import math

import numpy as np
from scipy.sparse import csr_matrix

from recpipe.layers.interactions import Pairs, pair_values

BLOCK = 1 << 24  # elements of a block of rows, 128 MiB as float64


def check_memory(n_items: int, bytes_per_pair: int, limit_gib: float, *, model: str) -> None:
    """Raise ValueError where matrices of all pairs of items are larger than ``limit_gib``."""
    needed = bytes_per_pair * (n_items + 1) ** 2 / 2**30
    if needed > limit_gib:
        raise ValueError(
            f"{model} needs {needed:,.1f} GiB for all pairs of {n_items:,} items, and memory_gib is {limit_gib:g}: set "
            f"`--params models.{model}.memory_gib={math.ceil(needed)}` if there is as much memory, use fewer items "
            "(step k_core), or item_knn or ials, whose memory grows with the events"
        )


def user_item_matrix(pairs: Pairs, scaling: str) -> csr_matrix:
    """Return X (U, I) float64 with ``pair_values``; column 0 is item 1."""
    values = pair_values(pairs.count, pairs.weight, scaling).cpu().numpy().astype(np.float64)
    return csr_matrix(
        (values, (pairs.user.cpu().numpy(), pairs.item.cpu().numpy() - 1)), (pairs.users, pairs.width - 1)
    )


def gram_matrix(x_UI: csr_matrix, dtype: type[np.floating]) -> np.ndarray:
    """Return XᵀX (I, I), dense, computed by blocks of rows."""
    columns, size = x_UI.T.tocsr().astype(dtype), x_UI.shape[1]
    gram, x_UI = np.empty((size, size), dtype), x_UI.astype(dtype)
    for first in range(0, size, step := max(BLOCK // size, 1)):
        (columns[first : first + step] @ x_UI).toarray(out=gram[first : first + step])
    return gram
