"""Evaluation of a trained model on the validation and test fold: metrics, ranks, recommendations, latency."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, runtime_checkable
from typing import Protocol as TypedProtocol

import numpy as np
import pyarrow as pa

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, count_items
from recpipe.data.transitions import transition_seen
from recpipe.decoding.exact import SearchError
from recpipe.evaluation.content_slots import ContentSlots
from recpipe.evaluation.debiased import debiased_metrics
from recpipe.evaluation.metrics import (
    coverage,
    memorised_and_generalised,
    metric_values,
    metrics_from_ranks,
    warm_and_cold_items,
)
from recpipe.evaluation.ranking import Ranking, fold_ranks, rank_fold, target_positions
from recpipe.evaluation.recommendations import TEST_LISTS
from recpipe.models.recommender import Recommender
from recpipe.training.bundle import Bundle
from recpipe.training.distributed import Ranks
from recpipe.training.settings import MACHINE

WARM_UP_USERS = 3  # of latency: the first calls fill caches
PERCENTILES = (50, 95)
SEARCH_ERROR_USERS = 1000
CURVE_METRICS = ("ndcg", "recall", "hit_rate", "mrr")  # of the validation after an epoch
NOT_IN_SETTINGS_ID = {"device", "resume", "log_every", *MACHINE}  # train settings that do not change the model
# Settings by model type that runs of older versions lack, with the value that gives the same model: it is not in the id
SAMPLES: dict[str, Any] = {"stochastic": False, "sample_seed": 0}
NEWER_SETTINGS: dict[str, dict[str, Any]] = {
    "sasrec": {"activation": "relu", "scale_embeddings": True},
    "hstu": {"tied": True},
    "xlstm": {"kernel": "auto", "chunk": None},
    "gpt": {"sample_from": 1, "sample_seed": 0},
    "tiger": SAMPLES | {"rerank": "none", "dense_weight": 1.0, "rerank_share": 0.5},
    "mql4grec": SAMPLES | {"temperatures": None},
    "parallel_tiger": SAMPLES | {"temperatures": None, "cross_level_distance": False, "modality_weights": None},
}
NEWER_TRAIN_SETTINGS = {"max_minutes": None, "ema": None, "history_bias": 0.0}


@dataclass(frozen=True)
class Evaluation:
    """Result of an evaluation."""

    metrics: dict[str, Any]  # content of metrics.json
    ranks: pa.Table  # of the test fold, see `Ranking.table`
    recommendations: pa.Table  # of the test fold, see `recommendations_table`
    submission: str | None = None  # the recommendations as CSV


def evaluate(
    bundle: Bundle,
    valid: Fold,
    test: Fold,
    protocol: Protocol,
    *,
    k: int = 20,
    slots: ContentSlots | None = None,
    train: Sequences | None = None,
) -> Evaluation:
    """Rank both folds with a trained model and recommend ``k`` items to every test user.

    With ``slots``, lists and metrics have content slots; throughput and latency are those of the model alone. A model
    that was also trained on the validation fold (``train.train_on_validation``) has no ``valid`` metrics. With
    ``train``, the training set of the split, there are metrics of memorised and generalised targets, and propensities
    come from its events. Raises ValueError for a model of another split, for one that uses times that the protocol does
    not allow, and for NaN.
    """
    if not protocol.holds_out:
        raise ValueError("protocol.split is none, so that there is no test fold to evaluate on: choose another split")
    bundle.check_split(protocol)
    protocol.check_time(bundle.model.requires_time, model=bundle.name)
    warm = np.concatenate([[False], bundle.train_events > 0])

    transitions = None if train is None else transition_seen(train, test)
    # of the split, so that models that were trained on other events too have the same propensities
    events = np.append(0, bundle.train_events) if train is None else count_items(train.items, len(bundle.vocabulary))

    def rank(fold: Fold, protocol: Protocol, k: int) -> tuple[Ranking, pa.Table]:
        ranking = rank_fold(bundle.model, fold.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=k)
        if slots is not None:
            ranking = slots.apply(ranking, fold, bundle, exclude_seen=protocol.exclude_seen)
        seen = transitions if fold is test else None
        return ranking, ranking.table(fold, bundle.vocabulary, warm=warm, transition_seen=seen)

    folds = {"test": test} if bundle.train_on_validation else {"valid": valid, "test": test}
    list_length = max(k, *protocol.cutoffs)
    rankings = {name: rank(fold, protocol, list_length) for name, fold in folds.items()}
    ranking, ranks = rankings["test"]
    none = np.zeros(len(test), np.int64)
    no_history = Fold(test.histories.select(np.arange(len(test)), none, none), test.targets)
    cold_users = rank(no_history, dataclasses.replace(protocol, exclude_seen=False), max(protocol.cutoffs))
    fallback = bundle.model.cold_users
    settings = bundle.training.get("settings")
    if settings and slots is not None:
        settings = {**settings, "content_slots": slots.to_dict()}
    metrics = {
        "dataset": protocol.dataset,
        "model": bundle.name,
        "seed": bundle.training.get("seed"),
        "protocol": {"id": protocol.id, **protocol.to_dict()},
        **({"settings": settings, "settings_id": settings_id(settings)} if settings else {}),
        **({"train_on_validation": True} if bundle.train_on_validation else {}),
        **({"content_slots": slots.to_dict()} if slots is not None else {}),
        **{name: _metrics(*pair, bundle, protocol) for name, pair in rankings.items()},
        **warm_and_cold_items(ranks, cutoffs=protocol.cutoffs),
        **memorised_and_generalised(ranks, cutoffs=protocol.cutoffs),
        "debiased": debiased_metrics(ranks, test.targets.items, events, cutoffs=protocol.cutoffs),
        **_search_error(bundle.model, test, protocol),
        "cold_users": {
            **_metrics(*cold_users, bundle, protocol),
            "falls_back": int(bundle.model.needs_fallback(no_history.histories).sum()),
            "settings": None if fallback is None else dataclasses.asdict(fallback.config),
        },
        "cost": {
            **bundle.training.get("cost", {}),
            "inference_users_per_second": len(test) / ranking.seconds,
            **latency(bundle.model, test.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=k),
        },
        "versions": bundle.training.get("versions", {}),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    about = {"description": TEST_LISTS, "dataset": protocol.dataset, "model": bundle.name, "protocol": protocol.id}
    return Evaluation(metrics, ranks, ranking.recommendations(test, bundle, k).replace_schema_metadata(about))


def _metrics(ranking: Ranking, ranks: pa.Table, bundle: Bundle, protocol: Protocol) -> dict[str, float | int]:
    cutoffs = [k for k in protocol.cutoffs if k <= ranking.items.shape[1]]
    covered = coverage(ranking.items, catalogue=len(bundle.vocabulary), cutoffs=cutoffs) if cutoffs else {}
    return {**metrics_from_ranks(ranks, cutoffs=protocol.cutoffs), **covered}


@runtime_checkable
class ExactSearch(TypedProtocol):
    """A model with exact search that can measure the error of another search, of width ``config.beam``."""

    config: Any
    approximate_search: str  # name of the search that is measured

    def beam_error(self, histories: Sequences, k: int) -> SearchError | None:
        """Compare the best ``k`` items of each user; None where that takes too long."""


def _search_error(model: Recommender, fold: Fold, protocol: Protocol) -> dict[str, Any]:
    if not isinstance(model, ExactSearch) or len(model.item_codes()) > 1:  # a beam is over ids of one kind
        return {}
    sample = fold.select(np.sort(np.random.default_rng(0).permutation(len(fold))[:SEARCH_ERROR_USERS]))
    k = min(protocol.cutoffs, key=lambda cutoff: abs(cutoff - 10))
    error = model.beam_error(sample.with_query_times(protocol).histories, k)
    if error is None:
        return {}
    return {"search": {"method": model.approximate_search, "beam": model.config.beam, "k": k, **error._asdict()}}


def settings_id(settings: Mapping[str, Any]) -> str:
    """Hash the settings of a model and its training, without the seed, to eight hex digits."""
    train = {key: value for key, value in settings.get("train", {}).items() if key not in NOT_IN_SETTINGS_ID}
    fields = _without(settings, NEWER_SETTINGS.get(settings.get("type", ""), {}))
    fields["train"] = _without(train, NEWER_TRAIN_SETTINGS)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _without(settings: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Drop the settings that have the same value in ``values``."""
    return {key: value for key, value in settings.items() if key not in values or value != values[key]}


def latency(model: Recommender, fold: Fold, *, exclude_seen: bool, k: int, users: int = 30) -> dict[str, float]:
    """Measure milliseconds to recommend ``k`` items to one user: percentiles over the same random ``users``, if any."""
    rows = np.random.default_rng(0).permutation(len(fold))[:users]
    queries = [fold.select(rows[at : at + 1]).histories for at in range(len(rows))]
    milliseconds = []
    for histories in (*queries[:WARM_UP_USERS], *queries):
        started = time.perf_counter()
        model.recommend(histories, k, exclude_seen=exclude_seen)  # the result is on the CPU: GPU work is done
        milliseconds.append(1000 * (time.perf_counter() - started))
    timed = milliseconds[-len(queries) :]
    return {f"inference_latency_ms_p{p}": float(np.percentile(timed, p)) for p in PERCENTILES if timed}


def validator(fold: Fold, protocol: Protocol, metric: str = "ndcg@10", *, users: int | None = None) -> FoldValidator:
    """Return the function that selects checkpoints by a metric of ``fold``, or always of the same ``users`` of it."""
    fold = fold.with_query_times(protocol)
    if users is not None and users < len(fold):
        fold = fold.select(np.sort(np.random.default_rng(0).permutation(len(fold))[:users]))
    return FoldValidator(fold, protocol, metric)


@dataclass(frozen=True)
class FoldValidator:
    """Metrics of the training curve: ``metric`` on a fold, and others at the same cut-off, as ``valid_<metric>``.

    Each of ``ranks`` ranks its share of the users, and all compute the metrics from all ranks of targets.
    """

    fold: Fold
    protocol: Protocol
    metric: str
    ranks: Ranks = Ranks()  # noqa: RUF009

    def __call__(self, model: Recommender) -> dict[str, float]:
        """Return the metrics by name. Raises ValueError for an unknown one."""
        table = fold_ranks(model, self.fold, self.protocol) if self.ranks.size == 1 else self._shared_ranks(model)
        values = metric_values(table, self.metric, CURVE_METRICS, setting="train.metric")
        return {f"valid_{name}": value for name, value in values.items()}

    def shard(self, ranks: Ranks) -> FoldValidator:
        """Return the validation of this rank's users, which returns the metrics of all."""
        return dataclasses.replace(self, ranks=ranks)

    def _shared_ranks(self, model: Recommender) -> pa.Table:
        """Rank the targets of every n-th user, and return the table of all ranks, as ``fold_ranks``."""
        users, targets = self._users, self.fold.targets
        rank = np.zeros(len(targets.items), np.int32)
        if len(users):
            positions, _ = target_positions(targets, users)
            rank[positions] = fold_ranks(model, self._share, self.protocol)["rank"].to_numpy()
        owner = np.repeat(np.arange(len(self.fold)), targets.lengths)
        return pa.table({"user_id": owner, "rank": self.ranks.sum(rank), "cold": np.zeros(len(rank), bool)})

    @property
    def _users(self) -> np.ndarray:
        return np.arange(self.ranks.rank, len(self.fold), self.ranks.size)

    @cached_property
    def _share(self) -> Fold:
        return self.fold.select(self._users)
