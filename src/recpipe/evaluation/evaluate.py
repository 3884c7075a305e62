"""How long one person waits for a list: users of a fold asked one by one, as a shop would.

Judges a bundle on the validation and the test fold under its protocol: metrics, ranks, recommendations; on the test
fold also by whether training saw the target, and as if nothing were known of its users' events.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, runtime_checkable
from typing import Protocol as TypedProtocol

import numpy as np
import pyarrow as pa

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences
from recpipe.decoding.exact import SearchError
from recpipe.evaluation.metrics import coverage, metrics_from_ranks, warm_and_cold_items
from recpipe.evaluation.ranking import Ranking, rank_fold
from recpipe.evaluation.recommendations import recommendations_table
from recpipe.models.recommender import Recommender
from recpipe.training.bundle import Bundle

WARM = 3  # users asked before the clock runs: the first call fills caches
PERCENTILES = (50, 95)


def latency(
    model: Recommender, fold: Fold, *, exclude_seen: bool, k: int, users: int = 30
) -> dict[str, float]:
    """Milliseconds that ``k`` items for one user take: median and 95th percentile over ``users`` users of ``fold``.

    The users are drawn, always the same ones. Nothing for a fold without users.
    """
    drawn = np.random.default_rng(0).permutation(len(fold))[:users]
    asked = [fold.select(drawn[at : at + 1]).histories for at in range(len(drawn))]
    for histories in asked[:WARM]:
        _seconds(model, histories, exclude_seen, k)
    found = [1000 * _seconds(model, histories, exclude_seen, k) for histories in asked]
    return {f"inference_latency_ms_p{p}": float(np.percentile(found, p)) for p in PERCENTILES if found}


def _seconds(model: Recommender, histories: Sequences, exclude_seen: bool, k: int) -> float:
    """The answer is on the CPU when ``recommend`` returns, so nothing is left running on a GPU."""
    started = time.perf_counter()
    model.recommend(histories, k, exclude_seen=exclude_seen)
    return time.perf_counter() - started


SEARCHED = 1000  # users, for the error of a search
WITHOUT_EFFECT = {"device", "resume", "log_every"}  # of the train settings: they make no other model


@dataclass(frozen=True)
class Evaluation:
    """``metrics`` is what metrics.json holds; ``ranks`` and ``recommendations`` are of the test fold, ``submission`` is
    the latter as CSV text.
    """

    metrics: dict[str, Any]
    ranks: pa.Table
    recommendations: pa.Table
    submission: str = ""


@runtime_checkable
class ExactlySearched(TypedProtocol):
    """A model that scores exactly what others search by beam, and knows what a beam of ``config.beam`` would lose."""

    config: Any

    def beam_error(self, histories: Sequences, k: int) -> SearchError:
        """Of the best ``k`` items of each user; None where ids are shared."""


def evaluate(bundle: Bundle, valid: Fold, test: Fold, protocol: Protocol, *, top: int = 20) -> Evaluation:
    """Ranks both folds; ``top`` recommendations per test user are kept.

    A bundle that was trained on the validation events too (``train.put_back``) has no ``valid`` metrics.

    Raises ValueError if ``protocol`` is not that of the data the bundle was trained on, if the model uses more of
    time than it allows, or if the model gives NaN.
    """
    if differing := bundle.protocol.data_differences(protocol):
        raise ValueError(
            f"{bundle.name} was trained under another protocol; {', '.join(differing)} differ. "
            f"Run `kedro run --pipelines=train,evaluate --params model={bundle.name}`"
        )
    protocol.check_time(bundle.model.requires_time, model=bundle.name)
    k = max(top, *protocol.cutoffs)
    folds = {"test": test} if bundle.put_back else {"valid": valid, "test": test}
    judged = {name: _rank(bundle, fold, protocol, k) for name, fold in folds.items()}
    known = np.concatenate([[False], bundle.train_events > 0])
    tables = {
        name: ranking.table(folds[name], bundle.vocabulary, known=known) for name, ranking in judged.items()
    }
    best, settings = judged["test"], bundle.training.get("settings")
    metrics = {
        "dataset": protocol.dataset,
        "model": bundle.name,
        "seed": bundle.training.get("seed"),
        "protocol": {"id": protocol.id, **protocol.to_dict()},
        **({"settings": settings, "settings_id": settings_id(settings)} if settings else {}),
        **({"put_back": True} if bundle.put_back else {}),
        **{name: _metrics(tables[name], judged[name], bundle, protocol) for name in judged},
        **warm_and_cold_items(tables["test"], cutoffs=protocol.cutoffs),
        **_search(bundle, test, protocol),
        "cold_users": _on_cold_users(bundle, test, dataclasses.replace(protocol, exclude_seen=False), known),
        "cost": {
            **bundle.training.get("cost", {}),
            "inference_users_per_second": len(test) / best.seconds,
            **latency(
                bundle.model, test.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=top
            ),
        },
        "versions": bundle.training.get("versions", {}),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    recommendations = recommendations_table(
        test.histories.users,
        best.items[:, :top],
        best.scores[:, :top],
        best.log_normalizer,
        item_ids=bundle.vocabulary.ids,
        titles=bundle.title_table(),
        cold=bundle.model.needs_fallback(test.histories),
    )
    return Evaluation(metrics, tables["test"], recommendations)


def settings_id(settings: Mapping[str, Any]) -> str:
    """Eight hex digits: equal ids mean the same model and training but for the seed."""
    given = settings.get("train", {}).items()
    train = {key: value for key, value in given if key not in WITHOUT_EFFECT}
    for name in ("max_minutes", "ema"):  # which older runs do not have
        if train.get(name) is None:
            train.pop(name, None)
    text = json.dumps({**settings, "train": train}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def validator(fold: Fold, protocol: Protocol, metric: str = "ndcg@10", *, users: int | None = None) -> Any:
    """The function that training selects by: full ranking of the validation fold under the protocol, of all its users
    or of a sample of ``users``, always the same.
    """
    cutoffs = sorted({*protocol.cutoffs, int(metric.partition("@")[2])})
    fold = fold.with_query_times(protocol)
    if users is not None and users < len(fold):
        fold = fold.select(np.sort(np.random.default_rng(0).permutation(len(fold))[:users]))

    def validate(model: Any) -> dict[str, float]:
        ranking = rank_fold(model, fold, exclude_seen=protocol.exclude_seen, k=1)
        found = metrics_from_ranks(ranking.ranks(), cutoffs=cutoffs)
        if metric not in found:
            raise ValueError(f"train.metric is {metric!r}; known: {', '.join(sorted(found))}")
        return {f"valid_{metric}": float(found[metric])}

    return validate


def _rank(bundle: Bundle, fold: Fold, protocol: Protocol, k: int) -> Ranking:
    return rank_fold(bundle.model, fold.with_query_times(protocol), exclude_seen=protocol.exclude_seen, k=k)


def _search(bundle: Bundle, fold: Fold, protocol: Protocol) -> dict[str, Any]:
    """``search``, of a model that scores exactly: what a beam as wide as its ``beam`` would lose of the lists."""
    model = bundle.model
    if not isinstance(model, ExactlySearched):
        return {}
    few = fold.select(np.sort(np.random.default_rng(0).permutation(len(fold))[:SEARCHED])).with_query_times(
        protocol
    )
    k = min(protocol.cutoffs, key=lambda cutoff: abs(cutoff - 10))
    error = model.beam_error(few.histories, k)
    return {"search": {"beam": model.config.beam, "k": k, **error._asdict()}}


def _on_cold_users(bundle: Bundle, fold: Fold, protocol: Protocol, known: np.ndarray) -> dict[str, Any]:
    """The metrics for the same targets with every history emptied, so that there is nothing to exclude.

    ``falls_back`` is the number of these users that the model leaves to its fallback: all, or none where it has none;
    ``settings`` are those of the fallback.
    """
    none = np.zeros(len(fold), np.int64)
    asked = Fold(fold.histories.select(np.arange(len(fold)), none, none), fold.targets)
    ranking = _rank(bundle, asked, protocol, max(protocol.cutoffs))
    ranks = ranking.table(asked, bundle.vocabulary, known=known)
    fallback, fell = bundle.model.cold_users, int(bundle.model.needs_fallback(asked.histories).sum())
    about = {
        "falls_back": fell,
        "settings": None if fallback is None else dataclasses.asdict(fallback.config),
    }
    return {**_metrics(ranks, ranking, bundle, protocol), **about}


def _metrics(ranks: pa.Table, ranking: Ranking, bundle: Bundle, protocol: Protocol) -> dict[str, float | int]:
    cutoffs = [k for k in protocol.cutoffs if k <= ranking.items.shape[1]]
    covered = coverage(ranking.items, catalogue=len(bundle.vocabulary), cutoffs=cutoffs) if cutoffs else {}
    return {**metrics_from_ranks(ranks, cutoffs=protocol.cutoffs), **covered}
