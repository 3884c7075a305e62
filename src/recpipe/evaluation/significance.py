"""How sure a metric is: intervals for models and for their differences over the same users, and tests of these.

Users are resampled, models are not: an interval says what other users of this kind would give, a test whether a
difference could come from who happened to be asked. U users, M models, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.evaluation.metrics import user_metrics
from recpipe.progress import progress

AT_ONCE = 1 << 22  # elements of a chunk of resamples
BEST = "best"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class UserMetric:
    """One metric of several models for the same users; with several seeds of a model, its mean over them."""

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
        """From the ranks tables of every model, one a seed; ``protocols`` are their protocol ids.

        Raises ValueError for unequal protocol ids, for unequal users or targets, and for an unknown metric.
        """
        _check_protocols(protocols or {})
        cutoff = int(metric.partition("@")[2] or 0)
        first: tuple[str, pa.Table] | None = None
        columns, users = [], None
        for model, tables in ranks.items():
            for table in tables:
                first = first or (model, _asked(table))
                _check_same(first, (model, _asked(table)))
            found = [user_metrics(table, cutoffs=[cutoff]).sort_by("user_id") for table in tables]
            if metric not in found[0].column_names:
                known = ", ".join(name for name in found[0].column_names if name != "user_id")
                raise ValueError(f"unknown metric {metric!r}; ranks give {known}")
            users = found[0]["user_id"].to_numpy(zero_copy_only=False)
            columns.append(np.mean([table[metric].to_numpy() for table in found], axis=0))
        if users is None:
            raise ValueError("no model to compare: give the ranks of at least one")
        return cls(tuple(ranks), users, np.stack(columns, axis=1))


@dataclass(frozen=True)
class Estimate:
    """A mean over users and its interval; the bounds are NaN for one user, of whom nothing follows for others."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference(Estimate):
    """A model minus the baseline: ``p`` of the randomisation test, ``p_holm`` with all models allowed for."""

    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """``estimates`` by model, ``differences`` by every model but ``baseline``."""

    baseline: str
    users: int
    level: float
    estimates: dict[str, Estimate]
    differences: dict[str, Difference]


def compare(
    per_user: UserMetric, *, baseline: str = BEST, resamples: int = 10_000, level: float = 0.95, seed: int = 0
) -> Comparison:
    """Bootstrap percentile intervals, and randomisation tests against ``baseline`` corrected by Holm.

    ``best`` is the model with the highest mean. Both as for search engines: Sakai, SIGIR 2006 (bootstrap); Smucker,
    Allan & Carterette, CIKM 2007 (randomisation). Raises ValueError for an unknown baseline.
    """
    names, values_UM = per_user.models, per_user.values_UM
    means_M = values_UM.mean(axis=0)
    baseline = names[int(means_M.argmax())] if baseline == BEST else baseline
    if baseline not in names:
        raise ValueError(f"the baseline is {baseline!r}; the models are {', '.join(names)}, or say {BEST}")
    at = names.index(baseline)
    others = [m for m in range(len(names)) if m != at]
    means_RM = bootstrap_means(values_UM, resamples=resamples, seed=seed)
    differences_UM = (values_UM - values_UM[:, [at]])[:, others]
    p_values = sign_flip(differences_UM, resamples=resamples, seed=seed + 1)
    corrected = holm(p_values)
    alone = len(values_UM) < 2
    estimates = {
        name: Estimate(*_interval(means_RM[:, m], means_M[m], level, alone)) for m, name in enumerate(names)
    }
    differences = {
        names[m]: Difference(
            *_interval(means_RM[:, m] - means_RM[:, at], means_M[m] - means_M[at], level, alone),
            float(p_values[place]),
            float(corrected[place]),
        )
        for place, m in enumerate(others)
    }
    return Comparison(baseline, len(values_UM), level, estimates, differences)


def bootstrap_means(values_UM: Floats, *, resamples: int, seed: int) -> Floats:
    """Means (R, M) over as many users drawn with replacement, the same users for every model.

    How often each user is drawn, times the values: one matrix product a chunk, and no copy of the values per resample.
    """
    n_users, draw = len(values_UM), np.random.default_rng(seed)

    def weights(rows: int) -> Floats:
        drawn = draw.integers(0, n_users, (rows, n_users), dtype=np.int32)
        drawn += np.arange(0, rows * n_users, n_users, dtype=np.int32)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n_users)
        return counts.reshape(rows, n_users).astype(np.float64)

    return _products(weights, values_UM, resamples) / n_users


def sign_flip(differences_UM: Floats, *, resamples: int, seed: int) -> Floats:
    """Two-sided p-values (M,): how often differences of random sign have a mean as far from zero.

    Fisher's randomisation test for pairs. All 2^n signs of the n users who differ are tried where these are no more
    than ``resamples``; else as many are drawn, and the observed one counts as one more (Phipson & Smyth 2010), so that
    no p is 0. Without any difference p is 1.
    """
    differences_UM = differences_UM[(differences_UM != 0).any(axis=1)]
    n_users, n_models = differences_UM.shape
    if n_users == 0 or n_models == 0:
        return np.ones(n_models)
    every = 2**n_users <= resamples
    draw = np.random.default_rng(seed)
    patterns = iter(np.arange(2**n_users)) if every else None

    def signs(rows: int) -> Floats:
        if patterns is not None:
            codes = np.array([next(patterns) for _ in range(rows)])
            bits = (codes[:, None] >> np.arange(n_users)) & 1
        else:
            bits = draw.integers(0, 2, (rows, n_users), dtype=np.int8)
        return bits.astype(np.float64) * 2 - 1

    observed_M = np.abs(differences_UM.sum(axis=0))
    tried = 2**n_users if every else resamples
    sums_RM = np.abs(_products(signs, differences_UM, tried))
    as_far = (sums_RM >= observed_M * (1 - 1e-9) - 1e-12).sum(axis=0)  # equal sums, added up in another order
    return as_far / tried if every else (as_far + 1) / (tried + 1)


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Holm's (1979) step-down adjusted p-values, in the order given; what they reject has their family-wise error."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


def _products(weights: Callable[[int], Floats], values_UM: Floats, rows: int) -> Floats:
    """``weights`` (rows, U), made a chunk at a time, times ``values_UM``."""
    parts = []
    with progress(rows, "resample users", unit="resamples") as bar:
        for size in _chunks(rows, len(values_UM)):
            parts.append(weights(size) @ values_UM)
            bar.add(size)
    return np.concatenate(parts)


def _chunks(rows: int, width: int) -> Iterator[int]:
    step = max(AT_ONCE // width, 1)
    for start in range(0, rows, step):
        yield min(step, rows - start)


def _interval(means_R: Floats, mean: float, level: float, alone: bool) -> tuple[float, float, float]:
    if alone:
        return float(mean), float("nan"), float("nan")
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(mean), float(low), float(high)


def _check_protocols(protocols: Mapping[str, Sequence[str]]) -> None:
    names = {protocol: model for model, ids in protocols.items() for protocol in ids}
    if len(names) > 1:
        told = ", ".join(f"{model} by {protocol}" for protocol, model in sorted(names.items()))
        raise ValueError(f"models judged under unequal protocols cannot be compared: {told}")


def _asked(ranks: pa.Table) -> pa.Table:
    columns = {name: ranks[name].cast(pa.string()) for name in ("user_id", "target")}
    return pa.table(columns).sort_by([("user_id", "ascending"), ("target", "ascending")])


def _check_same(first: tuple[str, pa.Table], other: tuple[str, pa.Table]) -> None:
    if not first[1].equals(other[1]):
        mine, theirs = (set(table["user_id"].to_pylist()) for _, table in (first, other))
        what = f"{len(mine ^ theirs)} users" if mine != theirs else "targets of the same users"
        raise ValueError(
            f"{first[0]} and {other[0]} cannot be compared: they differ in {what}. Evaluate both on one split"
        )
