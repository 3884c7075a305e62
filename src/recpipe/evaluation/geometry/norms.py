"""How long vectors are, against how popular their items are. I items, D width, P points of a curve."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

Floats = NDArray[np.float64]
POINTS = 12


def relative_norms(x_ID: Floats) -> Floats:
    """Lengths (I,) over their mean; nan where all are 0."""
    norms = np.linalg.norm(x_ID, axis=1)
    return norms / norms.mean() if norms.any() else np.full(len(norms), np.nan)


def norm_popularity(norms_I: Floats, events_I: NDArray[np.integer]) -> float:
    """Spearman's correlation of lengths and events; nan where either is the same for all, up to rounding."""
    if len(norms_I) < 3 or np.ptp(norms_I) <= 1e-6 * norms_I.max() or not np.ptp(events_I):
        return np.nan
    return float(spearmanr(norms_I, events_I).statistic)


def norm_curve(norms_I: Floats, events_I: NDArray[np.integer]) -> dict[str, list[float]]:
    """Mean ``events`` and mean ``norms`` (P,) of groups of about equally many ``items``, from the least popular on.

    Items of equally many events stay together, so there may be fewer points than ``POINTS``.
    """
    edges = np.unique(np.quantile(events_I, np.linspace(0, 1, POINTS + 1)[1:-1]))
    group = np.searchsorted(edges, events_I, side="left")
    items = np.bincount(group)
    there = items > 0
    means = [np.bincount(group, values)[there] / items[there] for values in (events_I, norms_I)]
    return {"events": means[0].tolist(), "norms": means[1].tolist(), "items": items[there].tolist()}
