"""From a raw log to interactions: bad rows put aside, then the steps of the conf, all of it on the engine."""

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
from recpipe.data.interactions import faults
from recpipe.data.interactions.engines import connect, hand_over, read_parquet, write_parquet
from recpipe.data.sampling.log import Log, kept, measure, size

if TYPE_CHECKING:
    from recpipe.data.sources import RawTables

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
    if bad_rows not in faults.POLICIES:
        raise ValueError(
            f"bad_rows {bad_rows!r}: choose one of {', '.join(faults.POLICIES)} in the data set's conf"
        )
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
    bad = faults.rejected(events)
    bad = kept(bad) if faults.suspected(whole) else bad.limit(0)
    counts = faults.reasons(bad)
    if wrong := sum(counts.values()):
        if policy == "fail" or 2 * wrong > rows:
            raise ValueError(faults.complaint(bad, counts, rows))
        log = Log.of(events.filter(faults.fault(events) == 0))
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
