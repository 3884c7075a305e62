"""Everything that is measured of one table. I items, D width, K neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.evaluation.geometry.angles import mean_cosine, partition_isotropy
from recpipe.evaluation.geometry.intrinsic import two_nn
from recpipe.evaluation.geometry.neighbours import hubs, nearest, occurrences
from recpipe.evaluation.geometry.norms import norm_curve, norm_popularity, relative_norms
from recpipe.evaluation.geometry.spectrum import effective_rank, iso_score, participation_ratio, spectrum
from recpipe.evaluation.segments import POPULARITY

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """``values`` of the whole table, ``groups`` of its head, mid and tail; none depends on the scale of the table.

    Of a group, hubs are counted among all items; ``norm`` and ``occurrence`` are means over those of all.
    """

    values: dict[str, float]
    groups: dict[str, dict[str, float]]
    spectrum: Floats  # (D,)
    spectra: dict[str, Floats]  # of the groups
    norms: dict[str, list[float]]  # of `norm_curve`
    near: Places  # (I, K)


def measure(x_ID: Floats, events_I: Places, groups_I: Places, k: int) -> Measured:
    """Measures ``x_ID``, whose items have ``events_I`` in training and are of ``groups_I`` (see `popularity_groups`).

    What is not defined for a table is nan. Raises ValueError for fewer than k + 2 items.
    """
    if len(x_ID) < k + 2:
        raise ValueError(f"{len(x_ID)} items have a vector; geometry needs at least {k + 2}")
    eigenvalues, norms, near = spectrum(x_ID), relative_norms(x_ID), nearest(x_ID, k)
    counts, groups, spectra = occurrences(near), {}, {}
    for code, name in enumerate(POPULARITY):
        if (chosen := groups_I == code).any():
            spectra[name] = spectrum(x_ID[chosen])
            groups[name] = {
                "items": int(chosen.sum()),
                **_shape(x_ID[chosen], spectra[name]),
                **hubs(counts[chosen]),
                "norm": float(norms[chosen].mean()),
                "occurrence": float(counts[chosen].mean() / k),
            }
    related = norm_popularity(norms, events_I)
    values = {**_shape(x_ID, eigenvalues), **hubs(counts), "norm_popularity": related}
    return Measured(values, groups, eigenvalues, spectra, norm_curve(norms, events_I), near)


def _shape(x_ID: Floats, eigenvalues_D: Floats) -> dict[str, float]:
    """What a table and a part of it have alike."""
    return {
        "participation_ratio": participation_ratio(eigenvalues_D),
        "effective_rank": effective_rank(eigenvalues_D),
        "intrinsic_dimension": two_nn(x_ID),
        "iso_score": iso_score(eigenvalues_D),
        "partition": partition_isotropy(x_ID),
        "mean_cosine": mean_cosine(x_ID),
    }


def plain(value: Any) -> Any:
    """JSON types; what is not finite is null."""
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
