"""Ranking metrics from ranks: one row per (user, target) in, the mean over users at several cut-offs out.

Nothing here sees a score: ranks are strict (ties were broken before), so metrics can be had again from disk.

Do probabilities mean what they say? Of recommendations given 5 %, does one in twenty come true?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

METRICS = ("recall", "hit_rate", "precision", "ndcg", "mrr", "map")
OF_ITEMS = ("recall", "ndcg", "users", "targets", "unrankable")  # what `warm_and_cold_items` keeps


def metrics_from_ranks(ranks: pa.Table, *, cutoffs: Sequence[int]) -> dict[str, float | int]:
    """Means over users of the columns of `user_metrics`, and what they were computed on.

    `users` and `targets` count the rows behind the means; `unrankable` the targets that were no candidate
    (rank 0, a miss); `cold_targets` those never seen in training, which are ranked like any other candidate.
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
    return means | counts


def warm_and_cold_items(ranks: pa.Table, *, cutoffs: Sequence[int]) -> dict[str, dict[str, float | int]]:
    """Recall and NDCG as if only the targets that training saw were asked for, `warm_items`, and only the others,
    `cold_items`; all items are ranked in both. Empty where training saw every target.

    Means are over the users who have such a target, whose other targets do not count: one with both is in both.
    """
    cold = ranks["cold"]
    if not pc.any(cold).as_py():
        return {}
    parts = {"warm_items": ranks.filter(pc.invert(cold)), "cold_items": ranks.filter(cold)}
    return {
        name: {
            metric: value
            for metric, value in metrics_from_ranks(part, cutoffs=cutoffs).items()
            if metric.partition("@")[0] in OF_ITEMS
        }
        for name, part in parts.items()
        if part.num_rows
    }


def user_metrics(ranks: pa.Table, *, cutoffs: Sequence[int]) -> pa.Table:
    """The metrics of every user in `ranks` (rank 1 is best, 0 is a target that was no candidate).

    With T the number of a user's targets (misses included) and r_1 < r_2 < … the ranks of those found, at k:

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
    users, codes = _encode(ranks["user_id"])
    rank = ranks["rank"].to_numpy().astype(np.int64)
    targets = np.bincount(codes, minlength=len(users))
    code, rank, nth = _found_in_order(codes, rank, users)

    columns: dict[str, Any] = {"user_id": users}
    for k in sorted(set(cutoffs)):
        hit = rank <= k
        user, r, j = code[hit], rank[hit], nth[hit]
        hits = np.bincount(user, minlength=len(users))
        first = j == 1
        gain = np.bincount(user, weights=1 / np.log2(r + 1), minlength=len(users))
        columns[f"recall@{k}"] = hits / targets
        columns[f"hit_rate@{k}"] = (hits > 0).astype(np.float64)
        columns[f"precision@{k}"] = hits / k
        columns[f"ndcg@{k}"] = gain / _ideal_gain(k)[np.minimum(targets, k) - 1]
        columns[f"mrr@{k}"] = np.bincount(user[first], weights=1 / r[first], minlength=len(users))
        columns[f"map@{k}"] = np.bincount(user, weights=j / r, minlength=len(users)) / targets
    return pa.table(columns)


def coverage(items: NDArray[np.integer], *, catalogue: int, cutoffs: Sequence[int]) -> dict[str, float]:
    """Share of the catalogue that is in some user's top k; `items` (U, K) index it from 1, 0 is none."""
    _check_cutoffs(cutoffs)
    if items.ndim != 2 or items.shape[1] < max(cutoffs):
        raise ValueError(
            f"items has shape {items.shape}; coverage@{max(cutoffs)} needs (users, at least {max(cutoffs)})"
        )
    if items.size and (items.min() < 0 or items.max() > catalogue):
        raise ValueError(f"items holds {items.min()}…{items.max()}, but the catalogue is 1…{catalogue}")
    shares = {}
    for k in sorted(set(cutoffs)):
        seen = np.zeros(catalogue + 1, dtype=bool)
        seen[items[:, :k].ravel()] = True
        shares[f"coverage@{k}"] = float(seen[1:].sum() / catalogue)
    return shares


def _found_in_order(
    codes: NDArray[np.int64], rank: NDArray[np.int64], users: pa.Array
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(user code, rank, j) of the targets that were found, where each is the j-th best of its user."""
    found = rank > 0
    code, rank = codes[found], rank[found]
    order = np.lexsort((rank, code))
    code, rank = code[order], rank[order]
    twice = (code[1:] == code[:-1]) & (rank[1:] == rank[:-1])
    if twice.any():
        at = int(np.flatnonzero(twice)[0])
        raise ValueError(
            f"user {users[int(code[at])].as_py()!r} has two targets at rank {rank[at]}: "
            "ranks are strict, so a target is listed twice; keep one row per (user, target)"
        )
    start = np.searchsorted(code, code, side="left")
    return code, rank, np.arange(1, len(code) + 1) - start


def _ideal_gain(k: int) -> NDArray[np.float64]:
    return np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))


def _encode(users: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    encoded = users.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary, encoded.indices.to_numpy().astype(np.int64)


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
        raise ValueError(
            f"ranks holds the rank {lowest}; ranks are 1, 2, … and 0 for a target that was no candidate"
        )


def _check_cutoffs(cutoffs: Sequence[int]) -> None:
    if not cutoffs or any(not isinstance(k, int | np.integer) or k < 1 for k in cutoffs):
        raise ValueError(
            f"cut-offs are whole numbers from 1, got {list(cutoffs)}: set `cutoffs` in the protocol"
        )


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
