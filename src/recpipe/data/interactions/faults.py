"""Rows of a raw log that cannot be used, whatever the source: which, why, and what the user is told."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

from recpipe.data.sampling.log import Log, single_row

LATEST = 10**11  # seconds: the year 5138. Today in milliseconds is 1.7 × 10¹²
POLICIES = ("quarantine", "drop", "fail")


@ibis.udf.scalar.builtin
def url_decode(text: str) -> str:
    """The engines' own function. A null byte cannot be written in a query, but `%00` can."""
    raise NotImplementedError


def suspected(log: Log) -> bool:
    """Whether any row can be bad. Cheap: each id is looked at once, and the first and last time of each user."""
    users, items, events = log.users, log.items, log.source
    questions = [
        users.aggregate(found=(_blank(users.user_id) | _with_null_byte(users.user_id)).any()),
        items.aggregate(found=(_blank(items.item_id) | _with_null_byte(items.item_id)).any()),
        users.aggregate(found=((users["first"] < 0) | (users["last"] > LATEST)).any()),
    ]
    if "problem" in events.columns:
        questions.append(events.aggregate(found=events.problem.notnull().any()))
    return any(single_row(question)["found"] for question in questions)


def fault(events: ir.Table) -> ir.IntegerColumn:
    """0 for a good row, otherwise the number of what is wrong first."""
    found = [
        (wrong, ibis.literal(number, "int8")) for number, (wrong, _) in enumerate(_checks(events), start=1)
    ]
    return ibis.cases(*found, else_=ibis.literal(0, "int8"))


def rejected(events: ir.Table) -> ir.Table:
    """The bad rows, every column as text but `order`, and the `reason`."""
    faults = fault(events)
    reason = ibis.cases(
        *((faults == number, said) for number, (_, said) in enumerate(_checks(events), start=1))
    )
    columns = {
        name: events[name].cast("string") for name in events.columns if name not in ("order", "problem")
    }
    bad = events.mutate(fault=faults).filter(ibis._.fault > 0)
    return bad.select(order="order", **columns, reason=reason).order_by("order")


def _checks(events: ir.Table) -> list[tuple[ir.BooleanValue, ir.StringValue]]:
    """What may be wrong with a row and how that is told; a null condition is no fault."""
    checks = [(events.problem.notnull(), events.problem)] if "problem" in events.columns else []
    for name in ("user_id", "item_id"):
        checks += [
            (_blank(events[name]), ibis.literal(f"empty {name}")),
            (_with_null_byte(events[name]), ibis.literal(f"null byte in {name}")),
        ]
    checks.append((events.timestamp < 0, ibis.literal("negative timestamp")))
    for factor, unit in ((10**6, "nanoseconds"), (10**3, "microseconds"), (1, "milliseconds")):
        checks.append((events.timestamp > LATEST * factor, ibis.literal(f"timestamp looks like {unit}")))
    return checks


def _blank(ids: ir.StringColumn) -> ir.BooleanColumn:
    """Null, or nothing but white space; only what begins with some is stripped, since that is slow."""
    return ids.isnull() | ibis.ifelse(ids < "!", ids.strip() == "", False)


def _with_null_byte(ids: ir.StringColumn) -> ir.BooleanColumn:
    return ids.contains(url_decode("%00"))


def reasons(bad: ir.Table) -> dict[str, int]:
    """How many rows for each reason, without what follows its colon; the most frequent first."""
    kinds = bad.mutate(kind=bad.reason.split(":")[0])
    counts = kinds.group_by("kind").aggregate(rows=kinds.count())
    found = counts.order_by(counts.rows.desc(), counts.kind).to_pyarrow().to_pylist()
    return {row["kind"]: row["rows"] for row in found}


def complaint(bad: ir.Table, counts: dict[str, int], rows: int) -> str:
    """Counts by reason and the first bad rows, for an error."""
    share = f"{sum(counts.values()):,} of {rows:,} rows are bad"
    examples = [_example(row) for row in bad.order_by("order").limit(3).to_pyarrow().to_pylist()]
    listed = "; ".join(f"{reason}: {n:,}" for reason, n in counts.items())
    text = f"{share} ({listed}). The first: {' | '.join(examples)}."
    if any("looks like" in reason for reason in counts):
        text += " Give the unit of the timestamps under `options` of the data set's conf."
    return text


def _example(row: dict[str, object]) -> str:
    values = ", ".join(f"{key}={value!r}" for key, value in row.items() if key not in ("order", "reason"))
    return f"row {row['order']}: {values}: {row['reason']}"
