"""A row of the leaderboard: means over the seeds of one model under one protocol, and what is known beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from recpipe.reporting.runs import Row, Run
from recpipe.reporting.wording import percent

COST = (
    "train_seconds",
    "seconds_per_epoch",
    "epochs",
    "parameters",
    "peak_memory_mib",
    "inference_users_per_second",
    "inference_latency_ms_p50",
    "inference_latency_ms_p95",
)
COUNTS = ("users", "targets", "unrankable", "cold_targets")


def metric_names(found: list[Run], metric: str) -> list[str]:
    """The chosen metric, the others at its cut-off, the rest."""
    names = list(
        dict.fromkeys([metric, *(name for run in found for name in run.measured if name not in COUNTS)])
    )
    return sorted(
        names, key=lambda name: (name != metric, name.partition("@")[2] != metric.partition("@")[2])
    )


def row_of(together: Row, names: list[str]) -> dict[str, Any]:
    group = together.runs
    row: dict[str, Any] = {
        "dataset": together.dataset,
        "protocol": together.protocol,
        "model": together.model,
        "name": together.name,
        "settings": together.settings,
        "seeds": len(group),
        "members": _members(group),
        "search": _searched(group[-1].search),
        "commit": _commits(group),
    }
    measured = [run.measured for run in group]
    row |= {name: _mean([each.get(name) for each in measured]) for name in names}
    row |= {f"{name}_std": _std([each.get(name) for each in measured]) for name in names}
    row |= {name: _mean([run.test.get(name) for run in group]) for name in COUNTS}
    row |= {name: _mean([run.cost.get(name) for run in group]) for name in COST}
    return row | {"finished": max(run.finished for run in group)}


def _members(group: Sequence[Run]) -> str | None:
    """Of an ensemble its members with their weights, on average over seeds."""
    told = [run.ensemble for run in group if run.ensemble]
    if not told:
        return None
    weights = np.mean([each["weights"] for each in told], axis=0)
    parts = [f"{weight:.2f} {name}" for name, weight in zip(told[0]["members"], weights, strict=True)]
    return f"{' + '.join(parts)}, by {group[0].settings.get('method')}"


def _commits(group: Sequence[Run]) -> str | None:
    """Of the code that each run was made by; + where it had changes that no commit has."""
    known = dict.fromkeys(run.commit for run in group if run.commit)
    return ", ".join(known) or None


def _searched(found: Mapping[str, Any]) -> str | None:
    """What a beam search would lose."""
    if not found:
        return None
    return (
        f"scored exactly; a beam of {found['beam']} would miss {percent(found['missed'])} of the first {found['k']} "
        f"items, for {percent(found['users'])} of users"
    )


def bounds(together: Row, metric: str, certainty: Mapping[str, Mapping[str, Any]]) -> dict[str, float | None]:
    if not certainty:
        return {}
    found = certainty.get(together.protocol, {}).get("estimates", {}).get(together.model, {})
    return {f"{metric}_{bound}": found.get(bound) for bound in ("low", "high")}


def _mean(values: list[float | None]) -> float | None:
    known = known_of(values)
    return float(np.mean(known)) if known else None


def _std(values: list[float | None]) -> float | None:
    known = known_of(values)
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def known_of(values: list[float | None]) -> list[float]:
    return [value for value in values if value is not None and np.isfinite(value)]
