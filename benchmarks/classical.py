"""Quality of ease, slim, ials and popular on MovieLens 1M beside other implementations and published numbers.

    unzip ml-1m.zip -d data/01_raw        # so that there is data/01_raw/ml-1m/ratings.dat
    python benchmarks/classical.py [--models ease+ials] [--protocols recbole] [--peers]

Protocols:

- ncf: He et al., Neural Collaborative Filtering, WWW 2017. All 1,000,209 ratings are events; the last one of each user
  is his target, and all others are training events. The target is ranked among 99 of the items that the user has not
  rated. The hit rate (column recall) and NDCG are the expectations over all draws of the 99, by the hypergeometric
  distribution of the number of those above the target.
- recbole: RecBole's table of tuned settings (recbole.io/hyperparameters/general.html). Ratings of 3 and more, 10-core,
  a random 80, 10 and 10 % of each user's ratings for training, validation and test; all items but those of training and
  validation are ranked. With training data only, as there.

Peers, where they are installed, on the same split with the same metric: EASE of RecBole 1.2.1, ElasticNet of
scikit-learn for each item (slow), and ALS of implicit 0.7.3, which has a plain penalty and weights observed pairs
otherwise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.stats import hypergeom

from harness import NOT_INSTALLED, OtherLoad, command_line
from recpipe.data.sequences import Sequences
from recpipe.evaluation.ranking import target_ranks
from recpipe.models.recommender import Scorer
from recpipe.models.registry import build

RATINGS = Path("data/01_raw/ml-1m/ratings.dat")
NEGATIVES, CUTOFF = 99, 10
PROTOCOLS = ("ncf", "recbole")
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "ncf": {
        "popular": {},
        "ease": {"penalty": 1320.0},  # of the runs of Anelli et al. (RecSys 2021) on this split
        "ials": {"dim": 192, "penalty": 0.007, "unobserved_weight": 0.3, "epochs": 12},  # Rendle et al. (RecSys 2022)
        "slim": {"alpha": 0.2, "l1_ratio": 0.005, "neighbours": 1000},
    },
    "recbole": {
        "popular": {},
        "ease": {"penalty": 500.0},
        "ials": {"dim": 192, "penalty": 0.007, "unobserved_weight": 0.3, "epochs": 12},
        "slim": {"alpha": 0.2, "l1_ratio": 0.005, "neighbours": 1000},
    },
}
# recall@10 and NDCG@10 of RecBole's pages for EASE (reg_weight 500) and SLIMElastic (alpha .2, l1_ratio .005), test
PUBLISHED = {"recbole": {"ease": (0.2149, 0.2864), "slim": (0.2035, 0.2782)}}

Metrics = tuple[float, float]
Scores = Callable[[np.ndarray], np.ndarray]
"""(rows of users (B,)) -> scores (B, I), item 1 first."""


@dataclass(frozen=True)
class Task:
    """A split: training events, items that are not ranked besides those, targets; and its metric."""

    train: Sequences
    excluded: Sequences
    targets: Sequences
    n_items: int
    sampled: bool  # whether targets are ranked among ``NEGATIVES`` others

    def metrics(self, scores_of: Scores) -> Metrics:
        """Return recall@10 and NDCG@10 of a function that scores users."""
        parts = [self._part(rows, scores_of(rows)) for rows in np.array_split(np.arange(len(self.train)), 8)]
        recall, ndcg = np.concatenate(parts, 1)
        return float(recall.mean()), float(ndcg.mean())

    def _part(self, rows: np.ndarray, scores_BI: np.ndarray) -> np.ndarray:
        """Return recall and NDCG (2, B) of users ``rows``."""
        scores = np.concatenate([np.full((len(rows), 1), -np.inf, np.float32), scores_BI.astype(np.float32)], 1)
        for events in (self.train, self.excluded):
            scores[events.events(rows)] = -np.inf
        owner, items = self.targets.events(rows)
        rank = target_ranks(torch.from_numpy(scores), owner, items)
        if self.sampled:
            return sampled_metrics(rank, (scores > -np.inf).sum(1))
        is_hit, gain = (rank > 0) & (rank <= CUTOFF), 1 / np.log2(1 + np.maximum(rank, 1))
        relevant = np.bincount(owner, minlength=len(rows))
        best = np.cumsum(1 / np.log2(2 + np.arange(CUTOFF)))[np.minimum(relevant, CUTOFF) - 1]
        hits, gains = (np.bincount(owner, is_hit * value, len(rows)) for value in (1.0, gain))
        return np.stack([hits / relevant, gains / best])


def main(argv: list[str] | None = None) -> None:
    """Train and evaluate the models and peers, and print a table."""
    arguments = parse(argv)
    table = generated_ratings() if arguments.quick else read_ratings(arguments.ratings)
    print(f"{'protocol':9} {'model':8} {'by':12} {'recall@10':>9} {'NDCG@10':>8} {'seconds':>8}  note")
    for protocol in arguments.protocols.split("+"):
        task = last_event_out(table) if protocol == "ncf" else ratio_split(table, 1 if arguments.quick else 10)
        for name in arguments.models.split("+"):
            settings, load, started = SETTINGS[protocol][name], OtherLoad(), time.perf_counter()
            metrics = task.metrics(recpipe_scores(name, settings, task))
            note = f"others used {load.cores():.1f} cores"
            show(protocol, name, "recpipe", metrics, time.perf_counter() - started, note)
            if arguments.peers and name in PEERS:
                run_peer(protocol, name, settings, task)
            published = None if arguments.quick else PUBLISHED.get(protocol, {}).get(name)
            if published:
                pairs = zip(metrics, published, strict=True)
                distance = " and ".join(f"{ours / theirs - 1:+.1%}" for ours, theirs in pairs)
                show(protocol, name, "published", published, None, f"ours {distance}")


def run_peer(protocol: str, name: str, settings: dict[str, Any], task: Task) -> None:
    """Train and evaluate another implementation of a model, where it is installed."""
    peer, fit = PEERS[name]
    started = time.perf_counter()
    try:
        metrics = task.metrics(fit(user_items(task), settings))
        show(protocol, name, peer, metrics, time.perf_counter() - started)
    except ImportError:
        print(f"{protocol:9} {name:8} {peer:12} {NOT_INSTALLED}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_line(__doc__)
    parser.add_argument("--models", default="popular+ease+ials+slim", help="such as ease+ials")
    parser.add_argument("--protocols", default="+".join(PROTOCOLS), help="ncf, recbole or both")
    parser.add_argument("--peers", action="store_true", help="other implementations too")
    parser.add_argument("--ratings", type=Path, default=RATINGS, help="ratings.dat of MovieLens 1M")
    return parser.parse_args(argv)


def read_ratings(path: Path) -> np.ndarray:
    """Read ratings: user, item, rating and time (N, 4), by user and time. SystemExit without the file."""
    if not path.exists():
        raise SystemExit(f"{path} is absent; unzip ml-1m.zip of https://grouplens.org/datasets/movielens/1m/ there")
    with path.open(encoding="latin-1") as lines:
        table = np.loadtxt((line.replace("::", " ") for line in lines), dtype=np.int64)
    return table[np.lexsort((table[:, 3], table[:, 0]))]


def generated_ratings() -> np.ndarray:
    """Random ratings of 60 users, for ``--quick``."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(60), generator.integers(12, 30, 60))
    items = np.concatenate([generator.permutation(200)[:n] for n in np.bincount(users)])
    return np.stack([users, items, generator.integers(1, 6, len(users)), np.arange(len(users))], 1)


def sequences_of(users: np.ndarray, items: np.ndarray, n_users: int) -> Sequences:
    """Return events (N,), sorted by user, as sequences; users from 0, items from 1."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=n_users))])
    return Sequences(np.arange(n_users).astype(str), items.astype(np.int32), None, offsets)


def last_event_out(table: np.ndarray) -> Task:
    """Split off the last rating of each user."""
    users, items = (np.unique(column, return_inverse=True)[1] for column in table[:, :2].T)
    data = sequences_of(users, items + 1, users.max() + 1)
    rows, lengths = np.arange(len(data)), data.lengths
    train, targets = data.select(rows, 0 * rows, lengths - 1), data.select(rows, lengths - 1, lengths)
    return Task(train, data.select(rows, 0 * rows, 0 * rows), targets, int(items.max()) + 1, sampled=True)


def ratio_split(table: np.ndarray, core: int, *, seed: int = 2020) -> Task:
    """Split ratings of 3 and more, after a k-core, into 80, 10 and 10 % of each user's, at least one each."""
    table = table[table[:, 2] >= 3]
    size = -1
    while size != len(table):
        size = len(table)
        for column in (0, 1):
            table = table[np.bincount(table[:, column])[table[:, column]] >= core]
    users, items = (np.unique(column, return_inverse=True)[1] for column in table[:, :2].T)
    order = np.lexsort((np.random.default_rng(seed).random(len(users)), users))
    users, items = users[order], items[order] + 1
    counts = np.bincount(users)
    held_out = np.maximum(counts // 10, 1)[users]
    from_end = np.repeat(np.cumsum(counts), counts) - np.arange(len(users))  # 1 for the last
    part = np.where(from_end <= held_out, 2, np.where(from_end <= 2 * held_out, 1, 0))
    split = [sequences_of(users[part == n], items[part == n], len(counts)) for n in range(3)]
    print(f"recbole: {len(counts):,} users, {items.max():,} items, {len(users):,} ratings")
    return Task(*split, int(items.max()), sampled=False)


def recpipe_scores(name: str, settings: dict[str, Any], task: Task) -> Scores:
    """Train a model and return its scores."""
    torch.manual_seed(42)
    model = build(name, settings, n_items=task.n_items, max_length=int(task.train.lengths.max()))
    assert isinstance(model, Scorer)
    model.fit(task.train)

    def scores_of(rows: np.ndarray) -> np.ndarray:
        starts, scores = np.zeros(len(rows), np.int64), np.zeros((len(rows), task.n_items), np.float32)
        for batch, values in model.score_batches(
            task.train.select(rows, starts, task.train.lengths[rows]), exclude_seen=False
        ):
            scores[batch] = values[:, 1:].numpy()
        return scores

    return scores_of


def sampled_metrics(ranks: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return the expected hit rate and NDCG (2, U) among ``NEGATIVES`` other candidates, for ranks (U,) among all."""
    above = np.arange(CUTOFF)  # numbers of negatives above the target
    draws = np.minimum(NEGATIVES, candidates - 1)
    probability = hypergeom.pmf(above, candidates[:, None] - 1, ranks[:, None] - 1, draws[:, None])
    return np.stack([probability.sum(1), (probability / np.log2(above + 2)).sum(1)])


def user_items(task: Task) -> csr_matrix:
    """Return the binary user × item matrix (U, I)."""
    row = np.repeat(np.arange(len(task.train)), task.train.lengths)
    matrix = csr_matrix((np.ones(len(row), np.float32), (row, task.train.items - 1)), (len(task.train), task.n_items))
    matrix.data[:] = 1.0  # repeated events were added up
    return matrix


def recbole_ease(x_UI: csr_matrix, settings: dict[str, Any]) -> Scores:
    """Fit RecBole's EASE."""
    from recbole.model.general_recommender.ease import EASE

    class Data:
        def num(self, field: str) -> int:
            return x_UI.shape[field == "item_id"]

        def inter_matrix(self, form: str) -> csr_matrix:
            return x_UI.asformat(form)

    class Config(dict[str, Any]):
        device = "cpu"

    fields = {"USER_ID_FIELD": "user_id", "ITEM_ID_FIELD": "item_id", "NEG_PREFIX": "neg_", "device": "cpu"}
    model = EASE(Config(fields, reg_weight=settings["penalty"]), Data())
    weights = np.asarray(model.item_similarity)
    return lambda rows: x_UI[rows] @ weights


def sklearn_slim(x_UI: csr_matrix, settings: dict[str, Any]) -> Scores:
    """Fit an ElasticNet for each item."""
    from sklearn.linear_model import ElasticNet

    strength = {name: settings[name] for name in ("alpha", "l1_ratio")}
    columns, weights = x_UI.tocsc(), np.zeros((x_UI.shape[1], x_UI.shape[1]), np.float32)
    for item in range(x_UI.shape[1]):
        target, start, stop = columns[:, item].toarray().ravel(), *columns.indptr[item : item + 2]
        columns.data[start:stop] = 0.0
        net = ElasticNet(
            **strength, positive=True, fit_intercept=False, copy_X=False, selection="random", random_state=0
        )
        weights[:, item] = net.fit(columns, target).coef_
        columns.data[start:stop] = 1.0
    return lambda rows: x_UI[rows] @ weights


def implicit_als(x_UI: csr_matrix, settings: dict[str, Any]) -> Scores:
    """Fit implicit's ALS with the penalty that ours has for a user of mean activity."""
    from implicit.als import AlternatingLeastSquares

    unobserved = settings["unobserved_weight"]
    frequency = x_UI.nnz / x_UI.shape[0] + unobserved * x_UI.shape[1]
    model = AlternatingLeastSquares(
        factors=settings["dim"], regularization=settings["penalty"] * frequency / unobserved, alpha=1 + 1 / unobserved,
        iterations=settings["epochs"], use_cg=False, random_state=42, num_threads=1,
    )  # fmt: skip
    model.fit(x_UI, show_progress=False)
    return lambda rows: model.user_factors[rows] @ model.item_factors.T


PEERS = {"ease": ("RecBole", recbole_ease), "ials": ("implicit", implicit_als), "slim": ("scikit-learn", sklearn_slim)}


def show(protocol: str, name: str, by: str, metrics: Metrics, seconds: float | None, note: str = "") -> None:
    """Print a row."""
    time_used = "" if seconds is None else f"{seconds:,.1f}"
    print(f"{protocol:9} {name:8} {by:12} {metrics[0]:9.4f} {metrics[1]:8.4f} {time_used:>8}  {note}", flush=True)


if __name__ == "__main__":
    main()
