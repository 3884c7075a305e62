"""A handful of users to judge by eye: what they had, what came next, and what each model recommended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recpipe.data.sequences import Sequences
from recpipe.evaluation.recommendations import MODEL, titles_of
from recpipe.reporting.formatting import day


@dataclass(frozen=True)
class Shown:
    """An item of a history or a target; `when` is a day, if the log has time."""

    item_id: str
    title: str
    when: str | None = None


@dataclass(frozen=True)
class Recommended:
    """One place of a top-k list; `hit` if the item is among the user's targets."""

    rank: int
    item_id: str
    title: str
    logit: float
    probability: float | None
    hit: bool
    fallback: bool = False  # not the model's own: the user had no history


@dataclass(frozen=True)
class Example:
    """One user: the last events (newest first) of `length`, the targets, and each model's list."""

    user: str
    length: int
    history: tuple[Shown, ...]
    targets: tuple[Shown, ...]
    recommendations: Mapping[str, tuple[Recommended, ...]]


def examples(
    histories: Sequences,
    ranks: pa.Table,
    recommendations: Mapping[str, pa.Table],
    items: pa.Table,
    *,
    item_ids: NDArray[Any],
    seed: int,
    users: int = 6,
    history: int = 6,
    top: int = 10,
) -> list[Example]:
    """Users drawn by `seed`, half of them with a target in the list of the first model, half without, mixed.

    `ranks` are those of the first model of `recommendations`; `item_ids` is the vocabulary that `histories`
    index from 1; `items` has item_id and title. Where one half has too few users the other fills up.
    """
    chosen = _draw(ranks, histories, users=users, top=top, seed=seed)
    places = pc.index_in(pa.array(chosen, pa.string()), pa.array(histories.users, pa.string())).to_pylist()
    targets = _by_user(ranks, chosen, "target")
    lists = {model: _by_user(table, chosen) for model, table in recommendations.items()}
    found = []
    for user, place in zip(chosen, places, strict=True):
        wanted = [row["target"] for row in targets[user]]
        start, stop = int(histories.offsets[place]), int(histories.offsets[place + 1])
        found.append(
            Example(
                user=user,
                length=stop - start,
                history=_history(histories, max(start, stop - history), stop, item_ids, items),
                targets=_shown(wanted, items),
                recommendations={model: _list(rows[user], wanted, top) for model, rows in lists.items()},
            )
        )
    return found


def to_json(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples as JSON values; ``from_json`` is the inverse."""
    return [asdict(example) for example in examples]


def from_json(values: Sequence[Mapping[str, Any]]) -> list[Example]:
    """Examples that ``to_json`` wrote."""
    return [
        Example(
            user=each["user"],
            length=each["length"],
            history=tuple(Shown(**shown) for shown in each["history"]),
            targets=tuple(Shown(**shown) for shown in each["targets"]),
            recommendations={
                model: tuple(Recommended(**place) for place in places)
                for model, places in each["recommendations"].items()
            },
        )
        for each in values
    ]


def _draw(ranks: pa.Table, histories: Sequences, *, users: int, top: int, seed: int) -> list[str]:
    known = pc.is_in(ranks["user_id"], pa.array(histories.users, pa.string()))
    ranks = ranks.filter(known)
    everyone = ranks["user_id"].unique()
    hit_rows = ranks.filter(pc.and_(pc.greater(ranks["rank"], 0), pc.less_equal(ranks["rank"], top)))
    is_hit = pc.is_in(everyone, hit_rows["user_id"].unique())
    draw = np.random.default_rng(seed)
    hits = draw.permutation(everyone.filter(is_hit).to_pylist()).tolist()
    misses = draw.permutation(everyone.filter(pc.invert(is_hit)).to_pylist()).tolist()
    half = max((users + 1) // 2, users - len(misses))
    chosen = hits[:half]
    chosen += misses[: users - len(chosen)]
    return [str(user) for user in draw.permutation(chosen)]


def _by_user(table: pa.Table, users: list[str], column: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """The rows of the few chosen users, by rank."""
    wanted = table.filter(pc.is_in(table["user_id"], pa.array(users, pa.string()))).sort_by("rank")
    rows: dict[str, list[dict[str, Any]]] = {user: [] for user in users}
    for row in (wanted.select(["user_id", column]) if column else wanted).to_pylist():
        rows[row["user_id"]].append(row)
    return rows


def _history(
    histories: Sequences, start: int, stop: int, item_ids: NDArray[Any], items: pa.Table
) -> tuple[Shown, ...]:
    newest_first = np.arange(start, stop)[::-1]
    ids = [str(item_ids[index - 1]) for index in histories.items[newest_first]]
    times = None if histories.timestamps is None else histories.timestamps[newest_first].tolist()
    return _shown(ids, items, times)


def _shown(ids: list[str], items: pa.Table, times: list[int] | None = None) -> tuple[Shown, ...]:
    titles = titles_of(pa.array(ids, pa.string()), items).to_pylist()
    days = [day(at) for at in times] if times is not None else [None] * len(ids)
    return tuple(Shown(*each) for each in zip(ids, titles, days, strict=True))


def _list(rows: list[dict[str, Any]], wanted: list[str], top: int) -> tuple[Recommended, ...]:
    fields = ("rank", "item_id", "title", "logit", "probability")
    return tuple(
        Recommended(
            **{name: row[name] for name in fields},
            hit=row["item_id"] in wanted,
            fallback=row.get("source", MODEL) != MODEL,  # tables of before there was a source have none
        )
        for row in rows[:top]
    )
