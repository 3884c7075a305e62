"""Rows of a raw log that cannot be used, whatever the source: which, why, and what the user is told."""

from __future__ import annotations

import ibis
import ibis.expr.types as ir

LATEST = 10**11  # seconds: the year 5138. Today in milliseconds is 1.7 × 10¹²
POLICIES = ("quarantine", "drop", "fail")


@ibis.udf.scalar.builtin
def url_decode(text: str) -> str:
    """The engines' own function. A null byte cannot be written in a query, but `%00` can."""
    raise NotImplementedError


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
    return (
        events.mutate(fault=faults).filter(ibis._.fault > 0).select(order="order", **columns, reason=reason)
    )


def _checks(events: ir.Table) -> list[tuple[ir.BooleanValue, ir.StringValue]]:
    """What may be wrong with a row and how that is told; a null condition is no fault."""
    checks = [(events.problem.notnull(), events.problem)] if "problem" in events.columns else []
    for name in ("user_id", "item_id"):
        suspect = (
            events[name] < "!"
        )  # begins with a blank or is empty: stripping every id would take half the time
        blank = events[name].isnull() | ibis.ifelse(suspect, events[name].strip() == "", False)
        checks += [
            (blank, ibis.literal(f"empty {name}")),
            (events[name].contains(url_decode("%00")), ibis.literal(f"null byte in {name}")),
        ]
    checks.append((events.timestamp < 0, ibis.literal("negative timestamp")))
    for factor, unit in ((10**6, "nanoseconds"), (10**3, "microseconds"), (1, "milliseconds")):
        checks.append((events.timestamp > LATEST * factor, ibis.literal(f"timestamp looks like {unit}")))
    return checks


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
