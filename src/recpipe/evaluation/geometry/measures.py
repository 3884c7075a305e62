"""Measures of a table of item vectors: spectrum, isotropy, norms, nearest neighbours, intrinsic dimension.

A row of zeros has no direction. Undefined measures are NaN.
Shapes: I items, D and E widths, K neighbours, P points of a curve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from recpipe.evaluation.lists import gini
from recpipe.evaluation.segments import POPULARITY

CURVE_POINTS = 12
SIMILARITIES_PER_CHUNK = 1 << 24  # 64 MiB
ROWS_AT_ONCE = 1 << 17  # of a table
DISCARDED_RATIOS = 0.1  # TwoNN leaves out the largest ratios, where the density changes
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class VectorMeasures:
    """Measures of a table and of its head, mid and tail items; none depends on the scale of the table.

    Hubs of a group are counted among all items; ``norm`` and ``occurrence`` of a group are relative to all items.
    """

    values: dict[str, float]
    groups: dict[str, dict[str, float]]
    spectrum: Floats  # (D,)
    spectra: dict[str, Floats]  # by group
    norms: dict[str, list[float]]  # see `norm_curve`
    neighbours: Indices  # (I, K)


def measure_vectors(x_ID: Floats, events_I: Indices, groups_I: Indices, k: int) -> VectorMeasures:
    """Measure a table with training events and groups by item. Raises ValueError for fewer than k + 2 items."""
    if len(x_ID) < k + 2:
        raise ValueError(f"{len(x_ID)} items have a vector; geometry needs at least {k + 2}")
    eigenvalues, norms, neighbours = spectrum(x_ID), relative_norms(x_ID), nearest(x_ID, k)
    counts, groups, spectra = occurrences(neighbours), {}, {}
    for code, name in enumerate(POPULARITY):
        if (members := groups_I == code).any():
            spectra[name] = spectrum(x_ID[members])
            groups[name] = {
                "items": int(members.sum()),
                **_shape_measures(x_ID[members], spectra[name]),
                **hubness(counts[members]),
                "norm": float(norms[members].mean()),
                "occurrence": float(counts[members].mean() / k),
            }
    correlation = norm_popularity(norms, events_I)
    values = {**_shape_measures(x_ID, eigenvalues), **hubness(counts), "norm_popularity": correlation}
    return VectorMeasures(values, groups, eigenvalues, spectra, norm_curve(norms, events_I), neighbours)


def _shape_measures(x_ID: Floats, eigenvalues_D: Floats) -> dict[str, float]:
    return {
        "participation_ratio": participation_ratio(eigenvalues_D),
        "effective_rank": effective_rank(eigenvalues_D),
        "intrinsic_dimension": two_nn(x_ID),
        "iso_score": iso_score(eigenvalues_D),
        "partition": partition_isotropy(x_ID),
        "mean_cosine": mean_cosine(x_ID),
    }


def spectrum(x_ID: Floats) -> Floats:
    """Compute the eigenvalues (D,) of the covariance, largest first; rounding errors below 0 become 0."""
    centred = x_ID - x_ID.mean(0)
    values = np.linalg.eigvalsh(centred.T @ centred / max(len(x_ID) - 1, 1))
    return np.maximum(values[::-1], 0.0)


def cumulative_variance(values_D: Floats) -> Floats:
    """Compute the share (D,) of the variance in the first 1, 2, … directions."""
    total = values_D.sum()
    return np.cumsum(values_D) / total if total > 0 else np.full(len(values_D), np.nan)


def participation_ratio(values_D: Floats) -> float:
    """Compute (Σ λ)² / Σ λ²: D for equal variance in all directions, 1 for a single direction."""
    squares = float(np.square(values_D).sum())
    return float(values_D.sum()) ** 2 / squares if squares > 0 else np.nan


def effective_rank(values_D: Floats) -> float:
    """Compute exp of the entropy of λ / Σ λ; Roy & Vetterli, EUSIPCO 2007."""
    total = values_D.sum()
    if not total > 0:
        return np.nan
    share = values_D[values_D > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


def iso_score(values_D: Floats) -> float:
    """Compute IsoScore (Rudman et al., Findings of ACL 2022): 0 for a line, 1 for a ball; NaN for D = 1.

    Steps 3 to 7 of the paper equal (participation ratio - 1) / (D - 1).
    """
    width = len(values_D)
    return (participation_ratio(values_D) - 1) / (width - 1) if width > 1 else np.nan


def unit(x_ID: Floats) -> Floats:
    """Scale rows to length one; rows of zeros stay."""
    norms = np.linalg.norm(x_ID, axis=1, keepdims=True)
    return x_ID / np.where(norms > 0, norms, 1.0)


def mean_cosine(x_ID: Floats) -> float:
    """Compute the mean cosine of all pairs of different items, exactly; Ethayarajh, EMNLP 2019 (anisotropy)."""
    directions = unit(x_ID)
    squares = np.square(directions).sum(1)  # 1, or 0 without a direction
    n = squares.sum()
    if n < 2:
        return np.nan
    return float((np.square(directions.sum(0)).sum() - n) / (n * (n - 1)))


def partition_isotropy(x_ID: Floats) -> float:
    """Compute min Z(c) / max Z(c), Z(c) = Σ exp(c · x), over c = ± the eigenvectors of x'x; 1 is isotropic.

    Mu & Viswanath, ICLR 2018, after Arora et al. 2016; rows are scaled to length one so that scale has no influence.
    """
    directions = unit(x_ID)
    _, vectors = np.linalg.eigh(directions.T @ directions)
    projections = directions @ vectors  # (I, D)
    values = np.concatenate([np.exp(projections).sum(0), np.exp(-projections).sum(0)])
    return float(values.min() / values.max())


def relative_norms(x_ID: Floats) -> Floats:
    """Compute lengths (I,) over their mean; NaN where all are 0."""
    norms = np.linalg.norm(x_ID, axis=1)
    return norms / norms.mean() if norms.any() else np.full(len(norms), np.nan)


def norm_popularity(norms_I: Floats, events_I: NDArray[np.integer]) -> float:
    """Compute Spearman's correlation of norms and events; NaN where either is constant up to rounding."""
    if len(norms_I) < 3 or np.ptp(norms_I) <= 1e-6 * norms_I.max() or not np.ptp(events_I):
        return np.nan
    return float(spearmanr(norms_I, events_I).statistic)


def norm_curve(norms_I: Floats, events_I: NDArray[np.integer]) -> dict[str, list[float]]:
    """Compute mean ``events`` and ``norms`` of up to 12 groups of about equally many ``items``, least popular first."""
    edges = np.unique(np.quantile(events_I, np.linspace(0, 1, CURVE_POINTS + 1)[1:-1]))
    group = np.searchsorted(edges, events_I, side="left")
    items = np.bincount(group)
    nonempty = items > 0
    events, norms = (np.bincount(group, x)[nonempty] / items[nonempty] for x in (events_I, norms_I))
    return {"events": events.tolist(), "norms": norms.tolist(), "items": items[nonempty].tolist()}


def nearest(x_ID: Floats | NDArray[np.float32], k: int, *, of: Indices | None = None) -> Indices:
    """Find exactly the ``k`` nearest other rows by cosine (I, K), nearest first, of all rows or of ``of`` (n,).

    A table is scaled and compared in blocks of ``ROWS_AT_ONCE`` rows.
    """
    _check_k(k, len(x_ID))
    rows = np.arange(len(x_ID)) if of is None else of
    queries = torch.from_numpy(_unit32(x_ID[rows]))
    values, items = torch.zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.int64)
    for start in range(0, len(x_ID), ROWS_AT_ONCE):
        block = torch.from_numpy(_unit32(x_ID[start : start + ROWS_AT_ONCE]))
        values_of_block, items_of_block = _best(queries, block, torch.from_numpy(rows) - start, k)
        values, items = torch.cat([values, values_of_block], 1), torch.cat([items, items_of_block + start], 1)
        if len(x_ID) > ROWS_AT_ONCE:
            values, places = values.topk(min(k, values.shape[1]), dim=1)
            items = items.gather(1, places)
    return items.numpy()


def _unit32(x_ID: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    return np.ascontiguousarray(unit(x_ID.astype(np.float64, copy=False)), np.float32)


def _best(
    x_nD: Tensor, table_ID: Tensor, own_n: Tensor, k: int, offset_I: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the highest x · y - offset of y and their rows y (n, K), without row ``own_n`` of each x."""
    values, items, n = [], [], len(table_ID)
    for chunk in torch.arange(len(x_nD)).split(max(SIMILARITIES_PER_CHUNK // n, 1)):
        similarity = x_nD[chunk] @ table_ID.T
        if offset_I is not None:
            similarity -= offset_I
        own = own_n[chunk]
        inside = (own >= 0) & (own < n)
        similarity[torch.arange(len(chunk))[inside], own[inside]] = -torch.inf
        best = similarity.topk(min(k, n), dim=1)
        values.append(best.values)
        items.append(best.indices)
    return torch.cat(values), torch.cat(items)


def _check_k(k: int, n: int) -> None:
    if not 1 <= k < n:
        raise ValueError(f"k is {k}; among {n} items there are at most {n - 1} neighbours, and k is at least 1")


def occurrences(neighbours_IK: Indices) -> Indices:
    """Count N_k (I,): in how many items' neighbour lists each item is. The mean is K."""
    return np.bincount(neighbours_IK.ravel(), minlength=len(neighbours_IK))


def hubness(counts_I: Indices) -> dict[str, float]:
    """Compute ``skewness`` and ``gini`` of N_k, and the share of items in no list, ``orphans``.

    Skewness, the third standardised moment, is far above 0 where a few hubs are near everything, 0 where all counts
    are equal; Radovanović et al., JMLR 2010.
    """
    deviation, inequality = counts_I - counts_I.mean(), gini(counts_I)
    spread = np.sqrt(np.square(deviation).mean())
    return {
        "skewness": float((deviation**3).mean() / spread**3) if spread > 0 else 0.0,
        "gini": np.nan if inequality is None else inequality,
        "orphans": float((counts_I == 0).mean()),
    }


def overlap(one_IK: Indices, other_IK: Indices) -> Floats:
    """Compute the share (I,) of each item's K neighbours that both tables have; K / (I - 1) by chance."""
    return np.asarray((one_IK[:, :, None] == other_IK[:, None, :]).any(2).mean(1))


def linear_cka(x_ID: Floats, y_IE: Floats) -> float:
    """Compute ‖Y'X‖² / (‖X'X‖ ‖Y'Y‖) of centred columns (Frobenius norms); Kornblith et al., ICML 2019, equation 4.

    1 up to rotation and scale; independent tables are above 0, the more so the wider they are: compare with random
    ones. Raises ValueError for unequal numbers of rows.
    """
    if len(x_ID) != len(y_IE):
        raise ValueError(f"the tables have {len(x_ID)} and {len(y_IE)} rows; they must be of the same items")
    x, y = x_ID - x_ID.mean(0), y_IE - y_IE.mean(0)
    scale = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    return float(np.linalg.norm(y.T @ x) ** 2 / scale) if scale > 0 else np.nan


def two_nn(x_ID: Floats) -> float:
    """Estimate the intrinsic dimension of ten or more distinct rows by TwoNN, Facco et al., Scientific Reports 7, 2017.

    The slope through 0 of -log(1 - F(μ)) against log μ, where μ is the distance to the second neighbour over that to
    the first.
    """
    points = np.unique(x_ID, axis=0)
    if len(points) < 10:
        return np.nan
    centred = points - points.mean(0)  # the same distances, with smaller rounding errors in float32
    table, offset = (torch.from_numpy(x.astype(np.float32)) for x in (centred, np.square(centred).sum(1) / 2))
    neighbours = _best(table, table, torch.arange(len(points)), min(4, len(points) - 1), offset)[1].numpy()
    distances = np.linalg.norm(points[neighbours] - points[:, None], axis=2)  # in float64
    first, second = np.sort(distances, axis=1)[:, :2].T
    ratio = np.sort(np.log(second / first))
    n = int(len(ratio) * (1 - DISCARDED_RATIOS))
    empirical = -np.log1p(-np.arange(1, n + 1) / len(ratio))
    squares = np.square(ratio[:n]).sum()
    return float((ratio[:n] * empirical).sum() / squares) if squares > 0 else np.nan
