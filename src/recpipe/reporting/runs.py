"""Finished runs as the report sees them: metrics.json checked, the latest per model, protocol, settings and seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

REQUIRED = ("dataset", "model", "seed", "protocol", "test")
OBJECTS = ("test", "valid", "warm_items", "cold_items", "cost", "versions", "settings", "ensemble")


@dataclass(frozen=True)
class Run:
    """One metrics.json; fields as written by `evaluate`."""

    dataset: str
    model: str
    seed: int
    protocol: Mapping[str, Any]
    test: Mapping[str, float]
    valid: Mapping[str, float] = field(default_factory=dict)
    warm_items: Mapping[str, float] = field(default_factory=dict)  # of the test targets that training saw,
    cold_items: Mapping[str, float] = field(default_factory=dict)  # and of those that it did not
    cost: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    settings_id: str | None = None  # None: written before settings were
    settings: Mapping[str, Any] = field(default_factory=dict)
    ensemble: Mapping[str, Any] = field(default_factory=dict)  # members and weights of one
    search: Mapping[str, Any] = field(default_factory=dict)  # what a beam would lose of exact lists
    commit: str | None = None
    finished: str = ""

    @property
    def measured(self) -> dict[str, float]:
        """``test`` with the metrics of warm and cold items beside it, as in warm_recall@10 and cold_recall@10."""
        parts = (("warm", self.warm_items), ("cold", self.cold_items))
        return {
            **self.test,
            **{f"{kind}_{name}": part[name] for kind, part in parts for name in part if "@" in name},
        }

    @property
    def protocol_id(self) -> str:
        return str(self.protocol["id"])


@dataclass(frozen=True)
class Row:
    """Runs that differ by their seeds only: one row of the leaderboard."""

    dataset: str
    protocol: str
    model: str  # what the row is called: `name`, with the id of the settings where a protocol has several of one model
    name: str
    settings: str | None
    runs: tuple[Run, ...]


def rows(found: Iterable[Run]) -> list[Row]:
    """The runs put together by data set, protocol, model and settings, in the order in which they first come."""
    together: dict[tuple[str, str, str, str | None], list[Run]] = {}
    for run in found:
        together.setdefault((run.dataset, run.protocol_id, run.model, run.settings_id), []).append(run)
    several = Counter(key[:3] for key in together)
    made = []
    for (dataset, protocol, name, settings), runs in together.items():
        own = f" ({settings or 'settings unknown'})" if several[dataset, protocol, name] > 1 else ""
        made.append(Row(dataset, protocol, f"{name}{own}", name, settings, tuple(runs)))
    return made


def read_runs(runs: Iterable[Mapping[str, Any]]) -> tuple[list[Run], list[str]]:
    """The latest run (by `finished`) per dataset, protocol, model, settings and seed, and why others are left out.

    The order is by dataset, protocol, model, settings and seed, whatever the order of the files was.
    """
    latest: dict[tuple[str, ...], Run] = {}
    problems = []
    for number, fields in enumerate(runs, start=1):
        found = problem(fields)
        if found:
            problems.append(f"run {number} ({_label(fields)}) is left out: {found}")
            continue
        run = Run(**{name: fields[name] for name in Run.__dataclass_fields__ if fields.get(name) is not None})
        key = (run.dataset, run.protocol_id, run.model, run.settings_id or "", str(run.seed))
        if key not in latest or run.finished >= latest[key].finished:
            latest[key] = run
    return [latest[key] for key in sorted(latest)], problems


def problem(fields: Any) -> str | None:
    """Why `read_runs` leaves this metrics.json out; None for one that it takes."""
    if not isinstance(fields, Mapping):
        return f"it holds a {type(fields).__name__}, not an object"
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if missing:
        return f"metrics.json has no {', '.join(missing)}: written by an older version? run `evaluate` again"
    if not isinstance(fields["protocol"], Mapping) or not fields["protocol"].get("id"):
        return "its protocol has no id: run `evaluate` again"
    odd = [name for name in OBJECTS if not isinstance(fields.get(name) or {}, Mapping)]
    return f"its {odd[0]} is not an object: run `evaluate` again" if odd else None


def _label(fields: Any) -> str:
    if not isinstance(fields, Mapping):
        return "?"
    return (
        ", ".join(str(fields[name]) for name in ("dataset", "model", "seed") if fields.get(name) is not None)
        or "?"
    )
