"""Cleaning and sampling steps of a log: filters on events and k-cores, caps on histories, samples of users and rows.

A step is a function of an ``EventLog``; the configuration has its name and arguments: ``{step: min_events, users: 5}``.
Steps are Ibis expressions with the same result on every engine; random ones use MD5, so a seed gives one sample.
"""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Annotated, Any, Literal, get_type_hints

import ibis
import ibis.expr.types as ir
from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt, StrictInt, ValidationError, create_model

from recpipe.config import check_known
from recpipe.data.conditions import Condition
from recpipe.data.conditions.ibis_rows import as_number, condition_expression
from recpipe.data.event_log import (
    EventLog,
    at_or_beyond,
    event_time,
    item_counts,
    materialize,
    single_row,
    step_statistics,
    user_counts,
)

logger = logging.getLogger(__name__)

Steps = Sequence[Mapping[str, Any]]
Share = Annotated[float, Field(gt=0, le=1)]
SampleUnit = Literal["rows", "users"]
TypeWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def _duration(gap: object) -> int:
    """Parse seconds, or a number with a unit, as 30m. Raises ValueError."""
    match = re.fullmatch(r"(\d+) ?([smhd]?)", str(gap))
    seconds = int(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}[match[2]] if match else 0
    if isinstance(gap, bool) or seconds < 1:
        raise ValueError("give seconds or a number with a unit, as in 30m, 2h or 1d")
    return seconds


def _with_text_keys(values: object) -> object:
    return {str(key): value for key, value in values.items()} if isinstance(values, Mapping) else values


Gap = Annotated[int, BeforeValidator(_duration)]
TypeWeights = Annotated[dict[str, TypeWeight], Field(min_length=1), BeforeValidator(_with_text_keys)]
PARTS = 64  # time spans into which a long history is divided, see `_nth_events`


def apply(log: EventLog, steps: Steps, before: Mapping[str, Any]) -> tuple[EventLog, list[dict[str, Any]]]:
    """Apply steps; return log and step table after its row ``before``. Raises ValueError if a step leaves no rows."""
    rows = [dict(before)]
    for number, (name, arguments) in enumerate(check(steps), start=before["step"] + 1):
        log = STEPS[name](log, **arguments)
        detail = json.dumps(arguments, default=str)
        row = {"step": number, "name": name, "detail": detail} | step_statistics(log)
        if not row["rows"]:
            raise ValueError(
                f"step {number}, {name} {detail}, leaves nothing of {rows[-1]['rows']:,} rows of "
                f"{rows[-1]['users']:,} users; loosen it under `steps` in the data set's conf"
            )
        logger.info("%s: %s rows, %s users, %s items", name, *(f"{row[k]:,}" for k in ("rows", "users", "items")))
        rows.append(row)
    return log, rows[1:]


def check(steps: Steps) -> list[tuple[str, dict[str, Any]]]:
    """Return name and typed arguments of each step. Raises ValueError for unknown names and values out of range."""
    checked = []
    for step in steps:
        if not isinstance(step, Mapping) or "step" not in step:
            raise ValueError(f"step {step!r} must be a mapping with a name, as in {{step: min_events, users: 5}}")
        name = str(step["step"])
        check_known(name, list(STEPS), what="step")
        arguments = {key: value for key, value in step.items() if key != "step"}
        hints = get_type_hints(STEPS[name], include_extras=True)
        parameters = list(inspect.signature(STEPS[name]).parameters.values())[1:]
        fields: Any = {p.name: (hints[p.name], ... if p.default is p.empty else p.default) for p in parameters}
        model = create_model(name, **fields)
        for argument in arguments:
            check_known(argument, list(model.model_fields), what=f"argument of {name}")
        try:
            values = model(**arguments)
        except ValidationError as error:
            wrong = "; ".join(_error(e) for e in error.errors())
            raise ValueError(f"step {name}: {wrong}. It takes {', '.join(model.model_fields)}") from None
        checked.append((name, {key: getattr(values, key) for key in arguments}))
    return checked


def _error(error: Mapping[str, Any]) -> str:
    if error["type"] == "value_error":  # of a function above, with the value
        return f"{error['loc'][0]} is {error['input']!r}: {error['ctx']['error']}"
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}, not {error['input']!r}"


# Filters -----------------------------------------------------------------------------------------------------------


def duplicates(
    log: EventLog, *, keep: Literal["first", "last", "none"] = "first", by: tuple[str, ...] = ("user_id", "item_id")
) -> EventLog:
    """Keep the first, the last or none of the events with equal values in the columns ``by``.

    Raises ValueError for columns that the log lacks.
    """
    rows = log.rows
    missing = [name for name in by if name not in rows.columns]
    if missing or not by:
        raise ValueError(f"duplicates: by {missing or list(by)}: choose from the columns {list(rows.columns)}")
    if "event" in rows.columns and "event" not in by:
        logger.warning("duplicates: events of different types count as equal; add event to `by` to tell them apart")
    if keep == "none":
        rows = rows.mutate(copies=rows.count().over(ibis.window(group_by=by)))
        return EventLog.of(materialize(rows.filter(rows.copies == 1).drop("copies")))
    order = [event_time(rows), rows.order]
    window = ibis.window(group_by=by, order_by=order if keep == "first" else [key.desc() for key in order])
    rows = rows.mutate(earlier=ibis.row_number().over(window))
    return EventLog.of(materialize(rows.filter(rows.earlier == 0).drop("earlier")))


def where(log: EventLog, *, condition: Condition) -> EventLog:
    """Keep events for which ``condition`` is true: ``quantity > 0 and event in ['cart', 'purchase']``.

    A comparison with a missing value, or of text that is no number with a number, is not true.
    """
    rows = log.rows
    expression, as_numbers = condition_expression(condition, rows)
    for name in as_numbers:
        other = rows.filter(rows[name].notnull() & as_number(rows[name]).isnull())
        counts = single_row(other.aggregate(rows=other.count(), example=other[name].min()))
        if counts["rows"]:
            logger.warning(
                "where: %s rows have a %s that is no number, such as %r; they do not match",
                f"{counts['rows']:,}", name, counts["example"],
            )  # fmt: skip
    return EventLog.of(rows.filter(expression))


def min_rating(log: EventLog, *, at_least: float) -> EventLog:
    """Keep events with a rating of at least ``at_least``; events without a rating are dropped.

    Raises ValueError for a log without ratings.
    """
    rows = log.rows
    if "rating" not in rows.columns:
        raise ValueError(
            f"min_rating: the log has no column rating, only {list(rows.columns)}; map one, or drop the step"
        )
    return EventLog.of(rows.filter(rows.rating >= at_least))


def time_window(
    log: EventLog, *, start: date | datetime | StrictInt | None = None, end: date | datetime | StrictInt | None = None
) -> EventLog:
    """Keep events from ``start`` (inclusive) to ``end`` (exclusive); events without a time are dropped.

    Both are ISO dates or times, UTC without an offset, or seconds since 1970. Raises ValueError without either, and for
    a start that is not before the end.
    """
    lower, upper = _seconds(start), _seconds(end)
    if lower is None and upper is None:
        raise ValueError("time_window: give start, end or both, as in {step: time_window, start: 2019-01-01}")
    if lower is not None and upper is not None and lower >= upper:
        raise ValueError(f"time_window: start {start} is not before end {end}")
    rows = log.rows.filter(ibis._.timestamp.notnull())
    rows = rows if lower is None else rows.filter(ibis._.timestamp >= lower)
    return EventLog.of(rows if upper is None else rows.filter(ibis._.timestamp < upper))


def _seconds(point: date | datetime | int | None) -> int | None:
    if point is None or isinstance(point, int):
        return point
    if not isinstance(point, datetime):
        point = datetime.combine(point, time())
    return int((point if point.tzinfo else point.replace(tzinfo=UTC)).timestamp())


def min_events(log: EventLog, *, users: PositiveInt) -> EventLog:
    """Keep users with at least ``users`` events, in one pass."""
    return log.select_users(log.users.filter(log.users.events >= users))


def k_core(log: EventLog, *, users: PositiveInt = 1, items: PositiveInt = 1) -> EventLog:
    """Keep the largest sublog with at least ``users`` events per user and ``items`` events per item.

    Raises ValueError if neither is above 1.
    """
    if users == items == 1:
        raise ValueError("k_core: give users, items or both, at least 2, as in {step: k_core, users: 5, items: 5}")
    core_users, core_items = materialize(log.users.filter(log.users.events >= users)), log.items
    while True:
        n_users = _n_rows(core_users)
        core_items = item_counts(log.rows.semi_join(core_users, "user_id").semi_join(core_items, "item_id"))
        core_items = materialize(core_items.filter(core_items.events >= items))
        rows = log.rows.semi_join(core_items, "item_id")
        counts = user_counts(rows.semi_join(core_users, "user_id"))
        core_users = materialize(counts.filter(counts.events >= users))
        if _n_rows(core_users) == n_users:  # no user was dropped, so the item counts are final
            return EventLog(rows, core_users, core_items, restricted=True)


def _n_rows(table: ir.Table) -> int:
    return int(single_row(table.aggregate(rows=table.count()))["rows"])


# Weights and sessions ------------------------------------------------------------------------------------------------


def weights(log: EventLog, *, events: TypeWeights, other: TypeWeight | None = None) -> EventLog:
    """Multiply the weight of every event, 1 without one, by that of its type; ``other`` is for types not in ``events``.

    Raises ValueError for a type without a weight.
    """
    rows = log.rows
    if "event" not in rows.columns:
        raise ValueError("weights: the log has no column event; map one, `columns: {event: <name in the file>}`")
    counts = rows.group_by("event").aggregate(rows=rows.count()).order_by(ibis.desc("rows"), "event")
    types = {str(row["event"]): row["rows"] for row in counts.to_pyarrow().to_pylist()}
    if other is None and (unknown := [f"{name!r} ({n:,} rows)" for name, n in types.items() if name not in events]):
        raise ValueError(
            f"weights: no weight for the event types {', '.join(unknown[:5])}{', …' if len(unknown) > 5 else ''}; add "
            "them to `events`, or `other: 0` for all other types"
        )
    if absent := [name for name in events if name not in types]:
        logger.warning("weights: no event has the type %s; the log has %s", ", ".join(absent), ", ".join(types))

    def double(value: float) -> ir.FloatingValue:  # Spark's constants are decimals
        return ibis.literal(repr(value)).cast("float64")

    factor = ibis.cases(*((rows.event == name, double(w)) for name, w in events.items()), else_=double(other or 0.0))
    weight = rows.weight.fill_null(1.0) * factor if "weight" in rows.columns else factor
    return EventLog.of(rows.mutate(weight=weight))


def sessions(log: EventLog, *, gap: Gap) -> EventLog:
    """Cut every user into sessions at pauses longer than ``gap``: seconds, or 30m, 2h, 1d.

    The user ids of the sessions are ``user#1``, ``user#2``, … in order of time; users of the users file are joined to
    all of their sessions. Raises ValueError for events without a timestamp.
    """
    rows = log.rows
    if untimed := single_row(rows.aggregate(rows=rows.timestamp.isnull().sum()))["rows"]:
        raise ValueError(f"sessions: {untimed:,} events have no timestamp; map one, or drop them by time_window")
    order = [rows.timestamp, rows.order]
    pause = rows.timestamp - rows.timestamp.lag().over(ibis.window(group_by="user_id", order_by=order))
    rows = rows.mutate(
        begins=ibis.ifelse(pause > gap, 1, 0), owner=rows["owner" if "owner" in rows.columns else "user_id"]
    )
    number = rows.begins.sum().over(
        ibis.window(group_by="user_id", order_by=[rows.timestamp, rows.order], rows=(None, 0))
    )
    rows = rows.mutate(user_id=rows.user_id + "#" + (number + 1).cast("string"))
    return EventLog.of(materialize(rows.drop("begins")))


# Caps on histories -------------------------------------------------------------------------------------------------


def last(log: EventLog, *, k: PositiveInt) -> EventLog:
    """Keep the last ``k`` events of every user, by time, then by order in the source."""
    return _cut_histories(log, k, newest=True)


def cap_per_user(
    log: EventLog, *, n: PositiveInt, keep: Literal["last", "first", "random"] = "last", seed: StrictInt = 0
) -> EventLog:
    """Keep at most ``n`` events of every user: the last, the first or a random sample drawn with ``seed``."""
    if keep != "random":
        return _cut_histories(log, n, newest=keep == "last")
    rows = log.rows
    window = ibis.window(group_by="user_id", order_by=[_row_hash(rows, seed), rows.order])
    rows = rows.mutate(place=ibis.row_number().over(window))
    return EventLog.of(materialize(rows.filter(rows.place < n).drop("place")))


def _cut_histories(log: EventLog, n: int, *, newest: bool) -> EventLog:
    """Cut every history at its ``n``-th newest or oldest event."""
    log = log.materialized() if log.cut else log  # the users table has room for one cut
    sign = 1 if newest else -1
    nth = materialize(_nth_events(log, n, sign))
    long = log.rows.inner_join(nth, log.rows.user_id == nth.long_user)
    removed = long.filter(~at_or_beyond(long, sign, long.key, long.place))
    users = log.users.left_join(nth, log.users.user_id == nth.long_user)
    uncut, cut_time = users.long_user.isnull(), (sign * users.key).nullif(-1)
    if newest:
        first_time, last_time = ibis.coalesce(cut_time, users["first"]), users["last"]
    else:  # where the n-th event has no time, none of the remaining events has one
        first_time = ibis.ifelse(uncut | cut_time.notnull(), users["first"], ibis.null("int64"))
        last_time = ibis.ifelse(uncut, users["last"], cut_time)
    events = ibis.least(users.events, n)
    users = users.select("user_id", "key", "place", events=events, first=first_time, last=last_time)
    return log.restrict(materialize(users), removed=removed, cut=sign)


def _nth_events(log: EventLog, n: int, sign: int) -> ir.Table:
    """Find the ``n``-th newest or (sign −1) oldest event of users with more than ``n``: long_user, key, place.

    Sorting whole histories is slow. Instead, the time span of each is divided into ``PARTS`` equal parts, the events
    per part are counted, and only the part that contains the n-th event is sorted.
    """
    ends = ibis.coalesce(log.users["first"], -1), ibis.coalesce(log.users["last"], -1)
    low, high = (sign * end for end in ends[::sign])
    long = log.users.filter(log.users.events > n).select(long_user="user_id", low=low, high=high)
    rows = log.rows
    rows = rows.inner_join(long, rows.user_id == long.long_user)
    rows = rows.select("long_user", "low", "high", key=sign * event_time(rows), place=sign * rows.order)
    rows = rows.mutate(part=(rows.key - rows.low) * PARTS // (rows.high - rows.low + 1))
    parts = rows.group_by("long_user", "part").aggregate(events=rows.count())
    window = ibis.window(group_by="long_user", order_by=parts.part.desc(), rows=(None, 0))
    parts = parts.mutate(reached=parts.events.sum().over(window))
    parts = parts.filter(parts.reached >= n, parts.reached - parts.events < n)
    parts = materialize(parts.select("long_user", "part", missing=n - parts.reached + parts.events))
    rows = rows.inner_join(parts, ["long_user", "part"])
    window = ibis.window(group_by="long_user", order_by=[rows.key.desc(), rows.place.desc()])
    rows = rows.mutate(nth=ibis.row_number().over(window) + 1)
    return rows.filter(rows.nth == rows.missing).select("long_user", "key", "place")


# Samples -----------------------------------------------------------------------------------------------------------


def hash_users(log: EventLog, *, share: Share, salt: str = "") -> EventLog:
    """Keep complete histories of the users whose hash is below ``share``.

    The hash is the first 8 hexadecimal digits of md5(user_id + salt) / 2³²; a larger share contains a smaller one.
    """
    return log.select_users(log.users.filter(hash_below(log.users.user_id + salt, share)))


def random_rows(log: EventLog, *, share: Share, seed: StrictInt) -> EventLog:
    """Keep every event with probability ``share``."""
    rows = log.rows
    return EventLog.of(rows.filter(hash_below(_row_key(rows, seed), share)))


def systematic(log: EventLog, *, every: PositiveInt, offset: NonNegativeInt = 0) -> EventLog:
    """Keep every ``every``-th event in source order, beginning with number ``offset`` (0-based).

    Raises ValueError unless ``offset`` is below ``every``.
    """
    if offset >= every:
        raise ValueError(f"systematic: offset {offset} must be smaller than every {every}")
    rows = log.rows
    rows = rows.mutate(place=ibis.row_number().over(order_by=rows.order))
    return EventLog.of(materialize(rows.filter(rows.place % every == offset).drop("place")))


def stratified(
    log: EventLog, *, share: Share, by: str, seed: StrictInt, of: SampleUnit = "rows", strata: PositiveInt = 10
) -> EventLog:
    """Keep the same share of every stratum, rounded to the nearest integer, at least one row.

    ``by`` is a column of the log, or ``user_activity``: ``strata`` groups of equally many users by number of events.
    ``of: users`` samples complete histories instead of rows and needs ``user_activity``. Raises ValueError for another
    ``by``, and for ``of: users`` with another than user_activity.
    """
    if by == "user_activity":
        order = [log.users.events, log.users.user_id]
        users = log.users.mutate(stratum=ibis.ntile(strata).over(order_by=order))
        if of == "users":
            user_hash = (users.user_id + f" {seed}").hexdigest("md5")
            return log.select_users(_share_per_stratum(users, share, [user_hash, users.user_id]))
        rows = log.rows.inner_join(users.select("user_id", "stratum"), "user_id")
    else:
        choices = [*log.rows.columns, "user_activity"]
        if by not in choices or of == "users":
            raise ValueError(
                f"stratified: by {by!r}, of {of!r}: by is one of {choices}, and `of: users` goes with user_activity"
            )
        rows = log.rows.mutate(stratum=log.rows[by])
    return EventLog.of(materialize(_share_per_stratum(rows, share, [_row_hash(rows, seed), rows.order])))


def _share_per_stratum(table: ir.Table, share: float, order: list[ir.Value]) -> ir.Table:
    """Select the first rows of every ``stratum``."""
    place = ibis.row_number().over(group_by="stratum", order_by=order)
    table = table.mutate(place=place, size=table.count().over(group_by="stratum"))
    quota = (table["size"] * share + 0.5).floor()
    return table.filter((table.place < quota) | (table.place == 0)).drop("stratum", "place", "size")


def _row_key(rows: ir.Table, seed: int) -> ir.StringValue:
    return ibis.literal(" ").join([rows.user_id, rows.item_id, rows.order.cast("string"), str(seed)])


def _row_hash(rows: ir.Table, seed: int) -> ir.StringValue:
    return _row_key(rows, seed).hexdigest("md5")


def hash_below(text: ir.StringValue, share: float) -> ir.BooleanValue:
    """Test whether the first 8 hexadecimal digits of the MD5 of ``text``, divided by 2³², are below ``share``."""
    numerator, denominator = share.as_integer_ratio()
    limit = -(-numerator * 2**32 // denominator)  # rounded up exactly; text has the order of its digits
    return text.hexdigest("md5").substr(0, 8) < f"{limit:08x}" if limit < 2**32 else ibis.literal(True)


STEP_FUNCTIONS: tuple[Callable[..., EventLog], ...] = (
    duplicates, where, min_rating, min_events, k_core, time_window, weights, sessions, last, cap_per_user, hash_users,
    random_rows, stratified, systematic,
)  # fmt: skip
STEPS = {step.__name__: step for step in STEP_FUNCTIONS}
