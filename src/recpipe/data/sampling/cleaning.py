"""Steps that clean a log: duplicates, low ratings, users and items with few events, other times."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Literal

import ibis
import ibis.expr.types as ir
from pydantic import PositiveInt, StrictInt

from recpipe.data.sampling.log import Log, kept, moment, per_item, per_user, single_row


def duplicates(
    log: Log,
    *,
    keep: Literal["first", "last", "none"] = "first",
    by: tuple[str, ...] = ("user_id", "item_id"),
) -> Log:
    """One event of those that agree in the columns `by`: the first, the last, or none of them."""
    rows = log.rows
    missing = [name for name in by if name not in rows.columns]
    if missing or not by:
        raise ValueError(
            f"duplicates: by {missing or list(by)}: choose from the columns {list(rows.columns)}"
        )
    same = ibis.window(group_by=by)
    if keep == "none":
        rows = rows.mutate(copies=rows.count().over(same))
        return Log.of(kept(rows.filter(rows.copies == 1).drop("copies")))
    key = [moment(rows), rows.order]
    window = ibis.window(group_by=by, order_by=key if keep == "first" else [k.desc() for k in key])
    rows = rows.mutate(earlier=ibis.row_number().over(window))
    return Log.of(kept(rows.filter(rows.earlier == 0).drop("earlier")))


def min_rating(log: Log, *, at_least: float) -> Log:
    """Events rated `at_least` or better; those without a rating go."""
    rows = log.rows
    if "rating" not in rows.columns:
        raise ValueError(
            f"min_rating: the log has no column rating, only {list(rows.columns)}; map one, or drop the step"
        )
    return Log.of(rows.filter(rows.rating >= at_least))


def time_window(
    log: Log,
    *,
    start: date | datetime | StrictInt | None = None,
    end: date | datetime | StrictInt | None = None,
) -> Log:
    """Events from `start` (included) to `end` (excluded); those without a time go.

    Either is an ISO date or time, UTC unless it says otherwise, or seconds since 1970.
    """
    lower, upper = _seconds(start), _seconds(end)
    if lower is None and upper is None:
        raise ValueError("time_window: give start, end or both, as in {step: time_window, start: 2019-01-01}")
    if lower is not None and upper is not None and lower >= upper:
        raise ValueError(f"time_window: start {start} is not before end {end}")
    rows = log.rows.filter(ibis._.timestamp.notnull())
    rows = rows if lower is None else rows.filter(ibis._.timestamp >= lower)
    return Log.of(rows if upper is None else rows.filter(ibis._.timestamp < upper))


def _seconds(point: date | datetime | int | None) -> int | None:
    if point is None or isinstance(point, int):
        return point
    if not isinstance(point, datetime):
        point = datetime.combine(point, time())
    return int((point if point.tzinfo else point.replace(tzinfo=UTC)).timestamp())


def min_events(log: Log, *, users: PositiveInt) -> Log:
    """Users with at least so many events. One pass: items are left alone."""
    return log.only(log.users.filter(log.users.events >= users))


def k_core(log: Log, *, users: PositiveInt = 1, items: PositiveInt = 1) -> Log:
    """The largest part of the log in which every user and every item has at least so many events.

    Each round reads the log twice and keeps two small tables, the users and the items still in.
    """
    if users == items == 1:
        raise ValueError(
            "k_core: give users, items or both, at least 2, as in {step: k_core, users: 5, items: 5}"
        )
    left = kept(log.users.filter(log.users.events >= users))
    popular = log.items
    while True:
        people = _count(left)
        popular = per_item(log.rows.semi_join(left, "user_id").semi_join(popular, "item_id"))
        popular = kept(popular.filter(popular.events >= items))
        rows = log.rows.semi_join(popular, "item_id")
        counts = per_user(rows.semi_join(left, "user_id"))
        left = kept(counts.filter(counts.events >= users))
        if _count(left) == people:  # nobody fell out, so the items were counted over just these users
            return Log(rows, left, popular, restricted=True)


def _count(table: ir.Table) -> int:
    return int(single_row(table.aggregate(rows=table.count()))["rows"])
