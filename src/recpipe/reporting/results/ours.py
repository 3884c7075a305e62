"""Our results: means over seeds with intervals, from runs on disk and from the store docs/results/ours.json.

Runs lie in ``data/``, which is not committed. The store keeps what the pages need of them, so that the pages can be
written on a machine without the runs. Only the command writes it. A row has the key data set, protocol id, model,
settings id and seeds; of two rows with one key the newer one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.data.atomic import atomic_file
from recpipe.evaluation.metrics import user_metrics
from recpipe.evaluation.significance import bootstrap_means
from recpipe.reporting.run_store import RunStore
from recpipe.reporting.runs import Run, RunGroup, group_runs, read_runs

STORE = "ours.json"
VERSION = 1
CUTOFFS = (1, 5, 10)
METRICS = tuple(f"{name}@{k}" for k in CUTOFFS for name in ("recall", "ndcg"))
WARM_AND_COLD = tuple(f"{kind}_{name}@10" for kind in ("warm", "cold") for name in ("recall", "ndcg"))
RESAMPLES, MAX_DRAWS = 10_000, 200_000_000  # of the bootstrap; users x resamples: a few seconds
LAYERS = ("08_reporting", "07_model_output", "06_models", "04_feature")
Key = tuple[str, str, str, str, tuple[int, ...]]
Floats = NDArray[np.float64]


class ResultsStoreError(ValueError):
    """The store of our results is unusable."""


@dataclass(frozen=True)
class Value:
    """Mean of a metric over users and seeds, and the bounds of its 95 % interval over users; None without ranks."""

    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class OurRow:
    """Result of one model with one protocol and settings, over ``seeds``.

    ``kinds_of_ids`` names the ids it reads; ``history_bias`` is what its training adds to the scores of seen items.
    """

    dataset: str
    protocol: Mapping[str, Any]  # its fields, and id
    model: str
    settings_id: str
    seeds: tuple[int, ...]
    users: int
    metrics: Mapping[str, Value]
    commit: str = ""
    hardware: str = ""
    train_seconds: float | None = None
    kinds_of_ids: tuple[str, ...] = ()
    history_bias: float = 0.0
    members: str = ""  # of an ensemble, with weights
    finished: str = ""

    @property
    def key(self) -> Key:
        """Data set, protocol id, model, settings id and seeds, by which rows are stored."""
        return self.dataset, str(self.protocol["id"]), self.model, self.settings_id, self.seeds

    @property
    def has_intervals(self) -> bool:
        """Whether the ranks of its runs were on disk."""
        return all(value.low is not None for name, value in self.metrics.items() if name in METRICS)


def collect(root: Path, dataset: str, stored: Mapping[Key, OurRow]) -> tuple[list[OurRow], list[str]]:
    """Return rows of the runs of a data set below ``root``, and a message for each file that cannot be used.

    Rows that are in ``stored`` with the same time of evaluation are taken from there: their intervals take seconds.
    """
    store = RunStore(*(root / layer / dataset for layer in LAYERS))
    names: dict[int, str] = {}  # run -> name of its files in the store
    runs, problems = [], []
    for name, metrics in store.metrics.readable().items():
        usable, messages = read_runs([metrics])
        runs += usable
        problems += [f"{dataset}, {name}: {message}" for message in messages]
        names |= {id(run): name for run in usable}
    result = []
    for group in group_runs(runs):
        row = _row(group)
        old = stored.get(row.key)
        if old is not None and old.finished == row.finished and old.has_intervals:
            result.append(old)
            continue
        tables = [_ranks(store, names[id(run)], run, problems) for run in group.runs]
        complete = [table for table in tables if table is not None]
        if len(complete) == len(tables):
            try:
                row = _with_intervals(row, complete)
            except ValueError as error:  # seeds of other users
                problems.append(f"{dataset}, {row.model}: no interval, as {error}")
        result.append(row)
    return result, [*problems, *(f"{dataset}, {message}" for message in store.metrics.problems)]


def read_store(path: Path) -> dict[Key, OurRow]:
    """Read the store; empty if there is none. Raises ResultsStoreError for a damaged file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']}, not {VERSION}")
        rows = [_from_json(values) for values in content["rows"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ResultsStoreError(
            f"{path} cannot be read: {reason}. Restore it (git checkout -- {path}), or delete it to make it anew from "
            "the runs on this machine"
        ) from error
    return {row.key: row for row in rows}


def write_store(path: Path, rows: Mapping[Key, OurRow]) -> None:
    """Write the store, sorted by key."""
    content = {"version": VERSION, "rows": [_to_json(rows[key]) for key in sorted(rows)]}
    with atomic_file(path, digest=False) as file:
        file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def merge(stored: Mapping[Key, OurRow], rows: Iterable[OurRow]) -> dict[Key, OurRow]:
    """Return ``stored`` with ``rows``; of two with one key the newer one, or the one with intervals.

    A row is dropped where another one has its seeds and more, and is as new.
    """
    result = dict(stored)
    for row in rows:
        old = result.get(row.key)
        if old is None or (row.finished, row.has_intervals) >= (old.finished, old.has_intervals):
            result[row.key] = row
    wider: dict[tuple[Any, ...], list[OurRow]] = {}
    for row in result.values():
        wider.setdefault(row.key[:-1], []).append(row)

    def is_covered(row: OurRow) -> bool:
        others = wider[row.key[:-1]]
        return any(set(row.seeds) < set(other.seeds) and row.finished <= other.finished for other in others)

    return {key: row for key, row in result.items() if not is_covered(row)}


def _row(group: RunGroup) -> OurRow:
    """Return the row of a group of runs, without intervals."""
    runs, first = sorted(group.runs, key=lambda run: run.seed), group.runs[0]
    means = {name: _mean(runs, name) for name in (*METRICS, *WARM_AND_COLD)}
    costs = [run.cost for run in runs]
    seconds = [cost["train_seconds"] for cost in costs if cost.get("train_seconds") is not None]
    hardware = dict.fromkeys(str(cost.get("hardware") or cost.get("device") or "") for cost in costs)
    return OurRow(
        dataset=group.dataset,
        protocol=_protocol(first.protocol),
        model=group.name,
        settings_id=group.settings or "",
        seeds=tuple(run.seed for run in runs),
        users=int(first.test.get("users", 0)),
        metrics={name: Value(round(mean, 6)) for name, mean in means.items() if np.isfinite(mean)},
        commit=", ".join(dict.fromkeys(run.commit for run in runs if run.commit)),
        hardware=", ".join(filter(None, hardware)),
        train_seconds=round(float(np.mean(seconds)), 1) if seconds else None,
        kinds_of_ids=tuple(first.settings.get("ids") or ()),
        history_bias=float((first.settings.get("train") or {}).get("history_bias") or 0),
        members=_members(first.ensemble),
        finished=max(run.finished for run in runs),
    )


def _protocol(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a protocol that a page needs: without the steps of ingestion."""
    return {name: value for name, value in values.items() if name not in ("steps", "dataset", "sizes", "test_set")}


def _mean(runs: Iterable[Run], name: str) -> float:
    values = [run.test_metrics.get(name) for run in runs]
    return float(np.mean([np.nan if value is None else value for value in values]))


def _members(ensemble: Mapping[str, Any]) -> str:
    pairs = zip(ensemble.get("members", ()), ensemble.get("weights", ()), strict=False)
    return " + ".join(f"{weight:.2f} {name}" for name, weight in pairs)


def _ranks(store: RunStore, name: str, run: Run, problems: list[str]) -> pa.Table | None:
    """Return the ranks of a run; None where they are missing, damaged or of another evaluation."""
    try:
        table = store.ranks[name]
        value = float(np.mean(user_metrics(table, cutoffs=[10])["ndcg@10"].to_numpy()))
    except (KeyError, ValueError) as error:  # also DamagedFileError
        reason = "no ranks on disk" if isinstance(error, KeyError) else str(error)
        problems.append(f"{run.dataset}, {run.name}: {reason}, so no interval")
        return None
    if abs(value - run.test.get("ndcg@10", value)) > 1e-6:
        problems.append(f"{run.dataset}, {run.name}: its ranks do not match its metrics, so no interval")
        return None
    return table


def _with_intervals(row: OurRow, tables: list[pa.Table]) -> OurRow:
    """Return the row with bootstrap intervals over users of the mean over seeds; users are resampled, models not.

    Raises ValueError for seeds with different numbers of targets.
    """
    metrics = dict(row.metrics)
    for prefix in ("", "warm_", "cold_"):
        names = [name for name in metrics if name.removeprefix(prefix) in METRICS and name.startswith(prefix)]
        parts = [_part(table, prefix) for table in tables]
        if len(set(map(len, parts))) > 1:
            raise ValueError(f"its seeds have {' and '.join(sorted({str(len(part)) for part in parts}))} targets")
        if names and min(map(len, parts)) > 1:
            values_UM = np.mean([_user_values(part, names, prefix) for part in parts], axis=0)
            resamples = min(RESAMPLES, max(1000, MAX_DRAWS // len(values_UM)))
            means_RM = bootstrap_means(values_UM, resamples=resamples, seed=0)
            for name, bounds in zip(names, np.quantile(means_RM, [0.025, 0.975], axis=0).T, strict=True):
                metrics[name] = Value(metrics[name].mean, *(round(float(bound), 6) for bound in bounds))
    return replace(row, metrics=metrics)


def _part(table: pa.Table, prefix: str) -> pa.Table:
    """Return the rows of all, warm or cold targets."""
    if not prefix:
        return table
    return table.filter(table["cold"] if prefix == "cold_" else pc.invert(table["cold"]))


def _user_values(table: pa.Table, names: list[str], prefix: str) -> Floats:
    """Return metrics (U, M) of the users, in the order of their ids."""
    users = user_metrics(table, cutoffs=CUTOFFS).sort_by("user_id")
    return np.stack([users[name.removeprefix(prefix)].to_numpy() for name in names], axis=1)


def _to_json(row: OurRow) -> dict[str, Any]:
    values = asdict(row)
    values["metrics"] = {name: [value.mean, value.low, value.high] for name, value in row.metrics.items()}
    return values


def _from_json(values: Mapping[str, Any]) -> OurRow:
    metrics = {name: Value(*bounds) for name, bounds in values["metrics"].items()}
    tuples = {name: tuple(values[name]) for name in ("seeds", "kinds_of_ids")}
    values["protocol"]["id"]
    return OurRow(**{**values, **tuples, "metrics": metrics})
