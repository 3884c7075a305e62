"""A log between two steps: an unread table of events, and the few facts per user and item that steps need.

A step narrows the expression and keeps these small tables on the engine; one that had to sort keeps its rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ibis
import ibis.expr.types as ir
from ibis.util import gen_name


@dataclass(frozen=True)
class Log:
    """`rows` are the events of `source` that belong to `users` and, after a cut, lie on the kept side of it.

    users: user_id, events, first, last (timestamps or null); with a cut also key and place, null if uncut.
    items: item_id, events.
    """

    source: ir.Table
    users: ir.Table
    items: ir.Table
    restricted: bool = False  # whether `source` may hold events of users outside `users`
    cut: int = 0  # 1: only the newest events of long histories, −1: only the oldest

    @classmethod
    def of(cls, rows: ir.Table) -> Log:
        """The log of these events; reads their users and times once and their items once."""
        return cls(rows, kept(per_user(rows)), kept(per_item(rows)))

    @property
    def rows(self) -> ir.Table:
        """The events, as an expression."""
        if self.cut:
            cuts = self.users.select(cut_user="user_id", cut_key="key", cut_place="place")
            rows = self.source.inner_join(cuts, self.source.user_id == cuts.cut_user)
            within = rows.cut_key.isnull() | reaches(rows, self.cut, rows.cut_key, rows.cut_place)
            return rows.filter(within).select(self.source.columns)
        return self.source.semi_join(self.users, "user_id") if self.restricted else self.source

    def only(self, users: ir.Table) -> Log:
        """The complete histories of some of the users."""
        users = kept(users)
        return self.narrowed(users, gone=self.rows.anti_join(users, "user_id"))

    def narrowed(self, users: ir.Table, *, gone: ir.Table, cut: int = 0) -> Log:
        """The log without the rows `gone`; for its items it counts these or, if fewer, those left."""
        log = replace(self, users=users, restricted=True, cut=cut or self.cut)
        before, after = size(self), size(log)
        if before == after:
            return self
        if 4 * after < before:  # few enough to keep, rather than to find them again in each of the next steps
            log = log.settled()
        if 2 * after < before:
            return replace(log, items=kept(per_item(log.rows)))
        fewer = per_item(gone).rename(gone_item="item_id", gone_events="events")
        items = self.items.left_join(fewer, self.items.item_id == fewer.gone_item)
        items = items.select("item_id", events=items.events - ibis.coalesce(items.gone_events, 0))
        return replace(log, items=kept(items.filter(items.events > 0)))

    def settled(self) -> Log:
        """The same log with its rows kept on the engine."""
        users = self.users.select("user_id", "events", "first", "last")
        return Log(kept(self.rows), users, self.items)


def kept(table: ir.Table) -> ir.Table:
    """The table computed now and kept on its engine until nothing refers to it."""
    con = ibis.get_backend(table)
    if con.name != "pyspark":
        return table.cache()
    name = gen_name("kept")  # Spark's own cache keeps the plan too, which then grows with every step
    con.raw_sql(con.compile(table)).localCheckpoint().createOrReplaceTempView(name)
    return con.table(name)


def per_user(rows: ir.Table) -> ir.Table:
    """How many events each user has, and when the first and the last were."""
    return rows.group_by("user_id").aggregate(
        events=rows.count(), first=rows.timestamp.min(), last=rows.timestamp.max()
    )


def per_item(rows: ir.Table) -> ir.Table:
    """How many events each item has."""
    return rows.group_by("item_id").aggregate(events=rows.count())


def measure(log: Log) -> dict[str, Any]:
    """A row of the step table, from the facts alone. ValueError if they disagree: `order` repeats."""
    users = log.users
    found = single_row(
        users.aggregate(
            rows=users.events.sum(),
            users=users.user_id.count(),
            first_timestamp=users["first"].min(),
            last_timestamp=users["last"].max(),
            events_min=users.events.min(),
            events_mean=users.events.mean(),
            events_median=users.events.median(),
            events_max=users.events.max(),
        )
    )
    items = log.items
    counted = single_row(items.aggregate(items=items.item_id.count(), rows=items.events.sum()))
    if counted["rows"] != found["rows"]:
        raise ValueError(
            "several events of a user share time and `order`; give each row an `order` of its own"
        )
    return found | counted | {"rows": counted["rows"] or 0}


def size(log: Log) -> int:
    """Number of events."""
    return single_row(log.users.aggregate(events=log.users.events.sum()))["events"] or 0


def single_row(table: ir.Table) -> dict[str, Any]:
    """The only row of a small result."""
    row: dict[str, Any] = table.to_pyarrow().to_pylist()[0]
    return row


def moment(rows: ir.Table) -> ir.IntegerValue:
    """When an event happened; one without a time counts as older than all that have one."""
    return ibis.coalesce(rows.timestamp, -1)


def reaches(rows: ir.Table, sign: int, key: ir.IntegerValue, place: ir.IntegerValue) -> ir.BooleanValue:
    """Whether an event is the one at (key, place) or beyond: newer for sign 1, older for −1."""
    own_key, own_place = sign * moment(rows), sign * rows.order
    return (own_key > key) | ((own_key == key) & (own_place >= place))
