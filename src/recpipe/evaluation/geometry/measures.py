"""Whether two tables arrange the same items alike, however they are turned. I items, D and E widths.

How long vectors are, against how popular their items are. I items, D width, P points of a curve.

Whether vectors point all ways or crowd into a cone. I items, D width; rows of zeros have no direction.

How many directions a table uses: the eigenvalues of its covariance and what follows from them.

I items, D width.

Who is near whom: exact nearest neighbours by cosine, hubs among them, and whether two tables agree.

I items, D width, K neighbours.

How many dimensions the items themselves have, whatever the width of the table that holds them. I items, D width.

Everything that is measured of one table. I items, D width, K neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from recpipe.evaluation.lists import gini
from recpipe.evaluation.segments import POPULARITY


def linear_cka(x_ID: NDArray[np.float64], y_IE: NDArray[np.float64]) -> float:
    """‖Y'X‖² / (‖X'X‖ ‖Y'Y‖) of centred columns, in Frobenius norms; Kornblith et al., ICML 2019, equation 4.

    1 for what is the same up to rotation and scale. Tables that have nothing in common are above 0 by chance, more so
    the wider they are: give the same of random tables beside it. nan where one does not vary. Raises ValueError for
    tables of different items.
    """
    if len(x_ID) != len(y_IE):
        raise ValueError(f"the tables have {len(x_ID)} and {len(y_IE)} rows; they must be of the same items")
    x, y = x_ID - x_ID.mean(0), y_IE - y_IE.mean(0)
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / own) if own > 0 else np.nan


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


AT_ONCE = 1 << 24  # similarities at a time: 64 MiB
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
