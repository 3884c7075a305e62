"""Full ranking of a fold by a model: ranks by counting, and the best items. U users, N targets, I items, K results.

How much a metric owes to the order of events at the same second, which the source had to invent.

The model stays as it was trained; its question changes. Of a user's events that training never saw, any that shares
the target's second could as well have come last: one of them, drawn with equal chance, becomes the target, and the
others go to the history. Events of one second in the history are shuffled. So no target is asked that training was
told: what other orders would do to training itself takes training under ``protocol.ties: shuffle``. U users.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.layers.top_k import rank_of, top_k
from recpipe.models.generator import Generator
from recpipe.models.recommender import Recommender, Scorer
from recpipe.progress import progress
from recpipe.training.bundle import Bundle

TARGETS_AT_ONCE = 1 << 24  # elements of the comparison for users with several targets


@dataclass(frozen=True)
class Ranking:
    """One row per (user, target) in ``user``, ``rank``, ``candidates``; one row per user in ``items``, ``scores``."""

    user: np.ndarray  # (N,) int64, row of the fold
    rank: np.ndarray  # (N,) int32, 1-based; 0: the target was not among the candidates
    candidates: np.ndarray  # (N,) int32
    items: np.ndarray  # (U, K) int32, 0 is none
    scores: np.ndarray  # (U, K) float32
    log_normalizer: np.ndarray | None  # (U,) float32: log of the sum of exp(score) over the candidates
    seconds: float  # the model included

    def ranks(self) -> pa.Table:
        """What metrics need, with rows of the fold in place of users and nothing known of which targets are cold."""
        return pa.table({"user_id": self.user, "rank": self.rank, "cold": np.zeros(len(self.rank), bool)})

    def table(self, fold: Fold, vocabulary: Vocabulary, *, known: np.ndarray | None = None) -> pa.Table:
        """The ranks with external ids; ``known`` (I + 1,) bool says which items training saw."""
        targets = fold.targets.items
        return pa.table(
            {
                "user_id": pa.array(fold.histories.users[self.user], pa.string()),
                "target": pa.array(vocabulary.ids[targets - 1], pa.string()),
                "rank": pa.array(self.rank, pa.int32()),
                "candidates": pa.array(self.candidates, pa.int32()),
                "history": pa.array(fold.histories.lengths[self.user], pa.int32()),
                "cold": pa.array(np.zeros(len(targets), bool) if known is None else ~known[targets]),
            }
        )


def rank_fold(
    model: Recommender, fold: Fold, *, exclude_seen: bool, k: int, candidates: torch.Tensor | None = None
) -> Ranking:
    """Ranks every target of ``fold`` among the full catalogue and keeps each user's best ``k`` items.

    A target that is excluded (seen before, with ``exclude_seen``) gets rank 0: a miss, to be counted as such; so does
    one that is not in the list of a generator, which is as long as its beam. ``candidates`` (I + 1,) bool restricts
    the catalogue. Raises ValueError for NaN scores.
    """
    if isinstance(model, Generator):
        return _rank_lists(model, fold, exclude_seen=exclude_seen, k=k, candidates=candidates)
    if not isinstance(model, Scorer):
        raise TypeError(f"{type(model).__name__} neither scores the catalogue nor generates lists")
    started = time.perf_counter()
    targets, k = fold.targets, min(k, model.n_items)
    owner = np.repeat(np.arange(len(fold)), targets.lengths)
    rank, free = np.zeros(len(owner), np.int32), np.zeros(len(fold), np.int32)
    items, values = np.zeros((len(fold), k), np.int32), np.full((len(fold), k), -np.inf, np.float32)
    normalizer = np.zeros(len(fold), np.float32) if model.probabilistic else None
    with progress(len(fold), "rank users", unit="users") as bar:
        for rows, scores in model.score_batches(
            fold.histories, exclude_seen=exclude_seen, candidates=candidates
        ):
            best, score = top_k(scores, k)
            items[rows], values[rows] = best.cpu().numpy(), score.cpu().numpy()
            free[rows] = (scores > -torch.inf).sum(1).cpu().numpy()
            if normalizer is not None:
                normalizer[rows] = scores.logsumexp(1).cpu().numpy()
            place, row = _places(targets.offsets, rows)
            wanted = torch.from_numpy(targets.items[place].astype(np.int64)).to(scores.device)
            rank[place] = _ranks(scores, torch.from_numpy(row).to(scores.device), wanted)
            bar.add(len(rows))
    return Ranking(owner, rank, free[owner], items, values, normalizer, time.perf_counter() - started)


def _rank_lists(
    model: Generator, fold: Fold, *, exclude_seen: bool, k: int, candidates: torch.Tensor | None
) -> Ranking:
    """Scores are log-probabilities of items already, so their normalizer is 0."""
    started = time.perf_counter()
    targets = fold.targets
    owner = np.repeat(np.arange(len(fold)), targets.lengths)
    most = min(max(k, model.config.beam), model.n_items)
    histories = fold.histories
    items, values = model.recommend(histories, most, exclude_seen=exclude_seen, candidates=candidates)
    found = items[owner] == targets.items[:, None]
    rank = np.where(found.any(1), found.argmax(1) + 1, 0).astype(np.int32)
    free = model.allowed_count(histories, exclude_seen=exclude_seen, candidates=candidates).astype(np.int32)
    seconds = time.perf_counter() - started
    normalizer = np.zeros(len(fold), np.float32) if model.probabilistic else None
    k = min(k, model.n_items)
    return Ranking(owner, rank, free[owner], items[:, :k], values[:, :k], normalizer, seconds)


def _places(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Flat places (n,) of all targets of ``rows``, and for each the place of its user among ``rows``."""
    lengths = offsets[rows + 1] - offsets[rows]
    ends = np.cumsum(lengths)
    place = np.arange(lengths.sum()) + np.repeat(offsets[rows] - (ends - lengths), lengths)
    return place, np.repeat(np.arange(len(rows)), lengths)


def _ranks(scores: torch.Tensor, row: torch.Tensor, wanted: torch.Tensor) -> np.ndarray:
    if len(row) == len(scores):
        return rank_of(scores, row, wanted).cpu().numpy()
    step = max(TARGETS_AT_ONCE // scores.shape[1], 1)
    parts = [
        rank_of(scores, row[i : i + step], wanted[i : i + step]).cpu().numpy()
        for i in range(0, len(row), step)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


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
    ranking = rank_fold(
        bundle.model, fold.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=1
    )
    return float(metrics_from_ranks(ranking.ranks(), cutoffs=[int(metric.partition("@")[2])])[metric])
