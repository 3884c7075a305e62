"""How long one person waits for a list: users of a fold asked one by one, as a shop would."""

from __future__ import annotations

import time

import numpy as np

from recpipe.data.sequences import Fold, Sequences
from recpipe.models.recommender import Recommender

WARM = 3  # users asked before the clock runs: the first call fills caches
PERCENTILES = (50, 95)


def latency(
    model: Recommender, fold: Fold, *, exclude_seen: bool, k: int, users: int = 30
) -> dict[str, float]:
    """Milliseconds that ``k`` items for one user take: median and 95th percentile over ``users`` users of ``fold``.

    The users are drawn, always the same ones. Nothing for a fold without users.
    """
    drawn = np.random.default_rng(0).permutation(len(fold))[:users]
    asked = [fold.select(drawn[at : at + 1]).histories for at in range(len(drawn))]
    for histories in asked[:WARM]:
        _seconds(model, histories, exclude_seen, k)
    found = [1000 * _seconds(model, histories, exclude_seen, k) for histories in asked]
    return {f"inference_latency_ms_p{p}": float(np.percentile(found, p)) for p in PERCENTILES if found}


def _seconds(model: Recommender, histories: Sequences, exclude_seen: bool, k: int) -> float:
    """The answer is on the CPU when ``recommend`` returns, so nothing is left running on a GPU."""
    started = time.perf_counter()
    model.recommend(histories, k, exclude_seen=exclude_seen)
    return time.perf_counter() - started
