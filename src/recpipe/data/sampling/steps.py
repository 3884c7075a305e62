"""Steps that clean a log: duplicates, low ratings, users and items with few events, other times.

Steps that make a log smaller: parts of histories, whole users by hash, single rows.

What is random is an MD5, which no engine or version computes differently: one seed, one sample.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Annotated, Literal

import ibis
import ibis.expr.types as ir
from pydantic import Field, NonNegativeInt, PositiveInt, StrictInt

from recpipe.data.sampling.log import Log, kept, moment, per_item, per_user, reaches, single_row


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


Share = Annotated[float, Field(gt=0, le=1)]
PARTS = 64  # of a long history's time span, see `_nth_events`


def last(log: Log, *, k: PositiveInt) -> Log:
    """The last `k` events of every user, by time, then by order in the source."""
    return _end_of_history(log, k, newest=True)


def cap_per_user(
    log: Log, *, n: PositiveInt, keep: Literal["last", "first", "random"] = "last", seed: StrictInt = 0
) -> Log:
    """At most `n` events of every user: the last, the first, or a random choice that `seed` decides."""
    if keep != "random":
        return _end_of_history(log, n, newest=keep == "last")
    rows = log.rows
    window = ibis.window(group_by="user_id", order_by=[_draw(rows, seed), rows.order])
    rows = rows.mutate(place=ibis.row_number().over(window))
    return Log.of(kept(rows.filter(rows.place < n).drop("place")))


def _end_of_history(log: Log, n: int, *, newest: bool) -> Log:
    """The `n` newest or oldest events of every user: all that reach the `n`-th of their history."""
    log = log.settled() if log.cut else log  # a user has room for one cut
    sign = 1 if newest else -1
    nth = kept(_nth_events(log, n, sign))
    long = log.rows.inner_join(nth, log.rows.user_id == nth.long_user)
    gone = long.filter(~reaches(long, sign, long.key, long.place))
    users = log.users.left_join(nth, log.users.user_id == nth.long_user)
    whole, at = users.long_user.isnull(), (sign * users.key).nullif(-1)
    if newest:
        first, last_ = ibis.coalesce(at, users["first"]), users["last"]
    else:  # where even the n-th has no time, none of the kept has
        first = ibis.ifelse(whole | at.notnull(), users["first"], ibis.null("int64"))
        last_ = ibis.ifelse(whole, users["last"], at)
    users = users.select(
        "user_id", "key", "place", events=ibis.least(users.events, n), first=first, last=last_
    )
    return log.narrowed(kept(users), gone=gone, cut=sign)


def _nth_events(log: Log, n: int, sign: int) -> ir.Table:
    """The `n`-th newest event (oldest for sign −1) of who has more: long_user, key (time), place (order).

    Sorting whole histories for it would be dear. Instead the time of each is cut into equal parts, the events
    in them are counted, and only those of the part where the `n`-th must lie are sorted.
    """
    ends = ibis.coalesce(log.users["first"], -1), ibis.coalesce(log.users["last"], -1)
    low, high = (sign * end for end in ends[::sign])
    long = log.users.filter(log.users.events > n).select(long_user="user_id", low=low, high=high)
    rows = log.rows
    rows = rows.inner_join(long, rows.user_id == long.long_user)
    rows = rows.select("long_user", "low", "high", key=sign * moment(rows), place=sign * rows.order)
    rows = rows.mutate(part=(rows.key - rows.low) * PARTS // (rows.high - rows.low + 1))
    parts = rows.group_by("long_user", "part").aggregate(events=rows.count())
    upwards = ibis.window(group_by="long_user", order_by=parts.part.desc(), rows=(None, 0))
    parts = parts.mutate(reached=parts.events.sum().over(upwards))
    parts = parts.filter(parts.reached >= n, parts.reached - parts.events < n)
    parts = kept(parts.select("long_user", "part", missing=n - parts.reached + parts.events))
    rows = rows.inner_join(parts, ["long_user", "part"])
    window = ibis.window(group_by="long_user", order_by=[rows.key.desc(), rows.place.desc()])
    rows = rows.mutate(nth=ibis.row_number().over(window) + 1)
    return rows.filter(rows.nth == rows.missing).select("long_user", "key", "place")


def hash_users(log: Log, *, share: Share, salt: str = "") -> Log:
    """The complete histories of a share of the users: those whose hash, below, falls under `share`.

    The hash is the first 8 hexadecimal digits of md5(user_id followed by salt), as a number, over 2³². So a
    user is in or out whatever else is in the log, and a larger share contains a smaller one.
    """
    return log.only(log.users.filter(hash_below(log.users.user_id + salt, share)))


def random_rows(log: Log, *, share: Share, seed: StrictInt) -> Log:
    """Single events, each kept with probability `share`."""
    rows = log.rows
    return Log.of(rows.filter(hash_below(_key(rows, seed), share)))


def systematic(log: Log, *, every: PositiveInt, offset: NonNegativeInt = 0) -> Log:
    """Every `every`-th event in the order of the source, from the one at `offset` (counted from 0)."""
    if offset >= every:
        raise ValueError(f"systematic: offset {offset} must be smaller than every {every}")
    rows = log.rows
    rows = rows.mutate(place=ibis.row_number().over(order_by=rows.order))
    return Log.of(kept(rows.filter(rows.place % every == offset).drop("place")))


def stratified(
    log: Log,
    *,
    share: Share,
    by: str,
    seed: StrictInt,
    of: Literal["rows", "users"] = "rows",
    strata: PositiveInt = 10,
) -> Log:
    """The same share of every stratum, to the nearest whole number, and at least one.

    `by` is a column of the log, or `user_activity`: `strata` groups of equally many users, by number of
    events. With it, `of: users` draws users with complete histories instead of rows.
    """
    if by == "user_activity":
        order = [log.users.events, log.users.user_id]
        users = log.users.mutate(stratum=ibis.ntile(strata).over(order_by=order))
        if of == "users":
            draw = (users.user_id + f" {seed}").hexdigest("md5")
            return log.only(_share_of_each(users, share, [draw, users.user_id]))
        rows = log.rows.inner_join(users.select("user_id", "stratum"), "user_id")
    else:
        choices = [*log.rows.columns, "user_activity"]
        if by not in choices or of == "users":
            wanted = f"by {by!r}, of {of!r}"
            raise ValueError(
                f"stratified: {wanted}: by is one of {choices}, and `of: users` goes with user_activity"
            )
        rows = log.rows.mutate(stratum=log.rows[by])
    return Log.of(kept(_share_of_each(rows, share, [_draw(rows, seed), rows.order])))


def _share_of_each(table: ir.Table, share: float, order: list[ir.Value]) -> ir.Table:
    """The first rows of every `stratum`."""
    place = ibis.row_number().over(group_by="stratum", order_by=order)
    table = table.mutate(place=place, size=table.count().over(group_by="stratum"))
    wanted = (table["size"] * share + 0.5).floor()
    return table.filter((table.place < wanted) | (table.place == 0)).drop("stratum", "place", "size")


def _key(rows: ir.Table, seed: int) -> ir.StringValue:
    return ibis.literal(" ").join([rows.user_id, rows.item_id, rows.order.cast("string"), str(seed)])


def _draw(rows: ir.Table, seed: int) -> ir.StringValue:
    return _key(rows, seed).hexdigest("md5")


def hash_below(text: ir.StringValue, share: float) -> ir.BooleanValue:
    """Whether the first 8 hexadecimal digits of the MD5 of `text`, as a number over 2³², fall below `share`.

    Compared as text, which orders the same: so no engine's way of reading numbers comes into it.
    """
    numerator, denominator = share.as_integer_ratio()
    limit = -(-numerator * 2**32 // denominator)  # rounded up, without rounding error
    return text.hexdigest("md5").substr(0, 8) < f"{limit:08x}" if limit < 2**32 else ibis.literal(True)
