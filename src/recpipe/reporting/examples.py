"""Example users of the report: history, targets and the recommendations of each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import TypeAdapter

from recpipe.data.sequences import Sequences
from recpipe.evaluation.recommendations import COLD_USERS, titles_of
from recpipe.reporting.formatting import day


@dataclass(frozen=True)
class ExampleItem:
    """An item of a history or a target; ``when`` is its day, if the log has timestamps."""

    item_id: str
    title: str
    when: str | None = None


@dataclass(frozen=True)
class RecommendedItem:
    """One place of a top-k list; ``hit`` if the item is a target of the user."""

    rank: int
    item_id: str
    title: str
    logit: float | None  # None for an item of a content slot
    probability: float | None
    hit: bool
    fallback: bool = False  # from the cold-user fallback instead of the model


@dataclass(frozen=True)
class Example:
    """One user: the last events of ``length`` (newest first), the targets, and the list of each model."""

    user: str
    length: int
    history: tuple[ExampleItem, ...]
    targets: tuple[ExampleItem, ...]
    recommendations: Mapping[str, tuple[RecommendedItem, ...]]


def pick_examples(
    histories: Sequences,
    ranks: pa.Table,
    recommendations: Mapping[str, pa.Table],
    items: pa.Table,
    *,
    item_ids: NDArray[np.object_],
    seed: int,
    users: int = 6,
    history: int = 6,
    k: int = 10,
) -> list[Example]:
    """Draw users by ``seed``: half with a target in the first model's list, half without, or else the other kind.

    ``ranks`` are of the first model in ``recommendations``. ``histories`` index ``item_ids`` (I,) from 1; ``items`` has
    the columns item_id and title. ``history`` and ``k`` limit the events and places shown.
    """
    names = _draw_users(ranks, histories, users=users, k=k, seed=seed)
    rows = pc.index_in(pa.array(names, pa.string()), histories.users.array).to_pylist()
    targets_of = _by_user(ranks, names)
    lists = {model: _by_user(table, names) for model, table in recommendations.items()}
    result = []
    for user, row in zip(names, rows, strict=True):
        targets = [rank["target"] for rank in targets_of[user]]
        start, stop = int(histories.offsets[row]), int(histories.offsets[row + 1])
        newest_first = np.arange(max(start, stop - history), stop)[::-1]
        ids = [str(item_ids[index - 1]) for index in histories.items[newest_first]]
        times = None if histories.timestamps is None else histories.timestamps[newest_first].tolist()
        events, targets_with_titles = _with_titles(ids, items, times), _with_titles(targets, items)
        shown = {model: _list(by_user[user][:k], targets) for model, by_user in lists.items()}
        result.append(Example(user, stop - start, events, targets_with_titles, shown))
    return result


def to_json(users: Sequence[Example]) -> list[dict[str, Any]]:
    """Convert examples to JSON values; ``from_json`` is the inverse."""
    return [asdict(user) for user in users]


def from_json(values: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Build examples from the values of ``to_json``."""
    return TypeAdapter(list[Example]).validate_python(values)


def _draw_users(ranks: pa.Table, histories: Sequences, *, users: int, k: int, seed: int) -> list[str]:
    ranks = ranks.filter(pc.is_in(ranks["user_id"], histories.users.array))
    candidates = ranks["user_id"].unique()
    hit_rows = ranks.filter(pc.and_(pc.greater(ranks["rank"], 0), pc.less_equal(ranks["rank"], k)))
    is_hit = pc.is_in(candidates, hit_rows["user_id"].unique())
    generator = np.random.default_rng(seed)
    hits, misses = (
        generator.permutation(candidates.filter(mask).to_pylist()).tolist() for mask in (is_hit, pc.invert(is_hit))
    )
    chosen = hits[: max((users + 1) // 2, users - len(misses))]
    chosen += misses[: users - len(chosen)]
    return [str(user) for user in generator.permutation(chosen)]


def _by_user(table: pa.Table, users: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Rows of these users, by rank."""
    rows: dict[str, list[dict[str, Any]]] = {user: [] for user in users}
    for row in table.filter(pc.is_in(table["user_id"], pa.array(users, pa.string()))).sort_by("rank").to_pylist():
        rows[row["user_id"]].append(row)
    return rows


def _with_titles(ids: list[str], items: pa.Table, times: list[int] | None = None) -> tuple[ExampleItem, ...]:
    titles = titles_of(pa.array(ids, pa.string()), items).to_pylist()
    days = [None] * len(ids) if times is None else [day(time) for time in times]
    return tuple(map(ExampleItem, ids, titles, days))


def _list(rows: list[dict[str, Any]], targets: list[str]) -> tuple[RecommendedItem, ...]:
    items = []
    for row in rows:
        values = {name: row[name] for name in ("rank", "item_id", "title", "logit", "probability")}
        fallback = row.get("source") == COLD_USERS  # tables of older versions have no source
        items.append(RecommendedItem(**values, hit=row["item_id"] in targets, fallback=fallback))
    return tuple(items)
