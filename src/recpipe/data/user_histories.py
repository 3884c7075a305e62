"""Events of single users of an ingested log, read from its Parquet files at the time of the question.

Nothing is loaded beforehand: a look-up streams the columns that it needs and stops at its limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from recpipe.data.digests import verified

COLUMNS = ("user_id", "item_id", "timestamp", "order")  # of interactions


@dataclass(frozen=True)
class UserHistory:
    """Last events of a user, oldest first."""

    user_id: str
    total: int  # events of the user in the log
    items: list[str]
    timestamps: list[int] | None  # seconds; None where an event has no time
    titles: list[str | None] = field(default_factory=list)  # beside ``items``; empty unless requested


class UserHistories:
    """Look-up of users in a folder with interactions.parquet, items.parquet and users.parquet.

    The files are opened at each look-up, so that those of a later ingest take their place.
    """

    def __init__(self, folder: Path) -> None:
        """Check the files. Raises ValueError for a folder without them, and for damaged or foreign ones."""
        self._folder = folder
        for dataset in (self._interactions, self._users, self._items):
            dataset()

    def _interactions(self) -> ds.Dataset:
        return _open(self._folder / "interactions.parquet", COLUMNS)

    def _users(self) -> ds.Dataset:
        return _open(self._folder / "users.parquet", ("user_id",))

    def _items(self) -> ds.Dataset:
        return _open(self._folder / "items.parquet", ("item_id",))

    def find(self, text: str, limit: int = 20) -> list[str]:
        """Return at most ``limit`` users whose id contains ``text``; the id itself and its beginnings come first."""
        column = pc.field("user_id")
        users, matches = self._users(), dict[str, None]()
        for condition in (
            column == text,
            pc.starts_with(column, text),
            pc.match_substring(column, text, ignore_case=True),
        ):
            if len(matches) < limit:
                scanner = users.scanner(columns=["user_id"], filter=condition)
                matches |= dict.fromkeys(scanner.head(limit)["user_id"].to_pylist())
        return list(matches)[:limit]

    def history(self, user: str, limit: int = 1000) -> UserHistory | None:
        """Return the last ``limit`` events of ``user`` in the order that models are trained in, None without any."""
        history = self.histories([user], limit).get(user)
        return None if history is None else replace(history, titles=self._titles(history.items))

    def histories(self, users: Sequence[str], limit: int | None = None) -> dict[str, UserHistory]:
        """Return the last ``limit`` events, by default all, of those of ``users`` that have any, without titles."""
        log = self._interactions()
        ids = pa.array(users, pa.string()).cast(log.schema.field("user_id").type)
        events = log.to_table(columns=[*COLUMNS], filter=pc.field("user_id").isin(ids)).sort_by("user_id")
        owners = events["user_id"].value_counts()
        histories, start = {}, 0
        for user, count in zip(owners.field("values").to_pylist(), owners.field("counts").to_pylist(), strict=True):
            histories[user] = _last_events(user, events.slice(start, count), limit)
            start += count
        return histories

    def profiles(self, users: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Return the columns of ``users``, with ``user_id``; without the columns that the log does not have."""
        table = self._users()
        names = ["user_id", *(name for name in columns if name in table.schema.names)]
        ids = pa.array(users, pa.string()).cast(table.schema.field("user_id").type)
        return table.to_table(columns=names, filter=pc.field("user_id").isin(ids))

    def _titles(self, items: list[str]) -> list[str | None]:
        table = self._items()
        if "title" not in table.schema.names:
            return [None] * len(items)
        condition = pc.field("item_id").isin(sorted(set(items)))
        rows = table.to_table(columns=["item_id", "title"], filter=condition)
        titles = dict(zip(rows["item_id"].to_pylist(), rows["title"].cast(pa.string()).to_pylist(), strict=True))
        return [titles.get(item) for item in items]


def _last_events(user: str, events: pa.Table, limit: int | None) -> UserHistory:
    """Sort the events of a user and return the last ones."""
    timed = pa.types.is_integer(events["timestamp"].type) and not events["timestamp"].null_count
    keys = [("timestamp", "ascending"), ("order", "ascending")] if timed else [("order", "ascending")]
    last = events.sort_by(keys).slice(0 if limit is None else max(events.num_rows - limit, 0))
    items = last["item_id"].cast(pa.string()).to_pylist()
    return UserHistory(user, events.num_rows, items, last["timestamp"].to_pylist() if timed else None)


def _open(path: Path, columns: tuple[str, ...]) -> ds.Dataset:
    """Open a Parquet file with the given columns as a dataset."""
    hint = f"run `kedro run --pipelines=ingest --params dataset={path.parent.name}`"
    if not path.is_file():
        raise ValueError(f"{path} is missing, so users cannot be looked up in this log; {hint}")
    try:
        dataset = ds.dataset(verified(path, hint), format="parquet")
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); {hint}") from error
    if missing := [name for name in columns if name not in dataset.schema.names]:
        raise ValueError(f"{path} has no column {', '.join(missing)}; {hint}")
    return dataset
