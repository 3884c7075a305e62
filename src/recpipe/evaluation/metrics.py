"""Ranking metrics from a table of ranks, coverage of the catalogue, and calibration of probabilities.

A ranks table has a row per (user, target): user_id, target, rank (strict, ties are broken before), cold.
Shapes: U users, K results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MISSES = ("unrankable", "outside_candidates", "missed_by_beam")
SUBSET_METRICS = ("recall", "ndcg", "users", "targets", *MISSES)  # of `metrics_of_halves`
Ints = NDArray[np.int64]


def metrics_from_ranks(ranks: pa.Table, *, cutoffs: Sequence[int]) -> dict[str, float | int]:
    """Average the columns of `user_metrics` over users, and count what they were computed on.

    `users` and `targets` count rows, `cold_targets` the targets without training events, which are ranked like all
    others. `unrankable` are misses without a rank, the sum of `outside_candidates` (seen by the user, or not in the
    model's catalogue) and `missed_by_beam` (candidates that a beam search did not reach). Tables of older versions have
    no column `is_candidate`, and then only the sum is known.
    """
    table = user_metrics(ranks, cutoffs=cutoffs)
    means = {name: float(np.mean(table[name].to_numpy())) for name in table.column_names if name != "user_id"}
    rank = ranks["rank"].to_numpy()
    counts = {
        "users": table.num_rows,
        "targets": ranks.num_rows,
        "unrankable": int((rank == 0).sum()),
        "cold_targets": int(pc.sum(ranks["cold"]).as_py() or 0),
    }
    if "is_candidate" in ranks.column_names:
        is_candidate = ranks["is_candidate"].to_numpy()
        counts["outside_candidates"] = int((~is_candidate).sum())
        counts["missed_by_beam"] = int((is_candidate & (rank == 0)).sum())
    return means | counts


def metric_value(ranks: pa.Table, metric: str, *, setting: str = "metric") -> float:
    """Compute one metric at a cut-off, such as ndcg@10. Raises ValueError, naming ``setting``, for an unknown one."""
    return metric_values(ranks, metric, setting=setting)[metric]


def metric_values(
    ranks: pa.Table, metric: str, others: Sequence[str] = (), *, setting: str = "metric"
) -> dict[str, float]:
    """Compute ``metric``, such as ndcg@10, and ``others``, such as recall, at its cut-off, by name.

    Raises ValueError, naming ``setting``, for an unknown metric.
    """
    cutoff = metric.partition("@")[2]
    values = metrics_from_ranks(ranks, cutoffs=[int(cutoff)]) if cutoff.isdigit() else {}
    if metric not in values:
        names = [name.partition("@")[0] for name in user_metrics(ranks, cutoffs=[1]).column_names[1:]]
        raise ValueError(f"{setting} is {metric!r}; allowed: {', '.join(names)}, each at a cut-off, such as ndcg@10")
    return {name: float(values[name]) for name in dict.fromkeys([metric, *(f"{other}@{cutoff}" for other in others)])}


def warm_and_cold_items(ranks: pa.Table, *, cutoffs: Sequence[int]) -> dict[str, dict[str, float | int]]:
    """Compute recall and NDCG for targets with training events, `warm_items`, and without, `cold_items`.

    As ``metrics_of_halves``; empty where all targets have training events.
    """
    if not pc.any(ranks["cold"]).as_py():
        return {}
    halves = metrics_of_halves(ranks, "cold", cutoffs=cutoffs)
    names = {False: "warm_items", True: "cold_items"}
    return {name: halves[value] for value, name in names.items() if value in halves}


def memorised_and_generalised(ranks: pa.Table, *, cutoffs: Sequence[int]) -> dict[str, dict[str, float | int]]:
    """Compute recall and NDCG for targets that follow the last item in training, `memorised`, and not, `generalised`.

    As ``metrics_of_halves``; empty for ranks of older versions, which have no column ``transition_seen``.
    """
    if "transition_seen" not in ranks.column_names:
        return {}
    halves = metrics_of_halves(ranks, "transition_seen", cutoffs=cutoffs)
    names = {True: "memorised", False: "generalised"}
    return {name: halves[value] for value, name in names.items() if value in halves}


def metrics_of_halves(ranks: pa.Table, column: str, *, cutoffs: Sequence[int]) -> dict[bool, dict[str, float | int]]:
    """Compute recall and NDCG for the targets where the bool ``column`` is False and where it is True.

    All items are candidates in both. Means are over users who have such a target, counting only these targets. A half
    without targets is left out.
    """
    result = {}
    for value in (False, True):
        part = ranks.filter(pc.equal(ranks[column], value))
        if part.num_rows:
            values = metrics_from_ranks(part, cutoffs=cutoffs)
            result[value] = {key: each for key, each in values.items() if key.partition("@")[0] in SUBSET_METRICS}
    return result


def user_metrics(ranks: pa.Table, *, cutoffs: Sequence[int]) -> pa.Table:
    """Compute the metrics of every user in `ranks` (rank 1 is best, 0 is a miss without a rank).

    With T the number of a user's targets (misses included) and r_1 < r_2 < … the ranks of the hits, at k:

    - `recall`     |{j: r_j ≤ k}| / T
    - `hit_rate`   1 if r_1 ≤ k else 0
    - `precision`  |{j: r_j ≤ k}| / k, also for a list shorter than k
    - `ndcg`       Σ_{r_j ≤ k} 1/log2(r_j + 1) / Σ_{i ≤ min(T, k)} 1/log2(i + 1); Järvelin & Kekäläinen 2002
                   (doi 10.1145/582415.582418), gains 0 and 1
    - `mrr`        1/r_1 if r_1 ≤ k else 0; Voorhees 1999 (TREC-8 question answering)
    - `map`        Σ_{r_j ≤ k} (j / r_j) / T; Manning, Raghavan & Schütze 2008, eq. 8.8, cut at k

    `map` divides by T as trec_eval and ranx do; Kaggle's "MAP@k" divides by min(T, k): different where T > k.
    """
    _check(ranks, cutoffs)
    encoded = ranks["user_id"].combine_chunks().dictionary_encode()
    users, codes = encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)
    targets = np.bincount(codes, minlength=len(users))
    code, rank, nth = _hits_in_order(codes, ranks["rank"].to_numpy().astype(np.int64), users)

    columns: dict[str, pa.Array | NDArray[np.float64]] = {"user_id": users}
    for k in sorted(set(cutoffs)):
        hit = rank <= k
        user, r, j, first = code[hit], rank[hit], nth[hit], nth[hit] == 1
        hits = np.bincount(user, minlength=len(users))
        gain = np.bincount(user, weights=1 / np.log2(r + 1), minlength=len(users))
        ideal_gain = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))[np.minimum(targets, k) - 1]
        columns[f"recall@{k}"] = hits / targets
        columns[f"hit_rate@{k}"] = (hits > 0).astype(np.float64)
        columns[f"precision@{k}"] = hits / k
        columns[f"ndcg@{k}"] = gain / ideal_gain
        columns[f"mrr@{k}"] = np.bincount(user[first], weights=1 / r[first], minlength=len(users))
        columns[f"map@{k}"] = np.bincount(user, weights=j / r, minlength=len(users)) / targets
    return pa.table(columns)


def _hits_in_order(codes: Ints, rank: Ints, users: pa.Array) -> tuple[Ints, Ints, Ints]:
    """Return (user code, rank, j) of ranked targets, where each is the j-th best of its user."""
    code, rank = codes[rank > 0], rank[rank > 0]
    order = np.lexsort((rank, code))
    code, rank = code[order], rank[order]
    twice = np.flatnonzero((code[1:] == code[:-1]) & (rank[1:] == rank[:-1]))
    if len(twice):
        at = int(twice[0])
        raise ValueError(
            f"user {users[int(code[at])].as_py()!r} has two targets at rank {rank[at]}: "
            "ranks are strict, so a target is listed twice; keep one row per (user, target)"
        )
    return code, rank, np.arange(1, len(code) + 1) - np.searchsorted(code, code, side="left")


def _check(ranks: pa.Table, cutoffs: Sequence[int]) -> None:
    _check_cutoffs(cutoffs)
    missing = {"user_id", "rank", "cold"} - set(ranks.column_names)
    if missing:
        raise ValueError(f"ranks lacks the columns {sorted(missing)}; it has {ranks.column_names}")
    if ranks.num_rows == 0:
        raise ValueError("ranks is empty: no user was evaluated; look at the split's step table and protocol")
    for name in ("user_id", "rank"):
        if ranks[name].null_count:
            raise ValueError(f"ranks has {ranks[name].null_count} rows without {name}")
    lowest = pc.min(ranks["rank"]).as_py()
    if lowest < 0:
        raise ValueError(f"ranks holds the rank {lowest}; ranks are 1, 2, … and 0 for a target that was no candidate")


def _check_cutoffs(cutoffs: Sequence[int]) -> None:
    if not cutoffs or any(not isinstance(k, int | np.integer) or k < 1 for k in cutoffs):
        raise ValueError(f"cut-offs are whole numbers from 1, got {list(cutoffs)}: set `cutoffs` in the protocol")


def coverage(items: NDArray[np.integer], *, catalogue: int, cutoffs: Sequence[int]) -> dict[str, float]:
    """Compute the share of the catalogue in the top k of any user; `items` (U, K) counts from 1, 0 is none.

    Raises ValueError for fewer columns than the largest cut-off, and for indices outside of the catalogue.
    """
    _check_cutoffs(cutoffs)
    if items.ndim != 2 or items.shape[1] < max(cutoffs):
        raise ValueError(f"items has shape {items.shape}; coverage@{max(cutoffs)} needs (users, ≥ {max(cutoffs)})")
    if items.size and (items.min() < 0 or items.max() > catalogue):
        raise ValueError(f"items holds {items.min()}…{items.max()}, but the catalogue is 1…{catalogue}")
    counts = {k: np.bincount(items[:, :k].ravel(), minlength=catalogue + 1)[1:] for k in sorted(set(cutoffs))}
    return {f"coverage@{k}": float((count > 0).sum() / catalogue) for k, count in counts.items()}


@dataclass(frozen=True)
class Calibration:
    """Reliability diagram in bins of equally many recommendations, least probable first."""

    recommendations: list[int]  # in each bin
    probability: list[float]  # mean of the bin
    frequency: list[float]  # share of hits in the bin
    error: float  # expected calibration error; Naeini et al., AAAI 2015
    said: float  # hits per user expected by the sum of the probabilities
    so: float  # and observed


def calibration(recommendations: pa.Table, ranks: pa.Table, *, bins: int = 10) -> Calibration | None:
    """Compare probabilities of recommendations with observed hits.

    None without probabilities, and for users with several targets, as a probability is that of the next item.
    """
    table = recommendations.filter(pc.is_valid(recommendations["probability"]))
    users = ranks["user_id"].cast(pa.string())
    if not table.num_rows or len(pc.unique(users)) < len(users):
        return None
    row = pc.index_in(table["user_id"].cast(pa.string()), users.combine_chunks())
    is_hit = pc.equal(ranks["target"].cast(pa.string()).take(row), table["item_id"].cast(pa.string()))
    probability = table["probability"].to_numpy().astype(np.float64)
    hit = pc.fill_null(is_hit, False).to_numpy(zero_copy_only=False).astype(np.float64)
    edges = np.unique(np.quantile(probability, np.arange(1, bins) / bins))
    # equal probabilities share a bin, and no bin is empty
    bin_of = np.unique(np.searchsorted(edges, probability, side="left"), return_inverse=True)[1]
    size = np.bincount(bin_of)
    expected, observed = (np.bincount(bin_of, weights=x) / size for x in (probability, hit))
    return Calibration(
        size.tolist(),
        expected.tolist(),
        observed.tolist(),
        float((size * np.abs(expected - observed)).sum() / size.sum()),
        float(probability.sum() / len(users)),
        float(hit.sum() / len(users)),
    )
