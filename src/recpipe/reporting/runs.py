"""Metrics of runs, parsed from metrics.json, and groups of runs that differ in their seeds or folds only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from recpipe.data.protocol import Protocol

REQUIRED = ("dataset", "model", "seed", "protocol", "test")
OBJECTS = (
    "test", "valid", "warm_items", "cold_items", "memorised", "generalised", "debiased", "cost", "versions", "settings",
    "ensemble",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Metrics of a run: the fields of metrics.json, as the pipeline evaluate writes them."""

    dataset: str
    model: str
    seed: int
    protocol: Mapping[str, Any]
    test: Mapping[str, float]
    valid: Mapping[str, float] = field(default_factory=dict)
    warm_items: Mapping[str, float] = field(default_factory=dict)  # metrics of targets seen in training
    cold_items: Mapping[str, float] = field(default_factory=dict)  # metrics of targets not seen in training
    memorised: Mapping[str, float] = field(default_factory=dict)  # metrics of targets that follow the last item there
    generalised: Mapping[str, float] = field(default_factory=dict)  # metrics of the other targets
    debiased: Mapping[str, float] = field(default_factory=dict)  # metrics corrected for popularity
    cost: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings_id: str | None = None  # None in files of older versions
    settings: Mapping[str, Any] = field(default_factory=dict)
    ensemble: Mapping[str, Any] = field(default_factory=dict)  # members and weights
    search: Mapping[str, Any] = field(default_factory=dict)  # beam search against exact scores
    commit: str | None = None
    finished: str = ""

    @property
    def name(self) -> str:
        """Model and seed, as in ``sasrec/seed_42``."""
        return f"{self.model}/seed_{self.seed}"

    @property
    def key(self) -> str:
        """Name and protocol id, by which ``RunStore`` has metrics, ranks and recommendations."""
        return f"{self.name}/{self.protocol_id}"

    @property
    def protocol_id(self) -> str:
        """Id of the protocol that it was evaluated under."""
        return str(self.protocol["id"])

    @property
    def fold(self) -> int | None:
        """Fold of a rolling split, from 1; None under other splits."""
        return self.protocol.get("fold")

    @property
    def folds(self) -> int:
        """Number of folds of a rolling split."""
        return int(self.protocol["folds"])

    @property
    def folds_id(self) -> str:
        """Protocol id of all folds of a rolling split together."""
        return Protocol.from_dict(self.protocol).folds_id

    @property
    def test_metrics(self) -> dict[str, float]:
        """``test``, and the metrics of parts of the targets as ``cold_recall@10``, ``memorised_ndcg@10`` and so on."""
        parts = (
            ("warm", self.warm_items),
            ("cold", self.cold_items),
            ("memorised", self.memorised),
            ("generalised", self.generalised),
            ("debiased", self.debiased),
        )
        return {**self.test, **{f"{kind}_{name}": part[name] for kind, part in parts for name in part if "@" in name}}


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ only in their seeds: one row of the leaderboard."""

    dataset: str
    protocol: str
    model: str  # `name`, with the id of the settings where a protocol has several of one model
    name: str
    settings: str | None
    runs: tuple[Run, ...]


def group_runs(runs: Iterable[Run]) -> list[RunGroup]:
    """Group runs by data set, protocol, model and settings, in order of first appearance."""
    groups: dict[tuple[str, str, str, str | None], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.dataset, run.protocol_id, run.model, run.settings_id), []).append(run)
    variants = Counter(key[:3] for key in groups)
    result = []
    for (dataset, protocol, name, settings), members in groups.items():
        suffix = f" ({settings or 'settings unknown'})" if variants[dataset, protocol, name] > 1 else ""
        result.append(RunGroup(dataset, protocol, f"{name}{suffix}", name, settings, tuple(members)))
    return result


def group_folds(runs: Iterable[Run]) -> list[RunGroup]:
    """Group runs over all folds of a rolling split, under the id of all folds; models that lack folds are left out."""
    groups: dict[tuple[str, str, str, str | None], list[Run]] = {}
    for run in runs:
        if run.fold is not None:
            groups.setdefault((run.dataset, run.folds_id, run.model, run.settings_id), []).append(run)
    groups = {key: members for key, members in groups.items() if len({run.fold for run in members}) == members[0].folds}
    variants = Counter(key[:3] for key in groups)
    return [
        RunGroup(dataset, id_, f"{name} ({settings})" if variants[dataset, id_, name] > 1 else name, name, settings,
                 tuple(members))
        for (dataset, id_, name, settings), members in groups.items()
    ]  # fmt: skip


def names_by_protocol(runs: Iterable[Run]) -> dict[str, str]:
    """Return the names of protocols by id, with the fold of a rolling split; those of the newest runs of an id.

    Ids of all folds together have a name too. Protocols without one are left out.
    """
    names: dict[str, str] = {}
    for run in sorted(runs, key=lambda run: run.finished):
        name = run.protocol.get("name")
        if run.fold is not None:
            name = name or "rolling"
            names[run.folds_id] = f"{name}, mean of {run.folds} folds"
            name = f"{name}, fold {run.fold} of {run.folds}"
        if name:
            names[run.protocol_id] = str(name)
    return names


def read_runs(metrics: Iterable[Mapping[str, Any]]) -> tuple[list[Run], list[str]]:
    """Parse metrics.json dicts; return runs and a message for each that is left out.

    Runs are sorted by data set, protocol, model, settings and seed; of several with one key the latest counts.
    """
    latest: dict[tuple[str, ...], Run] = {}
    problems = []
    names = [item.name for item in fields(Run)]
    for number, values in enumerate(metrics, start=1):
        if problem := check_metrics(values):
            parts = [values.get(name) for name in REQUIRED[:3]] if isinstance(values, Mapping) else []
            label = ", ".join(str(part) for part in parts if part is not None) or "?"
            problems.append(f"run {number} ({label}) is left out: {problem}")
            continue
        run = Run(**{name: values[name] for name in names if values.get(name) is not None})
        key = (run.dataset, run.protocol_id, run.model, run.settings_id or "", str(run.seed))
        if key not in latest or run.finished >= latest[key].finished:
            latest[key] = run
    return [latest[key] for key in sorted(latest)], problems


def check_metrics(values: object) -> str | None:
    """Return why a metrics.json is unusable, None for a usable one."""
    if not isinstance(values, Mapping):
        return f"it holds a {type(values).__name__}, not an object"
    missing = [name for name in REQUIRED if values.get(name) is None]
    if missing:
        return f"metrics.json has no {', '.join(missing)}: written by an older version? run `evaluate` again"
    if not isinstance(values["protocol"], Mapping) or not values["protocol"].get("id"):
        return "its protocol has no id: run `evaluate` again"
    wrong = [name for name in OBJECTS if not isinstance(values.get(name) or {}, Mapping)]
    return f"its {wrong[0]} is not an object: run `evaluate` again" if wrong else None


def run_key(run: str, metrics: object) -> str:
    """Return ``<model>/seed_<n>/<protocol id>``, or ``run`` alone for metrics without a protocol."""
    protocol = metrics.get("protocol") if isinstance(metrics, Mapping) else None
    id_ = protocol.get("id") if isinstance(protocol, Mapping) else None
    return f"{run}/{id_}" if id_ else run
