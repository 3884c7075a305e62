"""A measured table beside measured random ones, as JSON. D width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.evaluation.geometry.measures import Measured
from recpipe.evaluation.geometry.null import band
from recpipe.evaluation.geometry.spectrum import cumulative_variance

POINTS = 49  # of a drawn spectrum, at most


def described(own: Measured, nulls: Sequence[Measured]) -> dict[str, Any]:
    """``values`` with a band each, the same of every group of items, and curves with the mean of the random ones."""
    groups = {}
    for name, values in own.groups.items():
        bands = _bands(values, [each.groups[name] for each in nulls])
        groups[name] = {
            "values": values,
            "bands": {key: bands[key] for key in bands if key != "items"},
            "curves": _curves(own.spectra[name], [each.spectra[name] for each in nulls]),
        }
    return {
        "width": len(own.spectrum),
        "values": own.values,
        "bands": _bands(own.values, [each.values for each in nulls]),
        "groups": groups,
        "curves": _curves(own.spectrum, [each.spectrum for each in nulls]),
        "norms": {**own.norms, "chance": np.mean([each.norms["norms"] for each in nulls], axis=0)},
    }


def _bands(
    values: Mapping[str, float], nulls: Sequence[Mapping[str, float]]
) -> dict[str, tuple[float, float] | None]:
    return {name: band([each[name] for each in nulls]) for name in values}


def _curves(own_D: NDArray[np.float64], nulls: Sequence[NDArray[np.float64]]) -> dict[str, Any]:
    """Eigenvalues over their mean and what they add up to, at ``place`` 1 .. D, not all where D is large."""
    place = np.unique(np.linspace(0, len(own_D) - 1, min(POINTS, len(own_D))).round().astype(int))
    found: dict[str, Any] = {"place": place + 1}
    for name, spectra in (("own", [own_D]), ("chance", list(nulls))):
        relative = np.mean([each / each.mean() if each.any() else each for each in spectra], axis=0)
        found[name] = {"eigenvalues": relative[place], "cumulative": cumulative_variance(relative)[place]}
    return found
