"""What runs left on disk, read so that one damaged file costs its own part of the report and no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kedro.io import DatasetError

Loads = Mapping[str, Callable[[], Any]]
RANKS = ("user_id", "target", "rank", "history", "cold")
LISTS = ("user_id", "rank", "item_id", "probability")
CURVE = ("epoch", "step", "seconds", "loss")


class Damaged(ValueError):
    """A file that cannot be read, or lacks what it should hold."""


def readable(loads: Loads, what: str, columns: tuple[str, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """What can be read, by run, and a sentence for every other one. `columns` that a table must have."""
    found, problems = {}, []
    for name in loads:
        try:
            found[name] = _read(name, loads[name], what, columns)
        except Damaged as error:
            problems.append(str(error))
    return found, problems


def guarded(loads: Loads, what: str, columns: tuple[str, ...]) -> Loads:
    """Loads that give Arrow tables with `columns`, or raise `Damaged`."""
    return {name: _guard(name, load, what, columns) for name, load in loads.items()}


def curves_of(run_curves: Loads) -> dict[str, Any]:
    """Curves by "model · seed 42", without those of models that were fitted in one go."""
    curves, _ = readable(run_curves, "curves", CURVE)
    return {name.replace("/seed_", " · seed "): curve for name, curve in curves.items() if curve.height}


def sections(qualities: Mapping[str, Any], id_figures: Loads) -> tuple[list[Any], list[str]]:
    """What is said of semantic ids, by group such as `text_ids`, with their figures; and of which nothing can be."""
    from recpipe.reporting import semantic_ids

    made, unread = [], []
    for group, quality in qualities.items():
        start = f"{group}/"
        mine = {name.removeprefix(start): load for name, load in id_figures.items() if name.startswith(start)}
        try:
            made += [] if quality is None else [semantic_ids.section(quality, readable(mine, "figure")[0])]
        except (KeyError, TypeError) as error:
            unread.append(f"The quality of {group} is of another version ({error}): run semantic_ids again")
    return made, unread


def _guard(name: str, load: Callable[[], Any], what: str, columns: tuple[str, ...]) -> Callable[[], Any]:
    return lambda: _read(name, load, what, columns).to_arrow()


def _read(name: str, load: Callable[[], Any], what: str, columns: tuple[str, ...]) -> Any:
    try:
        value = load()
    except (DatasetError, OSError, ValueError) as error:
        raise Damaged(f"the {what} of {name} cannot be read: {_cause(error)}") from error
    if lacking := [column for column in columns if column not in value.columns]:
        raise Damaged(f"the {what} of {name} have no {', '.join(lacking)}: run it again")
    return value


def _cause(error: BaseException) -> str:
    """What was wrong, in a line: Kedro tells it behind what it tried to do."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200] or type(error).__name__
