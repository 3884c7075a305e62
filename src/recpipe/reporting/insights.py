"""Insights of runs on disk, as JSON: intervals, metrics by segment, properties of lists, calibration, ties."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recpipe.evaluation.lists import Lists, Popularity, list_metrics
from recpipe.evaluation.metrics import calibration, metrics_from_ranks
from recpipe.evaluation.segments import POPULARITY, popularity_groups, segments
from recpipe.evaluation.significance import BEST, UserMetric, compare
from recpipe.reporting.runs import Run, RunGroup, group_runs, read_runs
from recpipe.semantic_ids.vector_rows import VectorRows

MAX_DRAWS = 400_000_000  # users x resamples: about ten seconds
Loaders = Mapping[str, Callable[[], Any]]
Ranks = Mapping[str, pa.Table | None]
Vectors = tuple[NDArray[np.float64] | VectorRows, NDArray[np.bool_]]


@dataclass(frozen=True)
class RunOutputs:
    """Loaders of outputs: Arrow tables of ranks and recommendations by ``Run.key``, tie sensitivity by ``Run.name``."""

    ranks: Loaders = field(default_factory=dict)
    recommendations: Loaders = field(default_factory=dict)
    ties: Loaders = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue:
    """Items of the split: ids, popularity, and content vectors (I, D) with a mask of items that have one (I,)."""

    item_ids: NDArray[np.object_]
    popularity: Popularity
    vectors: Vectors | None = None


def compute_insights(
    metrics: Sequence[Mapping[str, Any]],
    outputs: RunOutputs,
    catalogue: Catalogue,
    *,
    protocol: str,
    seed: int,
    metric: str = "ndcg@10",
    baseline: str = BEST,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Compute the insights of runs, by the ``model`` of their leaderboard rows.

    ``certainty`` is by protocol and over all seeds. The rest is under ``protocol``, that of the catalogue, of one run
    per row: that of ``seed``, or else the first. ``ranked`` has the keys of runs whose ranks on disk match their
    metrics.
    """
    runs, _ = read_runs(metrics)
    problems: list[str] = []
    ranks = {run.key: _ranks(run, outputs, metric, problems) for run in runs}
    groups: dict[str, dict[str, RunGroup]] = {}
    for group in group_runs(runs):
        groups.setdefault(group.protocol, {})[group.model] = group
    certainty = {
        name: values
        for name, members in groups.items()
        if (values := _certainty(members, ranks, metric, baseline, resamples, problems))
    }
    representatives: dict[str, Run] = {}  # by model: the run of the seed, or else the first one with ranks
    for name, group in groups.get(protocol, {}).items():
        if with_ranks := [run for run in group.runs if ranks[run.key] is not None]:
            representatives[name] = next((run for run in with_ranks if run.seed == seed), with_ranks[0])
    k, ids, events = int(metric.partition("@")[2]), catalogue.item_ids, catalogue.popularity.events

    def by_model(measure: Callable[[Run], Any]) -> dict[str, Any]:
        """Values by model, without runs that have none or raise ValueError."""
        values = {}
        for name, run in representatives.items():
            try:
                values[name] = measure(run)
            except ValueError as error:
                problems.append(_with_run_name(run, error))
        return {name: value for name, value in values.items() if value is not None}

    result: dict[str, Any] = {
        "metric": metric,
        "protocol": protocol,
        "seed": seed,
        "ranked": [name for name, table in ranks.items() if table is not None],
        "certainty": certainty,
        "segments": by_model(lambda run: segments(ranks[run.key], item_ids=ids, train_events=events, k=k).to_pylist()),
        "lists": by_model(lambda run: _lists(run, ranks, outputs, catalogue, k)),
        "training": _training_popularity(catalogue),
        "calibration": by_model(lambda run: _calibration(run, ranks, outputs)),
        "ties": by_model(lambda run: _ties(run, outputs, metric)),
    }
    lists = result["lists"].items()
    problems += [f"{name} recommends no item to any user" for name, values in lists if not values["users"]]
    return {**_to_json(result), "problems": list(dict.fromkeys(problems))}


def _ranks(run: Run, outputs: RunOutputs, metric: str, problems: list[str]) -> pa.Table | None:
    """Ranks of a run; None where they are missing or do not match its metrics."""
    if run.key not in outputs.ranks:
        problems.append(
            f"{run.name} has no ranks under protocol {run.protocol_id} on disk, so no interval: run `evaluate` again"
        )
        return None
    try:
        table: pa.Table = outputs.ranks[run.key]()
        value = metrics_from_ranks(table, cutoffs=[int(metric.partition("@")[2])]).get(metric)
    except ValueError as error:
        problems.append(_with_run_name(run, error))
        return None
    if value is not None and math.isclose(value, _test_metric(run, metric), abs_tol=1e-9):
        return table
    problems.append(f"the ranks of {run.key} on disk do not match its metrics: run `evaluate` again")
    return None


def _certainty(
    groups: Mapping[str, RunGroup], ranks: Ranks, metric: str, baseline: str, resamples: int, problems: list[str]
) -> dict[str, Any] | None:
    """Bootstrap intervals and comparisons with the baseline, of the models of one protocol."""
    tables = {}
    for name, group in groups.items():
        if values := [table for run in group.runs if (table := ranks[run.key]) is not None]:
            tables[name] = values
    if not tables:
        return None
    protocols = {name: [run.protocol_id for run in groups[name].runs] for name in tables}
    try:
        user_metric = UserMetric.of(tables, metric=metric, protocols=protocols)
    except ValueError as error:
        problems.append(str(error))
        return None
    baselines = [name for name in tables if baseline in (name, groups[name].name)]
    resamples = min(resamples, max(1000, MAX_DRAWS // len(user_metric.users)))
    comparison = compare(user_metric, baseline=baselines[0] if baselines else BEST, resamples=resamples)
    seeds = {name: len(values) for name, values in tables.items()}
    return {**asdict(comparison), "resamples": resamples, "seeds": seeds}


def _lists(run: Run, ranks: Ranks, outputs: RunOutputs, catalogue: Catalogue, k: int) -> dict[str, Any] | None:
    if run.key not in outputs.recommendations:
        return None
    lists, ids = Lists.of(outputs.recommendations[run.key](), catalogue.item_ids, k), catalogue.item_ids
    return list_metrics(lists, catalogue.popularity, ranks[run.key], item_ids=ids, vectors=catalogue.vectors)


def _training_popularity(catalogue: Catalogue) -> dict[str, Any]:
    """Popularity of lists whose items are drawn from the training events."""
    events, groups = catalogue.popularity.events, popularity_groups(catalogue.popularity.events)
    total = max(int(events.sum()), 1)
    shares = {name: events[groups == code].sum() / total for code, name in enumerate(POPULARITY)}
    items = {name: int((groups == code).sum()) for code, name in enumerate(POPULARITY)}
    return {**shares, "arp": (events.astype(float) ** 2).sum() / total, "items": items}


def _calibration(run: Run, ranks: Ranks, outputs: RunOutputs) -> dict[str, Any] | None:
    if run.key not in outputs.recommendations:
        return None
    result = calibration(outputs.recommendations[run.key](), ranks[run.key])
    return None if result is None else asdict(result)


def _ties(run: Run, outputs: RunOutputs, metric: str) -> dict[str, Any] | None:
    """Tie sensitivity; None where it belongs to another protocol, metric or evaluation."""
    ties = outputs.ties[run.name]() if run.name in outputs.ties else {}
    if not isinstance(ties, Mapping):
        raise ValueError("its tie sensitivity is not an object: run the pipeline ties again")
    matches = ties.get("protocol") == run.protocol_id and ties.get("metric") == metric
    value = ties.get("as_ordered", math.nan)
    return dict(ties) if matches and math.isclose(value, _test_metric(run, metric), abs_tol=1e-6) else None


def _test_metric(run: Run, metric: str) -> float:
    return math.nan if (value := run.test.get(metric)) is None else value


def _with_run_name(run: Run, error: ValueError) -> str:
    return str(error) if run.name in str(error) else f"{run.name}: {error}"


def _to_json(value: Any) -> Any:
    """Convert to JSON types; NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
