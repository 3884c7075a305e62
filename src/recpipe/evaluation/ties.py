"""How much a metric owes to the order of events at the same second, which the source had to invent.

The model stays as it was trained; its question changes. Of a user's events that training never saw, any that shares
the target's second could as well have come last: one of them, drawn with equal chance, becomes the target, and the
others go to the history. Events of one second in the history are shuffled. So no target is asked that training was
told: what other orders would do to training itself takes training under ``protocol.ties: shuffle``. U users.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.progress import progress
from recpipe.training.bundle import Bundle

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class TieSensitivity:
    """``values`` of the metric, one a permutation; ``low`` and ``high`` hold the middle 95 % of them."""

    metric: str
    as_ordered: float  # by the source, as on the leaderboard
    values: tuple[float, ...]
    low: float
    high: float
    other_target: float  # share of users who might have been asked for another item
    other_history: float  # share of users with two events at one second in the history


def tie_sensitivity(
    bundle: Bundle,
    test: Fold,
    train: Sequences,
    protocol: Protocol,
    *,
    metric: str = "ndcg@10",
    permutations: int = 20,
    seed: int = 0,
) -> TieSensitivity:
    """``train``: what ``bundle`` was trained on. Equal seeds give all models the same permutations.

    Raises ValueError without timestamps and for fewer than one permutation.
    """
    times = test.histories.timestamps
    if times is None or test.targets.timestamps is None:
        raise ValueError(f"{protocol.dataset} has no timestamps, so no two events are at the same one")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; at least 1 is needed")
    unseen = unseen_events(test.histories, train)
    with progress(permutations, "permute ties", unit="permutations") as bar:
        values = [
            _measured(bundle, shuffled(test, unseen, seed + n), protocol, metric)
            for n in bar.over(range(permutations))
        ]
    low, high = np.quantile(values, [0.025, 0.975])
    return TieSensitivity(
        metric,
        _measured(bundle, test, protocol, metric),
        tuple(values),
        float(low),
        float(high),
        float((exchangeable(test, unseen) > 0).mean()),
        float((_tied(test.histories) > 0).mean()),
    )


def unseen_events(histories: Sequences, train: Sequences) -> Counts:
    """How many of the last events of each history (U,) training did not have."""
    trained = dict(zip(train.users.tolist(), train.lengths.tolist(), strict=True))
    known = np.array([trained.get(user, 0) for user in histories.users.tolist()], np.int64)
    return np.maximum(histories.lengths - known, 0)


def exchangeable(fold: Fold, unseen: Counts) -> Counts:
    """How many of the ``unseen`` last events of each history (U,) are at the second of the user's only target."""
    histories, targets = fold.histories, fold.targets
    assert histories.timestamps is not None and targets.timestamps is not None
    owner = np.repeat(np.arange(len(fold)), histories.lengths)
    from_end = histories.offsets[owner + 1] - np.arange(len(owner))
    second = np.full(len(fold), np.iinfo(np.int64).min)
    single = targets.lengths == 1
    second[single] = targets.timestamps[targets.offsets[:-1][single]]
    same = (histories.timestamps == second[owner]) & (from_end <= unseen[owner])
    return np.bincount(owner[same], minlength=len(fold))


def shuffled(fold: Fold, unseen: Counts, seed: int) -> Fold:
    """One permutation; a user with several targets keeps them."""
    draw = np.random.default_rng(seed)
    back = draw.integers(
        0, exchangeable(fold, unseen) + 1
    )  # 0: the target stays, n: the n-th event from the end
    users = np.flatnonzero(back)
    inside, outside = fold.histories.offsets[users + 1] - back[users], fold.targets.offsets[users]
    order = _shuffled_order(fold.histories, draw)
    histories: dict[str, Any] = {}
    targets: dict[str, Any] = {}
    for name in ("items", "ratings"):
        mine, theirs = getattr(fold.histories, name), getattr(fold.targets, name)
        if mine is not None:
            theirs = np.full(len(fold.targets.items), np.nan, mine.dtype) if theirs is None else theirs
            mine, theirs = mine.copy(), theirs.copy()
            mine[inside], theirs[outside] = theirs[outside], mine[inside]
            histories[name], targets[name] = mine[order], theirs
    return Fold(replace(fold.histories, **histories), replace(fold.targets, **targets))


def _shuffled_order(histories: Sequences, draw: np.random.Generator) -> Counts:
    assert histories.timestamps is not None
    owner = np.repeat(np.arange(len(histories)), histories.lengths)
    return np.lexsort((draw.random(len(owner)), histories.timestamps, owner))


def _tied(histories: Sequences) -> Counts:
    owner, times = np.repeat(np.arange(len(histories)), histories.lengths), histories.timestamps
    assert times is not None
    same = (owner[1:] == owner[:-1]) & (times[1:] == times[:-1])
    return np.bincount(owner[1:][same], minlength=len(histories))


def _measured(bundle: Bundle, fold: Fold, protocol: Protocol, metric: str) -> float:
    ranking = rank_fold(bundle.model, fold.asking(protocol), exclude_seen=protocol.exclude_seen, k=1)
    return float(metrics_from_ranks(ranking.ranks(), cutoffs=[int(metric.partition("@")[2])])[metric])
