"""Event log between two sampling steps: a lazy table of events and materialized counts per user and item.

A step narrows the lazy table and materializes only the small tables; a step that has to sort materializes its events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis.util import gen_name


@dataclass(frozen=True)
class EventLog:
    """The events of ``source`` that belong to ``users`` and, after a cut, lie at or beyond the cut of their user.

    users: user_id, events, first, last (timestamps, null without times); after a cut also key and place of the
    cut-off event, null for users whose history is complete. items: item_id, events.
    """

    source: ir.Table
    users: ir.Table
    items: ir.Table
    restricted: bool = False  # whether `source` may contain events of users outside `users`
    cut: int = 0  # 1: only the newest events of long histories, −1: only the oldest

    @classmethod
    def of(cls, rows: ir.Table) -> EventLog:
        """Count the events of a table per user and per item."""
        return cls(rows, materialize(user_counts(rows)), materialize(item_counts(rows)))

    @property
    def rows(self) -> ir.Table:
        """The events as a lazy table."""
        if self.cut:
            cuts = self.users.select(cut_user="user_id", cut_key="key", cut_place="place")
            rows = self.source.inner_join(cuts, self.source.user_id == cuts.cut_user)
            within = rows.cut_key.isnull() | at_or_beyond(rows, self.cut, rows.cut_key, rows.cut_place)
            return rows.filter(within).select(self.source.columns)
        return self.source.semi_join(self.users, "user_id") if self.restricted else self.source

    def select_users(self, users: ir.Table) -> EventLog:
        """Select complete histories of a subset of the users."""
        users = materialize(users)
        return self.restrict(users, removed=self.rows.anti_join(users, "user_id"))

    def restrict(self, users: ir.Table, *, removed: ir.Table, cut: int = 0) -> EventLog:
        """Restrict the log to ``users``, without the rows ``removed``; items are recounted from the smaller part."""
        log = replace(self, users=users, restricted=True, cut=cut or self.cut)
        before, after = n_events(self), n_events(log)
        if before == after:
            return self
        if 4 * after < before:  # small enough to materialize once instead of filtering in every later step
            log = log.materialized()
        if 2 * after < before:
            return replace(log, items=materialize(item_counts(log.rows)))
        lost = item_counts(removed).rename(lost_item="item_id", lost_events="events")
        items = self.items.left_join(lost, self.items.item_id == lost.lost_item)
        items = items.select("item_id", events=items.events - ibis.coalesce(items.lost_events, 0))
        return replace(log, items=materialize(items.filter(items.events > 0)))

    def materialized(self) -> EventLog:
        """Store the events of the log on the engine."""
        return EventLog(materialize(self.rows), self.users.select("user_id", "events", "first", "last"), self.items)


def materialize(table: ir.Table) -> ir.Table:
    """Compute a table now and store it on its engine until nothing refers to it."""
    con = ibis.get_backend(table)
    if con.name != "pyspark":
        return table.cache()
    name = gen_name("materialized")  # Spark's own cache retains the plan, which then grows with every step
    con.raw_sql(con.compile(table)).localCheckpoint().createOrReplaceTempView(name)
    return con.table(name)


def user_counts(rows: ir.Table) -> ir.Table:
    """Count events per user, with the first and last timestamp."""
    time = rows.timestamp
    return rows.group_by("user_id").aggregate(events=rows.count(), first=time.min(), last=time.max())


def item_counts(rows: ir.Table) -> ir.Table:
    """Count events per item."""
    return rows.group_by("item_id").aggregate(events=rows.count())


def step_statistics(log: EventLog) -> dict[str, Any]:
    """Compute statistics of a log for one row of the step table. Raises ValueError if values of ``order`` repeat."""
    users = log.users
    statistics = single_row(
        users.aggregate(
            rows=users.events.sum(),
            users=users.user_id.count(),
            first_timestamp=users["first"].min(),
            last_timestamp=users["last"].max(),
            **{f"events_{name}": getattr(users.events, name)() for name in ("min", "mean", "median", "max")},
        )
    )
    items = single_row(log.items.aggregate(items=log.items.item_id.count(), rows=log.items.events.sum()))
    if items["rows"] != statistics["rows"]:
        raise ValueError("several events of a user share time and `order`; give each row an `order` of its own")
    return statistics | items | {"rows": items["rows"] or 0}


def n_events(log: EventLog) -> int:
    """Count all events."""
    return single_row(log.users.aggregate(events=log.users.events.sum()))["events"] or 0


def single_row(table: ir.Table) -> dict[str, Any]:
    """Fetch the only row of a small table."""
    row: dict[str, Any] = table.to_pyarrow().to_pylist()[0]
    return row


def event_time(rows: ir.Table) -> ir.IntegerValue:
    """Return timestamps, −1 where missing: events without a time sort as the oldest."""
    return ibis.coalesce(rows.timestamp, -1)


def at_or_beyond(rows: ir.Table, sign: int, key: ir.IntegerValue, place: ir.IntegerValue) -> ir.BooleanValue:
    """Test whether (time, order) of an event reaches (key, place): at least as new for sign 1, as old for −1."""
    row_key, row_place = sign * event_time(rows), sign * rows.order
    return (row_key > key) | ((row_key == key) & (row_place >= place))
