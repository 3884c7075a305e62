"""Bootstrap confidence intervals of a metric, and randomisation tests of differences between models.

Users are resampled, models are not: uncertainty is that of the sample of users, not of training.
Shapes: U users, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.evaluation.metrics import user_metrics
from recpipe.progress import progress

ELEMENTS_PER_CHUNK = 1 << 22  # of resamples
BEST = "best"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UserMetric:
    """One metric of several models for the same users, averaged over the seeds of a model."""

    models: tuple[str, ...]
    users: NDArray[np.object_]  # (U,), sorted
    values_UM: Floats

    @classmethod
    def of(
        cls,
        ranks: Mapping[str, Sequence[pa.Table]],
        *,
        metric: str,
        protocols: Mapping[str, Sequence[str]] | None = None,
    ) -> UserMetric:
        """Compute from the ranks tables of every model, one per seed; ``protocols`` are their protocol ids.

        Raises ValueError for different protocols, users or targets, and for an unknown metric.
        """
        names = {protocol: model for model, ids in (protocols or {}).items() for protocol in ids}
        if len(names) > 1:
            pairs = ", ".join(f"{model} by {protocol}" for protocol, model in sorted(names.items()))
            raise ValueError(f"models evaluated under different protocols cannot be compared: {pairs}")
        if not ranks:
            raise ValueError("no model to compare: give the ranks of at least one")
        _check_same_targets([(model, table) for model, tables in ranks.items() for table in tables])
        cutoff, columns = int(metric.partition("@")[2] or 0), []
        for tables in ranks.values():
            seeds = [user_metrics(table, cutoffs=[cutoff]).sort_by("user_id") for table in tables]
            if metric not in seeds[0].column_names:
                allowed = ", ".join(name for name in seeds[0].column_names if name != "user_id")
                raise ValueError(f"unknown metric {metric!r}; ranks give {allowed}")
            columns.append(np.mean([seed[metric].to_numpy() for seed in seeds], axis=0))
        users = seeds[0]["user_id"].to_numpy(zero_copy_only=False)
        return cls(tuple(ranks), users, np.stack(columns, axis=1))


@dataclass(frozen=True)
class Estimate:
    """Mean over users and its interval; the bounds are NaN for a single user."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """Difference of a model to the baseline: ``p`` of the randomisation test, ``p_holm`` corrected for all models."""

    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Estimates by model, and differences to the baseline by every other model."""

    baseline: str
    users: int
    level: float
    estimates: dict[str, Estimate]
    differences: dict[str, Difference]


def compare(
    per_user: UserMetric, *, baseline: str = BEST, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Compute bootstrap percentile intervals, and randomisation tests against ``baseline`` with Holm's correction.

    ``best`` is the model with the highest mean. Sakai, SIGIR 2006 (bootstrap); Smucker, Allan & Carterette, CIKM 2007
    (randomisation). Raises ValueError for an unknown baseline.
    """
    names, values_UM = per_user.models, per_user.values_UM
    means_M = values_UM.mean(axis=0)
    baseline = names[int(means_M.argmax())] if baseline == BEST else baseline
    if baseline not in names:
        raise ValueError(f"the baseline is {baseline!r}; the models are {', '.join(names)}, or {BEST}")
    at = names.index(baseline)
    others = [m for m in range(len(names)) if m != at]
    means_RM = bootstrap_means(values_UM, resamples=resamples, seed=seed)
    differences_UM = (values_UM - values_UM[:, [at]])[:, others]
    p_values = sign_flip(differences_UM, resamples=resamples, seed=seed + 1)
    corrected = holm(p_values)
    single = len(values_UM) < 2
    estimates = {name: Estimate(*_interval(means_RM[:, m], means_M[m], level, single)) for m, name in enumerate(names)}
    differences = {
        names[m]: Difference(
            *_interval(means_RM[:, m] - means_RM[:, at], means_M[m] - means_M[at], level, single),
            float(p_values[n]),
            float(corrected[n]),
        )
        for n, m in enumerate(others)
    }
    return Comparison(baseline, len(values_UM), level, estimates, differences)


def bootstrap_means(values_UM: Floats, *, resamples: int, seed: int) -> Floats:
    """Draw means (R, M) over users with replacement, the same users for every model, as one product per chunk."""
    n_users, rng = len(values_UM), np.random.default_rng(seed)

    def weights(rows: int) -> Floats:
        users = rng.integers(0, n_users, (rows, n_users), dtype=np.int32)
        users += np.arange(0, rows * n_users, n_users, dtype=np.int32)[:, None]
        counts = np.bincount(users.ravel(), minlength=rows * n_users)
        return counts.reshape(rows, n_users).astype(np.float64)

    return _products(weights, values_UM, resamples) / n_users


def sign_flip(differences_UM: Floats, *, resamples: int, seed: int) -> Floats:
    """Compute two-sided p-values (M,) of Fisher's randomisation test for pairs; 1 without differences.

    All 2^n signs of the n users who differ are enumerated where these are at most ``resamples``. Otherwise they are
    drawn, and the observed signs count as one more draw, so that p > 0 (Phipson & Smyth 2010).
    """
    differences_UM = differences_UM[(differences_UM != 0).any(axis=1)]
    n_users, n_models = differences_UM.shape
    if n_users == 0 or n_models == 0:
        return np.ones(n_models)
    exact, rng = 2**n_users <= resamples, np.random.default_rng(seed)
    patterns = iter(range(2**n_users if exact else 0))

    def signs(rows: int) -> Floats:
        if exact:
            bits = np.array(list(islice(patterns, rows)))[:, None] >> np.arange(n_users) & 1
        else:
            bits = rng.integers(0, 2, (rows, n_users), dtype=np.int8)
        return bits.astype(np.float64) * 2 - 1

    observed_M = np.abs(differences_UM.sum(axis=0))
    n_signs = 2**n_users if exact else resamples
    sums_RM = np.abs(_products(signs, differences_UM, n_signs))
    extreme: Floats = (sums_RM >= observed_M * (1 - 1e-9) - 1e-12).sum(axis=0)  # tolerance for the order of summation
    return extreme / n_signs if exact else (extreme + 1) / (n_signs + 1)


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Adjust p-values by Holm's (1979) step-down method, which controls the family-wise error; keeps the order."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def _products(weights: Callable[[int], Floats], values_UM: Floats, rows: int) -> Floats:
    """Multiply ``weights`` (rows, U), made in chunks, by ``values_UM``."""
    step, parts = max(ELEMENTS_PER_CHUNK // len(values_UM), 1), []
    with progress(rows, "resample users", unit="resamples") as bar:
        for start in range(0, rows, step):
            size = min(step, rows - start)
            parts.append(weights(size) @ values_UM)
            bar.add(size)
    return np.concatenate(parts)


def _interval(means_R: Floats, mean: float, level: float, single: bool) -> tuple[float, float, float]:
    if single:
        return float(mean), float("nan"), float("nan")
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(mean), float(low), float(high)


def _check_same_targets(ranks: Sequence[tuple[str, pa.Table]]) -> None:
    """Raise ValueError for ranks tables, with their models, that differ in users or targets from the first."""

    def user_targets(table: pa.Table) -> pa.Table:
        columns = {name: table[name].cast(pa.string()) for name in ("user_id", "target")}
        return pa.table(columns).sort_by([("user_id", "ascending"), ("target", "ascending")])

    model, table = ranks[0]
    first = user_targets(table)
    for other, table in ranks[1:]:
        if not first.equals(targets := user_targets(table)):
            different = set(first["user_id"].to_pylist()) ^ set(targets["user_id"].to_pylist())
            what = f"{len(different)} users" if different else "targets of the same users"
            raise ValueError(
                f"{model} and {other} cannot be compared: they differ in {what}. Evaluate both on one split"
            )
