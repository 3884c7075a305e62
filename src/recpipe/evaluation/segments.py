"""For whom a model is good: recall and NDCG by popularity of the target, length of history and activity of the user.

Every target brings a share of its user's metric, so that the segments of a kind, weighted, add up to the whole.
N targets, I items.
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
END = 0.2  # of the training events make the head, as many the tail
LENGTHS = (0, 1, 5, 10, 20, 50, 100, 200)  # from which number of events on
QUARTERS = ("least active quarter", "second quarter", "third quarter", "most active quarter")
WARMTH = ("seen in training", "never seen in training")
Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """Per target its share of the mean over users and what it brings to each metric; all (N,)."""

    user: Codes
    weight: NDArray[np.float64]  # 1 / T of the user's T targets, over all users 1
    recall: NDArray[np.float64]
    ndcg: NDArray[np.float64]

    @classmethod
    def of(cls, ranks: pa.Table, k: int) -> Targets:
        """``sum(weight * recall)`` is recall@k as `metrics_from_ranks` has it, and so with ndcg."""
        users = ranks["user_id"].combine_chunks().dictionary_encode()
        user = users.indices.to_numpy().astype(np.int64)
        rank = ranks["rank"].to_numpy().astype(np.int64)
        each = np.bincount(user)
        hit = (rank > 0) & (rank <= k)
        ideal = np.cumsum(1 / np.log2(np.arange(1, k + 1) + 1))[np.minimum(each, k) - 1]
        gain = np.where(hit, 1 / np.log2(np.maximum(rank, 1) + 1), 0)
        return cls(user, 1 / each[user] / len(each), hit.astype(np.float64), gain * each[user] / ideal[user])


def segments(
    ranks: pa.Table, *, item_ids: NDArray[np.object_], train_events: NDArray[np.integer], k: int
) -> pa.Table:
    """One row per segment that holds a target: by, segment, users, targets, weight, recall, ndcg (both at ``k``).

    ``by`` is *popularity* (see `popularity_groups`), *history* (events before the target), *activity* (quarters of the
    users by these events) and *warmth* (whether training saw the target). The weights of a kind sum to 1.
    ``train_events`` (I,) are those of ``item_ids``. Raises ValueError for targets of another catalogue.
    """
    found = Targets.of(ranks, k)
    item = _places(ranks["target"], item_ids)
    history = ranks["history"].to_numpy()
    kinds: dict[str, tuple[Codes, Sequence[str]]] = {
        "popularity": (popularity_groups(train_events)[item], POPULARITY),
        "history": (np.searchsorted(LENGTHS, history, side="right") - 1, length_names()),
        "activity": (_quarters(history, found.user), QUARTERS),
        "warmth": (ranks["cold"].to_numpy(zero_copy_only=False).astype(np.int64), WARMTH),
    }
    rows = [row for by, (code, names) in kinds.items() for row in _rows(by, code, names, found)]
    return pa.Table.from_pylist(rows)


def popularity_groups(train_events: NDArray[np.integer]) -> Codes:
    """Head, mid or tail (I,): the most popular items that hold 20 % of the training events, the least popular that do,
    and what is between, as Abdollahpouri et al., UMAP 2021 (arXiv 2103.06364) cut it.

    Items with equally many events stay together, so a group may hold more than its 20 %; where one level is at both
    ends, it is the middle. Items without any event are of the tail.
    """
    counts = np.asarray(train_events, np.int64)
    levels, level, items = np.unique(counts, return_inverse=True, return_counts=True)
    held = levels * items / max(counts.sum(), 1)
    below = np.cumsum(held) - held  # share of the events on less popular items
    above = 1 - below - held
    head, tail = above < END - 1e-12, below < END - 1e-12
    code = np.where(head & ~tail, HEAD, np.where(tail & ~head, TAIL, MID))
    code[levels == 0] = TAIL
    return code[level]


def length_names() -> list[str]:
    """What the history lengths are called: 0, 1–4, 5–9, …."""
    pairs = zip(LENGTHS, (*LENGTHS[1:], None), strict=True)
    return [f"{a}+" if b is None else str(a) if b == a + 1 else f"{a}\u2013{b - 1}" for a, b in pairs]


def _quarters(history: NDArray[np.integer], user: Codes) -> Codes:
    """Users of equally many events stay in one quarter."""
    _, first = np.unique(user, return_index=True)
    per_user = history[first]
    edges = np.quantile(per_user, [0.25, 0.5, 0.75])
    return np.searchsorted(edges, per_user, side="left").astype(np.int64)[user]


def _rows(by: str, code: Codes, names: Sequence[str], found: Targets) -> list[dict[str, object]]:
    weight = np.bincount(code, weights=found.weight, minlength=len(names))
    users = np.bincount(np.unique(np.stack([code, found.user]), axis=1)[0], minlength=len(names))
    targets = np.bincount(code, minlength=len(names))
    sums = [
        np.bincount(code, weights=found.weight * values, minlength=len(names))
        for values in (found.recall, found.ndcg)
    ]
    return [
        {
            "by": by,
            "segment": name,
            "users": int(users[at]),
            "targets": int(targets[at]),
            "weight": float(weight[at]),
            "recall": float(sums[0][at] / weight[at]),
            "ndcg": float(sums[1][at] / weight[at]),
        }
        for at, name in enumerate(names)
        if targets[at]
    ]


def _places(targets: pa.ChunkedArray, item_ids: NDArray[np.object_]) -> Codes:
    place = pc.index_in(targets.cast(pa.string()), pa.array(item_ids, pa.string()))
    if place.null_count:
        unknown = targets.filter(pc.is_null(place))[0].as_py()
        raise ValueError(
            f"target {unknown!r} is not in the catalogue of {len(item_ids)} items: ranks of other data?"
        )
    return place.to_numpy().astype(np.int64)
