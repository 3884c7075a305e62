"""Who is near whom: exact nearest neighbours by cosine, hubs among them, and whether two tables agree.

I items, D width, K neighbours.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from recpipe.evaluation.geometry.angles import unit
from recpipe.evaluation.lists import gini

AT_ONCE = 1 << 24  # similarities at a time: 64 MiB
Floats = NDArray[np.float64]
Places = NDArray[np.int64]


def nearest(x_ID: Floats, k: int, *, of: Places | None = None) -> Places:
    """The ``k`` most similar other rows by cosine (I, K), nearest first, of all rows or of ``of`` (n,) alone.

    Exact, in float32. Raises ValueError for k outside 1 .. I - 1.
    """
    return _search(unit(x_ID), np.zeros(len(x_ID)), k, of)


def nearest_by_distance(x_ID: Floats, k: int) -> Places:
    """The same by Euclidean distance."""
    centred = x_ID - x_ID.mean(0)  # distances stay, what float32 rounds away is less
    return _search(centred, np.square(centred).sum(1) / 2, k, None)


def _search(x_ID: Floats, less_I: Floats, k: int, of: Places | None) -> Places:
    """Rows with the highest x · y - ``less`` of y."""
    n = len(x_ID)
    if not 1 <= k < n:
        raise ValueError(
            f"k is {k}; among {n} items there are at most {n - 1} neighbours, and k is at least 1"
        )
    table, less = (torch.from_numpy(np.ascontiguousarray(each, np.float32)) for each in (x_ID, less_I))
    rows = torch.arange(n) if of is None else torch.from_numpy(of)
    found = []
    for chunk in rows.split(max(AT_ONCE // n, 1)):
        similar = table[chunk] @ table.T - less
        similar[torch.arange(len(chunk)), chunk] = -torch.inf
        found.append(similar.topk(k, dim=1).indices)
    return torch.cat(found).numpy()


def occurrences(near_IK: Places) -> Places:
    """N_k (I,): among how many items' neighbours each item is. Its mean is K."""
    return np.bincount(near_IK.ravel(), minlength=len(near_IK))


def skewness(counts_I: Places) -> float:
    """Third standardised moment of N_k: far above 0 where a few hubs are near everything; Radovanović et al., JMLR
    2010. 0 where all occur alike.
    """
    deviation = counts_I - counts_I.mean()
    spread = np.sqrt(np.square(deviation).mean())
    return float((deviation**3).mean() / spread**3) if spread > 0 else 0.0


def hubs(counts_I: Places) -> dict[str, float]:
    """``skewness`` and ``gini`` of N_k, nan where no item occurs, and the share of items near nobody, ``orphans``."""
    share = gini(counts_I)
    return {
        "skewness": skewness(counts_I),
        "gini": np.nan if share is None else share,
        "orphans": float((counts_I == 0).mean()),
    }


def overlap(one_IK: Places, other_IK: Places) -> Floats:
    """Share (I,) of each item's K neighbours that both tables have; K / (I - 1) by chance."""
    shared = (one_IK[:, :, None] == other_IK[:, None, :]).any(2)
    return shared.mean(1)
