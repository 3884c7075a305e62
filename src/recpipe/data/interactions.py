"""Rows of a raw log that cannot be used, whatever the source: which, why, and what the user is told.

From a raw log to interactions: bad rows put aside, then the steps of the conf, all of it on the engine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from recpipe.data import sampling
from recpipe.data.engines import connect, hand_over, read_parquet, write_parquet
from recpipe.data.sampling.log import Log, kept, measure, single_row, size

if TYPE_CHECKING:
    from recpipe.data.readers import RawTables

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


__all__ = ["STEP_TABLE", "Ingested", "connect", "ingest", "read_parquet", "write_parquet"]

logger = logging.getLogger(__name__)

PROBLEM = {"problem"}  # the reader's column, which ends here
STEP_TABLE = pa.schema(
    [
        ("step", pa.int32()),
        ("name", pa.string()),
        ("detail", pa.string()),  # JSON
        ("rows", pa.int64()),
        ("users", pa.int64()),
        ("items", pa.int64()),
        ("first_timestamp", pa.int64()),
        ("last_timestamp", pa.int64()),
        ("events_min", pa.int64()),  # per user, and so the next three
        ("events_mean", pa.float64()),
        ("events_median", pa.float64()),
        ("events_max", pa.int64()),
    ]
)


@dataclass(frozen=True)
class Ingested:
    """Tables yet to be computed, and the step table: the raw log, the log without bad rows, every step."""

    interactions: ir.Table
    quarantine: ir.Table
    steps: pa.Table
    items: ir.Table
    users: ir.Table


def ingest(
    raw: RawTables,
    steps: Sequence[Mapping[str, Any]],
    *,
    bad_rows: str = "quarantine",
    engine: Mapping[str, Any] | None = None,
) -> Ingested:
    """Cleans and samples `raw` by `steps`, on the DuckDB it is on or, for `name: spark`, on Spark.

    bad_rows: quarantine (kept aside), drop (only counted) or fail. ValueError when most rows are bad or
    a step leaves nothing.
    """
    if bad_rows not in POLICIES:
        raise ValueError(f"bad_rows {bad_rows!r}: choose one of {', '.join(POLICIES)} in the data set's conf")
    sampling.check(steps)
    engine = engine or {}
    on_spark = engine.get("name") == "spark"
    con = connect(engine) if on_spark else ibis.get_backend(raw.interactions)
    events, items, users = (
        table if table is None or not on_spark else hand_over(table, con, engine)
        for table in (raw.interactions, raw.items, raw.users)
    )
    log, bad, rows = _cleaned(events, bad_rows)
    log, more = sampling.apply(log, steps, rows[-1])
    return Ingested(
        interactions=log.rows.order_by("order"),
        quarantine=bad,
        steps=pa.Table.from_pylist(rows + more, schema=STEP_TABLE),
        items=_completed(log.items.select("item_id"), items, "title"),
        users=_completed(log.users.select("user_id"), users),
    )


def _cleaned(events: ir.Table, policy: str) -> tuple[Log, ir.Table, list[dict[str, Any]]]:
    """The good rows, the bad ones, and the first two rows of the step table."""
    log = whole = Log.of(events)
    rows = size(whole)
    if not rows:
        raise ValueError(
            "the raw log has no rows; look at the files in the folder of the data set under data/01_raw"
        )
    bad = rejected(events)
    bad = kept(bad) if suspected(whole) else bad.limit(0)
    counts = reasons(bad)
    if wrong := sum(counts.values()):
        if policy == "fail" or 2 * wrong > rows:
            raise ValueError(complaint(bad, counts, rows))
        log = Log.of(events.filter(fault(events) == 0))
        said = "; ".join(f"{reason}: {n:,}" for reason, n in counts.items())
        logger.warning("bad rows (%s): %s of %s. %s", policy, f"{wrong:,}", f"{rows:,}", said)
    log = replace(log, source=log.source.drop(*PROBLEM & set(events.columns)))
    before = {"step": 0, "name": "raw", "detail": "{}"} | measure(whole)
    detail = json.dumps({"policy": policy, "reasons": counts}, ensure_ascii=False)
    after = {"step": 1, "name": "bad_rows", "detail": detail} | measure(log)
    return log, bad if policy == "quarantine" else bad.limit(0), [before, after]


def _completed(ids: ir.Table, known: ir.Table | None, title: str | None = None) -> ir.Table:
    """One row for each of `ids`: what is known of it, or else only its id, also as `title`."""
    (key,) = ids.columns
    named = {} if title is None else {title: ids[key]}
    if known is None:
        return ids.mutate(**named).order_by(key)
    missing = ids.anti_join(known, key)
    columns = {name: ibis.null(kind) for name, kind in known.schema().items()}
    columns |= {key: missing[key]} | ({title: missing[key]} if title in columns else {})
    return known.semi_join(ids, key).union(missing.select(**columns)).order_by(key)
