"""Whether vectors point all ways or crowd into a cone. I items, D width; rows of zeros have no direction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def unit(x_ID: Floats) -> Floats:
    """Rows of length one; rows of zeros stay."""
    norms = np.linalg.norm(x_ID, axis=1, keepdims=True)
    return x_ID / np.where(norms > 0, norms, 1.0)


def mean_cosine(x_ID: Floats) -> float:
    """Over all pairs of different items, not a sample of them: the square of a sum. Far from 0: a cone, which
    Ethayarajh, EMNLP 2019, calls anisotropy. nan for fewer than two directions.
    """
    directions = unit(x_ID)
    squares = np.square(directions).sum(1)  # 1, or 0 without a direction
    n = squares.sum()
    if n < 2:
        return np.nan
    return float((np.square(directions.sum(0)).sum() - n) / (n * (n - 1)))


def partition_isotropy(x_ID: Floats) -> float:
    """min over max of Z(c) = Σ exp(c · x) over c = ± the eigenvectors of x'x, of rows brought to length one so that the
    scale of the table says nothing; Mu & Viswanath, ICLR 2018, after Arora et al. 2016. 1: the same every way.
    """
    directions = unit(x_ID)
    _, vectors = np.linalg.eigh(directions.T @ directions)
    along = directions @ vectors  # (I, D)
    values = np.concatenate([np.exp(along).sum(0), np.exp(-along).sum(0)])
    return float(values.min() / values.max())
