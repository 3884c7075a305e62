"""How many directions a table uses: the eigenvalues of its covariance and what follows from them.

I items, D width.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def spectrum(x_ID: Floats) -> Floats:
    """Eigenvalues (D,) of the covariance, largest first; rounding errors below 0 are 0."""
    centred = x_ID - x_ID.mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred / max(len(x_ID) - 1, 1))
    return np.maximum(values[::-1], 0.0)


def cumulative_variance(values_D: Floats) -> Floats:
    """Share (D,) of the variance in the first 1, 2, … directions; nan where there is none at all."""
    total = values_D.sum()
    return np.cumsum(values_D) / total if total > 0 else np.full(len(values_D), np.nan)


def participation_ratio(values_D: Floats) -> float:
    """(Σ λ)² / Σ λ²: D where all directions vary alike, 1 where one does alone; nan without variance."""
    squares = float(np.square(values_D).sum())
    return float(values_D.sum()) ** 2 / squares if squares > 0 else np.nan


def effective_rank(values_D: Floats) -> float:
    """exp of the entropy of λ / Σ λ; Roy & Vetterli, EUSIPCO 2007. nan without variance."""
    total = values_D.sum()
    if not total > 0:
        return np.nan
    share = values_D[values_D > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def iso_score(values_D: Floats) -> float:
    """IsoScore of Rudman et al., Findings of ACL 2022: 0 for a line, 1 for a ball; nan for D = 1 or without variance.

    Their steps 3 to 7, put together, are (participation ratio - 1) / (D - 1).
    """
    width = len(values_D)
    return (participation_ratio(values_D) - 1) / (width - 1) if width > 1 else np.nan
