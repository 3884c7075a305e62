"""Rows of a raw log that cannot be used: the checks, the table of bad rows with reasons, and their counts."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from recpipe.data.event_log import EventLog, single_row

LATEST = 10**11  # seconds: the year 5138. Today in milliseconds is 1.7 × 10¹²
NO_VALUE = (  # reasons that may be those of most rows: guests, unknown times
    "empty user_id", "empty item_id", "word for null as user_id", "word for null as item_id",
    "timestamp stands for no time",
)  # fmt: skip


@ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
def url_decode(text: str) -> str:
    """Decode a URL on the engine: a query cannot contain a null byte, but ``%00``."""
    raise NotImplementedError


def _checks(events: ir.Table) -> list[tuple[ir.BooleanValue, ir.StringValue]]:
    """Return the conditions that make a row unusable, each with its reason; a null condition counts as false."""
    checks = [(events.problem.notnull(), events.problem)] if "problem" in events.columns else []
    for name in ("user_id", "item_id"):
        checks.append((_blank(events[name]), ibis.literal(f"empty {name}")))
        checks.append((_with_null_byte(events[name]), ibis.literal(f"null byte in {name}")))
        checks.append((_with_line_break(events[name]), ibis.literal(f"line break in {name}")))
    checks.append((events.timestamp < 0, ibis.literal("negative timestamp")))
    for factor, unit in ((10**6, "nanoseconds"), (10**3, "microseconds"), (1, "milliseconds")):
        checks.append((events.timestamp > LATEST * factor, ibis.literal(f"timestamp looks like {unit}")))
    return checks


def may_have_bad_rows(log: EventLog) -> bool:
    """Test cheaply, before the full check: every distinct id once, first and last time per user."""
    users, items, events = log.users, log.items, log.source
    tests = [
        (users, _blank(users.user_id) | _with_null_byte(users.user_id) | _with_line_break(users.user_id)),
        (items, _blank(items.item_id) | _with_null_byte(items.item_id) | _with_line_break(items.item_id)),
        (users, (users["first"] < 0) | (users["last"] > LATEST)),
        *([(events, events.problem.notnull())] if "problem" in events.columns else []),
    ]
    return any(single_row(table.aggregate(bad=is_bad.any()))["bad"] for table, is_bad in tests)


def check_number(events: ir.Table) -> ir.IntegerColumn:
    """Return the 1-based number of the first failed check of a row, 0 for a good row."""
    cases = [(failed, ibis.literal(number, "int8")) for number, (failed, _) in enumerate(_checks(events), start=1)]
    return ibis.cases(*cases, else_=ibis.literal(0, "int8"))


def select_bad_rows(events: ir.Table) -> ir.Table:
    """Select bad rows with their ``order``, the other columns as text, and the ``reason``."""
    number = check_number(events)
    reason = ibis.cases(*((number == n, text) for n, (_, text) in enumerate(_checks(events), start=1)))
    columns = {name: events[name].cast("string") for name in events.columns if name not in ("order", "problem")}
    bad = events.mutate(check_number=number).filter(ibis._.check_number > 0)
    return bad.select(order="order", **columns, reason=reason).order_by("order")


def _blank(ids: ir.StringColumn) -> ir.BooleanColumn:
    """Test for null, empty or white space. Stripping is slow: only ids that begin with white space are stripped."""
    return ids.isnull() | ibis.ifelse(ids < "!", ids.strip() == "", False)


def _with_null_byte(ids: ir.StringColumn) -> ir.BooleanColumn:
    return ids.contains(url_decode("%00"))


def _with_line_break(ids: ir.StringColumn) -> ir.BooleanColumn:
    return ids.contains("\n") | ids.contains("\r")


def count_reasons(bad: ir.Table) -> dict[str, int]:
    """Count rows per reason, without the value after its colon, the most frequent reason first."""
    kinds = bad.mutate(kind=bad.reason.split(": ")[0])
    counts = kinds.group_by("kind").aggregate(rows=kinds.count())
    ordered = counts.order_by(counts.rows.desc(), counts.kind).to_pyarrow().to_pylist()
    return {row["kind"]: row["rows"] for row in ordered}


def bad_row_examples(bad: ir.Table, reasons: str) -> str:
    """Compose the end of an error message: the first three bad rows, and advice."""
    examples = []
    for row in bad.order_by("order").limit(3).to_pyarrow().to_pylist():
        values = ", ".join(f"{key}={value!r}" for key, value in row.items() if key not in ("order", "reason"))
        examples.append(f"row {row['order']}: {values}: {row['reason']}")
    advice = " Give the unit of the timestamps under `options` of the data set's conf."
    return f"The first: {' | '.join(examples)}.{advice if 'looks like' in reasons else ''}"
