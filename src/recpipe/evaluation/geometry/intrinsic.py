"""How many dimensions the items themselves have, whatever the width of the table that holds them. I items, D width."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recpipe.evaluation.geometry.neighbours import nearest_by_distance

LEFT_OUT = 0.1  # of the ratios, the largest, which come from where the density changes


def two_nn(x_ID: NDArray[np.float64]) -> float:
    """TwoNN, Facco et al., Scientific Reports 7, 2017: the slope through 0 of -log(1 - F(μ)) against log μ, where μ is
    the distance to the second neighbour over that to the first.

    Items at the same place count once. nan for fewer than ten places.
    """
    places = np.unique(x_ID, axis=0)
    if len(places) < 10:
        return np.nan
    near = nearest_by_distance(places, min(4, len(places) - 1))
    distances = np.linalg.norm(places[near] - places[:, None], axis=2)  # exact for those found in float32
    first, second = np.sort(distances, axis=1)[:, :2].T
    ratio = np.sort(np.log(second / first))
    kept = int(len(ratio) * (1 - LEFT_OUT))
    empirical = -np.log1p(-np.arange(1, kept + 1) / len(ratio))
    squares = np.square(ratio[:kept]).sum()
    return float((ratio[:kept] * empirical).sum() / squares) if squares > 0 else np.nan
