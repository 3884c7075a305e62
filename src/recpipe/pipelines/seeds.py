"""Plan of the runs of `--params seeds=42+123+2023`: which seed runs which pipelines.

Pipelines that do not depend on the seed (log, vectors, ids) run once, first; geometry and the report run once, last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recpipe.config import split_names

ONCE = ("ingest", "embed", "semantic_ids")
REPORT = "report"
LAST = ("geometry", REPORT)
WHOLE = "__default__"
PER_SEED = ["train", "evaluate"]  # of the whole project
Plan = list[tuple[int, list[str] | None]]


def parse_seeds(seeds: Any) -> list[int]:
    """Parse `42+123`, 42 or a list to a list without repeats, null to []. Raises ValueError for other values."""
    if seeds is None:
        return []
    words = seeds if isinstance(seeds, Sequence) and not isinstance(seeds, str) else split_names(seeds)
    try:
        numbers = [int(str(word)) for word in words]
    except ValueError:
        numbers = [-1]
    if not numbers or min(numbers) < 0:
        raise ValueError(f"seeds is {seeds!r}; give whole numbers from 0, as 42+123+2023")
    return list(dict.fromkeys(numbers))


def plan(seeds: Sequence[int], pipelines: Sequence[str] | None, *, filtered: bool = False) -> Plan:
    """Seed and pipelines of each run, in order; None for the whole project.

    ``filtered``: the command selects nodes, so every seed runs the same pipelines.
    """
    first, *others = seeds
    if filtered or not others:
        return [(seed, list(pipelines) if pipelines else None) for seed in seeds]
    ends = [name for name in pipelines or () if name in LAST]
    if not pipelines or WHOLE in pipelines:
        return [
            (first, None),
            *((seed, PER_SEED) for seed in others),
            (first, [*(name for name in ends if name != REPORT), REPORT]),
        ]
    begins = [name for name in pipelines if name not in LAST]
    again = [name for name in begins if name not in ONCE]
    runs: Plan = [(first, begins)] if begins else []
    runs += [(seed, again) for seed in others if again]
    return [*runs, (first, ends)] if ends else runs
