"""Full ranking of a fold by a model: ranks by counting, and the best items. U users, N targets, I items, K results."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from recpipe.data.sequences import Fold, Vocabulary
from recpipe.models.generator import Generator
from recpipe.models.ordering import rank_of, top_k
from recpipe.models.recommender import Recommender, Scorer
from recpipe.progress import progress

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
        for rows, scores in model.scored(fold.histories, exclude_seen=exclude_seen, candidates=candidates):
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
