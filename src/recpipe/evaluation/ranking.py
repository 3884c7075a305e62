"""Full ranking of a fold by a model, and sensitivity of a metric to the order of events with equal timestamps.

Shapes: U users, N targets, I items, K results.
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
from recpipe.evaluation.metrics import metric_value
from recpipe.evaluation.recommendations import recommendations_table
from recpipe.layers.top_k import count_true, rank_of, top_k
from recpipe.models.generator import Generator
from recpipe.models.recommender import Recommender, Scorer
from recpipe.progress import progress
from recpipe.training.bundle import Bundle

COMPARISONS_PER_CHUNK = 1 << 24  # elements, for users with several targets
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ranking:
    """Ranks of all targets of a fold and top-k lists of all users."""

    user: np.ndarray  # (N,) int64, row of the fold
    rank: np.ndarray  # (N,) int32, 1-based; 0 for a target that is no candidate or that a beam search missed
    is_candidate: np.ndarray  # (N,) bool, whether the model could have recommended the target
    candidates: np.ndarray  # (N,) int32, number of candidates of the user
    items: np.ndarray  # (U, K) int32, 0 for none
    scores: np.ndarray  # (U, K) float32
    log_normalizer: np.ndarray | None  # (U,) float32: log of the sum of exp(score) over the candidates
    seconds: float  # including the model

    def ranks(self) -> pa.Table:
        """Return the ranks table that metrics read, with rows of the fold as users and no target marked as cold."""
        return pa.table({"user_id": self.user, "rank": self.rank, "cold": np.zeros(len(self.rank), bool)})

    def table(
        self,
        fold: Fold,
        vocabulary: Vocabulary,
        *,
        warm: np.ndarray | None = None,
        transition_seen: np.ndarray | None = None,
    ) -> pa.Table:
        """Return the ranks table with external ids; ``warm`` (I + 1,) bool marks items with training events.

        ``transition_seen`` (N,) bool is a column of that name, see `recpipe.data.transitions`.
        """
        targets = fold.targets.items
        seen = {} if transition_seen is None else {"transition_seen": pa.array(transition_seen)}
        return pa.table(
            {
                "user_id": fold.histories.users[self.user].array,
                "target": pa.array(vocabulary.ids[targets - 1], pa.string()),
                "rank": pa.array(self.rank, pa.int32()),
                "candidates": pa.array(self.candidates, pa.int32()),
                "history": pa.array(fold.histories.lengths[self.user], pa.int32()),
                "cold": pa.array(np.zeros(len(targets), bool) if warm is None else ~warm[targets]),
                "is_candidate": pa.array(self.is_candidate | (self.rank > 0)),
                **seen,
            }
        )

    def recommendations(self, fold: Fold, bundle: Bundle, k: int) -> pa.Table:
        """Return the first ``k`` places of all lists as `recommendations_table` of the bundle that ranked them."""
        return recommendations_table(
            fold.histories.users,
            self.items[:, :k],
            self.scores[:, :k],
            self.log_normalizer,
            item_ids=bundle.vocabulary.ids,
            titles=bundle.title_table(),
            cold=bundle.model.needs_fallback(fold.histories),
        )


def rank_fold(
    model: Recommender, fold: Fold, *, exclude_seen: bool, k: int, candidates: torch.Tensor | None = None
) -> Ranking:
    """Rank every target of ``fold`` in the full catalogue, and list the best ``k`` items of each user.

    ``candidates`` (I + 1,) bool restricts the catalogue. Raises ValueError for NaN scores. Raises TypeError for a model
    that neither scores nor generates.
    """
    if isinstance(model, Generator):
        return _rank_lists(model, fold, exclude_seen=exclude_seen, k=k, candidates=candidates)
    if not isinstance(model, Scorer):
        raise TypeError(f"{type(model).__name__} neither scores the catalogue nor generates lists")
    started, targets, k = time.perf_counter(), fold.targets, min(k, model.n_items)
    owner = np.repeat(np.arange(len(fold)), targets.lengths)
    rank, n_candidates = np.zeros(len(owner), np.int32), np.zeros(len(fold), np.int32)
    items, values = np.zeros((len(fold), k), np.int32), np.full((len(fold), k), -np.inf, np.float32)
    normalizer = np.zeros(len(fold), np.float32) if model.probabilistic else None
    with progress(len(fold), "rank users", unit="users") as bar:
        for rows, scores in model.score_batches(fold.histories, exclude_seen=exclude_seen, candidates=candidates):
            best, best_scores = top_k(scores, k)
            items[rows], values[rows] = best.cpu().numpy(), best_scores.cpu().numpy()
            n_candidates[rows] = count_true(scores > -torch.inf).cpu().numpy()
            if normalizer is not None:
                normalizer[rows] = scores.logsumexp(1).cpu().numpy()
            positions, batch_rows = target_positions(targets, rows)
            rank[positions] = target_ranks(scores, batch_rows, targets.items[positions])
            bar.add(len(rows))
    is_candidate = rank > 0
    if model.searches:
        is_candidate = candidate_targets(model, fold, exclude_seen=exclude_seen, candidates=candidates)
    seconds = time.perf_counter() - started
    return Ranking(owner, rank, is_candidate, n_candidates[owner], items, values, normalizer, seconds)


def _rank_lists(
    model: Generator, fold: Fold, *, exclude_seen: bool, k: int, candidates: torch.Tensor | None
) -> Ranking:
    """Rank by lists as long as the beam; scores are log-probabilities of items, so their normalizer is 0."""
    started, k, histories = time.perf_counter(), min(k, model.n_items), fold.histories
    owner = np.repeat(np.arange(len(fold)), fold.targets.lengths)
    length = min(max(k, model.config.beam), model.n_items)
    items, values = model.recommend(histories, length, exclude_seen=exclude_seen, candidates=candidates)
    rank = list_ranks(items[owner], fold.targets.items)
    allowed = model.allowed_count(histories, exclude_seen=exclude_seen, candidates=candidates).astype(np.int32)
    seconds = time.perf_counter() - started
    normalizer = np.zeros(len(fold), np.float32) if model.probabilistic else None
    is_candidate = candidate_targets(model, fold, exclude_seen=exclude_seen, candidates=candidates)
    return Ranking(owner, rank, is_candidate, allowed[owner], items[:, :k], values[:, :k], normalizer, seconds)


def candidate_targets(
    model: Recommender, fold: Fold, *, exclude_seen: bool, candidates: torch.Tensor | None
) -> np.ndarray:
    """Mark the targets (N,) that a search could reach: with an id, among ``candidates``, not excluded as seen."""
    allowed = model.items_with_ids()
    if candidates is not None:
        allowed &= candidates.cpu().numpy()
    mask = allowed[fold.targets.items]
    return mask & ~fold.seen_targets() if exclude_seen else mask


def list_ranks(lists_NK: np.ndarray, targets_N: np.ndarray) -> np.ndarray:
    """Find the 1-based place of each target in its list (N,); 0 where it is absent."""
    hit = lists_NK == targets_N[:, None]
    return np.where(hit.any(1), hit.argmax(1) + 1, 0).astype(np.int32)


def target_positions(targets: Sequences, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the flat positions (n,) of all targets of the users ``rows``, and the index into ``rows`` of each."""
    lengths = targets.lengths[rows]
    positions = np.arange(lengths.sum()) + np.repeat(targets.offsets[rows] + lengths - np.cumsum(lengths), lengths)
    return positions, np.repeat(np.arange(len(rows)), lengths)


def target_ranks(scores_BI: torch.Tensor, rows: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Rank the pairs (rows, items), both (n,), in chunks of bounded memory; 0 for items that score -inf."""
    row = torch.from_numpy(rows).to(scores_BI.device)
    item = torch.from_numpy(items.astype(np.int64)).to(scores_BI.device)
    chunk = len(row) if len(row) == len(scores_BI) else COMPARISONS_PER_CHUNK // scores_BI.shape[1]
    parts = zip(*(torch.split(part, max(chunk, 1)) for part in (row, item)), strict=True)
    return np.concatenate([rank_of(scores_BI, *part).cpu().numpy() for part in parts])


def fold_metric(model: Recommender, fold: Fold, protocol: Protocol, metric: str) -> float:
    """Compute one metric at a cut-off, such as ndcg@10. Raises ValueError for an unknown metric."""
    return metric_value(fold_ranks(model, fold, protocol), metric)


def fold_ranks(model: Recommender, fold: Fold, protocol: Protocol) -> pa.Table:
    """Rank the targets of ``fold`` under ``protocol``; ``user_id`` is the row of the fold."""
    return rank_fold(model, fold.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=1).ranks()


@dataclass(frozen=True)
class TieSensitivity:
    """A metric for permutations of events with equal timestamps."""

    metric: str
    as_ordered: float  # in the order of the source, as on the leaderboard
    values: tuple[float, ...]  # one per permutation
    low: float  # of the middle 95 % of the values
    high: float
    other_target: float  # share of users whose target may change
    other_history: float  # share of users with equal timestamps in the history


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
    """Evaluate a trained model on permuted test folds; equal seeds give all models the same permutations.

    The target is swapped with a random event of the same second outside ``train``, the training data of the bundle;
    events of one second in the history are shuffled. Training itself is not repeated, see ``protocol.ties: shuffle``.
    Raises ValueError without timestamps and for fewer than one permutation.
    """
    times = test.histories.timestamps
    if times is None or test.targets.timestamps is None:
        raise ValueError(f"{protocol.dataset} has no timestamps, so there are no events with equal ones")
    if protocol.target_events is not None:
        raise ValueError("ties are permuted without event types: set protocol.target_events to null, or leave out ties")
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; at least 1 is needed")
    unseen = unseen_events(test.histories, train)
    with progress(permutations, "permute ties", unit="permutations") as bar:
        values = [
            fold_metric(bundle.model, shuffle_ties(test, unseen, seed + n), protocol, metric)
            for n in bar.over(range(permutations))
        ]
    low, high = np.quantile(values, [0.025, 0.975])
    owner = np.repeat(np.arange(len(test)), test.histories.lengths)
    tied = (owner[1:] == owner[:-1]) & (times[1:] == times[:-1])
    return TieSensitivity(
        metric,
        fold_metric(bundle.model, test, protocol, metric),
        tuple(values),
        float(low),
        float(high),
        float((exchangeable_events(test, unseen) > 0).mean()),
        float((np.bincount(owner[1:][tied], minlength=len(test)) > 0).mean()),
    )


def unseen_events(histories: Sequences, train: Sequences) -> Ints:
    """Count the last events of each history (U,) that are not in ``train``."""
    rows = histories.users.index_in(train.users)
    in_train = np.append(train.lengths, 0)[rows]  # 0 for the row -1
    return np.maximum(histories.lengths - in_train, 0)


def exchangeable_events(fold: Fold, unseen: Ints) -> Ints:
    """Count the ``unseen`` last events of each history (U,) in the second of the user's only target."""
    histories, targets = fold.histories, fold.targets
    assert histories.timestamps is not None and targets.timestamps is not None
    owner = np.repeat(np.arange(len(fold)), histories.lengths)
    from_end = histories.offsets[owner + 1] - np.arange(len(owner))
    second, single = np.full(len(fold), np.iinfo(np.int64).min), targets.lengths == 1
    second[single] = targets.timestamps[targets.offsets[:-1][single]]
    same = (histories.timestamps == second[owner]) & (from_end <= unseen[owner])
    return np.bincount(owner[same], minlength=len(fold))


def shuffle_ties(fold: Fold, unseen: Ints, seed: int) -> Fold:
    """Permute a fold once; users with several targets keep them."""
    rng = np.random.default_rng(seed)
    back = rng.integers(0, exchangeable_events(fold, unseen) + 1)  # n: the n-th event from the end, 0: no swap
    users = np.flatnonzero(back)
    position, target_position = fold.histories.offsets[users + 1] - back[users], fold.targets.offsets[users]
    owner = np.repeat(np.arange(len(fold)), fold.histories.lengths)
    assert fold.histories.timestamps is not None
    order = np.lexsort((rng.random(len(owner)), fold.histories.timestamps, owner))

    def swap(history: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        history, target = history.copy(), target.copy()
        history[position], target[target_position] = target[target_position], history[position]
        return history[order], target

    items, target_items = swap(fold.histories.items, fold.targets.items)
    columns: dict[str, Any] = {"items": items}
    target_columns: dict[str, Any] = {"items": target_items}
    for name in ("ratings", "weights"):
        values, target_values = getattr(fold.histories, name), getattr(fold.targets, name)
        if values is not None:
            missing = np.full(len(target_items), np.nan, values.dtype)
            columns[name], target_columns[name] = swap(values, missing if target_values is None else target_values)
    return Fold(replace(fold.histories, **columns), replace(fold.targets, **target_columns))
