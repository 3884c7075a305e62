"""Recall and NDCG by segment: popularity of the target, history length, user activity, warm and cold targets.

Weighted segments of a kind sum to the overall metric. Shapes: N targets, I items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HEAD, MID, TAIL = 0, 1, 2
POPULARITY = ("head", "mid", "tail")
HEAD_SHARE = 0.2  # of the training events; the same for the tail
LENGTHS = (0, 1, 5, 10, 20, 50, 100, 200)  # lower edges of the groups of history length
QUARTERS = ("least active quarter", "second quarter", "third quarter", "most active quarter")
WARMTH = ("seen in training", "never seen in training")
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """Contribution of each target to the mean over users; all (N,)."""

    user: Codes
    weight: NDArray[np.float64]  # 1 / T of the user's T targets, over the number of users; sums to 1
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]

    @classmethod
    def of(cls, ranks: pa.Table, k: int) -> Targets:
        """Split recall@k and ndcg@k: ``sum(weight * recall)`` equals that of `metrics_from_ranks`."""
        users = ranks["user_id"].combine_chunks().dictionary_encode()
        user = users.indices.to_numpy().astype(np.int64)
        rank = ranks["rank"].to_numpy().astype(np.int64)
        per_user = np.bincount(user)
        hit = (rank > 0) & (rank <= k)
        ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))[np.minimum(per_user, k) - 1]
        gain = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1), 0)
        weight = 1 / per_user[user] / len(per_user)
        return cls(user, weight, hit.astype(np.float64), gain * per_user[user] / ideal[user])


def segments(ranks: pa.Table, *, item_ids: NDArray[np.object_], train_events: NDArray[np.integer], k: int) -> pa.Table:
    """Return a row per non-empty segment: by, segment, users, targets, weight, recall@k, ndcg@k.

    ``by`` is *popularity* (see `popularity_groups`), *history* (events before the target), *activity* (quarters of the
    users by these events) or *warmth* (whether the target has training events). The weights of a kind sum to 1.
    ``train_events`` (I,) are those of ``item_ids``. Raises ValueError for targets of another catalogue.
    """
    targets = Targets.of(ranks, k)
    item = pc.index_in(ranks["target"].cast(pa.string()), pa.array(item_ids, pa.string()))
    if item.null_count:
        unknown = ranks["target"].filter(pc.is_null(item))[0].as_py()
        raise ValueError(f"target {unknown!r} is not in the catalogue of {len(item_ids)} items: ranks of other data?")
    history = ranks["history"].to_numpy()
    per_user = history[np.unique(targets.user, return_index=True)[1]]
    quarter = np.searchsorted(np.quantile(per_user, [0.25, 0.5, 0.75]), per_user, side="left")  # equal ones share it
    codes: dict[str, tuple[Codes, Sequence[str]]] = {
        "popularity": (popularity_groups(train_events)[item.to_numpy().astype(np.int64)], POPULARITY),
        "history": (length_groups(history), length_names()),
        "activity": (quarter[targets.user], QUARTERS),
        "warmth": (ranks["cold"].to_numpy(zero_copy_only=False).astype(np.int64), WARMTH),
    }
    rows = [row for by, (code, names) in codes.items() for row in _rows(by, code, names, targets)]
    return pa.Table.from_pylist(rows)


def popularity_groups(train_events: NDArray[np.integer]) -> Codes:
    """Group items (I,) into head, mid and tail; Abdollahpouri et al., UMAP 2021 (arXiv 2103.06364).

    The head is the most popular items with 20 % of the training events, the tail the least popular ones and those
    without events. Items with equally many events share a group, which may exceed 20 %; a level at both ends is mid.
    """
    counts = np.asarray(train_events, np.int64)
    levels, level, items = np.unique(counts, return_inverse=True, return_counts=True)
    share = levels * items / max(counts.sum(), 1)
    below = np.cumsum(share) - share  # share of the events on less popular items
    above = 1 - below - share
    head, tail = above < HEAD_SHARE - 1e-12, below < HEAD_SHARE - 1e-12
    code = np.where(head & ~tail, HEAD, np.where(tail & ~head, TAIL, MID))
    code[levels == 0] = TAIL
    return code[level]


def length_groups(lengths: NDArray[np.integer]) -> Codes:
    """Return the index into `length_names` of each history length, both (U,)."""
    return np.searchsorted(LENGTHS, lengths, side="right") - 1


def length_names() -> list[str]:
    """Return the names of the groups of history length: 0, 1–4, 5–9, …."""
    pairs = zip(LENGTHS, (*LENGTHS[1:], None), strict=True)
    return [f"{a}+" if b is None else str(a) if b == a + 1 else f"{a}\u2013{b - 1}" for a, b in pairs]


def _rows(by: str, code: Codes, names: Sequence[str], targets: Targets) -> list[dict[str, object]]:
    n, weights = len(names), targets.weight
    users = np.bincount(np.unique(np.stack([code, targets.user]), axis=1)[0], minlength=n)
    count, weight = np.bincount(code, minlength=n), np.bincount(code, weights=weights, minlength=n)
    recall, ndcg = (np.bincount(code, weights=weights * x, minlength=n) for x in (targets.recall, targets.ndcg))
    return [
        {
            "by": by,
            "segment": name,
            "users": int(users[at]),
            "targets": int(count[at]),
            "weight": float(weight[at]),
            "recall": float(recall[at] / weight[at]),
            "ndcg": float(ndcg[at] / weight[at]),
        }
        for at, name in enumerate(names)
        if count[at]
    ]
