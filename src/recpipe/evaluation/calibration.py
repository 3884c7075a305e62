"""Do probabilities mean what they say? Of recommendations given 5 %, does one in twenty come true?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


@dataclass(frozen=True)
class Calibration:
    """Reliability in bins of equally many recommendations, least probable first.

    ``error`` is the expected calibration error: how far apart what was said and what was so are in a bin, on average
    (Naeini et al., AAAI 2015). ``said`` and ``so`` are of whole lists: how often the target should be in the list by
    the sum of its probabilities, and how often it is.
    """

    recommendations: list[int]
    probability: list[float]  # mean of the bin
    frequency: list[float]  # share of the bin that came true
    error: float
    said: float
    so: float


def calibration(recommendations: pa.Table, ranks: pa.Table, *, bins: int = 10) -> Calibration | None:
    """Of every recommendation with a probability; None without any, or where users have several targets, as the
    probability is that of the next item.
    """
    known = recommendations.filter(pc.is_valid(recommendations["probability"]))
    users = ranks["user_id"].cast(pa.string())
    if not known.num_rows or len(pc.unique(users)) < len(users):
        return None
    row = pc.index_in(known["user_id"].cast(pa.string()), users.combine_chunks())
    target = ranks["target"].cast(pa.string()).take(row)
    true = pc.fill_null(pc.equal(target, known["item_id"].cast(pa.string())), False)
    chance = known["probability"].to_numpy().astype(np.float64)
    hit = true.to_numpy(zero_copy_only=False).astype(np.float64)
    code = _bins(chance, bins)
    size = np.bincount(code)
    said, so = (np.bincount(code, weights=values) / size for values in (chance, hit))
    return Calibration(
        size.tolist(),
        said.tolist(),
        so.tolist(),
        float((size * np.abs(said - so)).sum() / size.sum()),
        float(chance.sum() / len(users)),
        float(hit.sum() / len(users)),
    )


def _bins(chance: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """Bin of each, of equally many; equal probabilities share a bin, and no bin is empty."""
    edges = np.unique(np.quantile(chance, np.arange(1, bins) / bins))
    return np.unique(np.searchsorted(edges, chance, side="left"), return_inverse=True)[1]
