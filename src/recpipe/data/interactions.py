"""Ingestion of a raw log: separate unusable rows, run the sampling steps, complete the tables of items and users.

Everything stays on the SQL engine as lazy tables until the caller writes them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from recpipe.config import check_known
from recpipe.data import sampling
from recpipe.data.bad_rows import (
    NO_VALUE,
    bad_row_examples,
    check_number,
    count_reasons,
    may_have_bad_rows,
    select_bad_rows,
)
from recpipe.data.engines import comes_sorted, connect, transfer
from recpipe.data.event_log import EventLog, materialize, n_events, single_row, step_statistics
from recpipe.data.features import id_form_hint
from recpipe.data.files.tables import TEXTS, RawTables

logger = logging.getLogger(__name__)

MAX_COMPARED_IDS = 100_000  # ids without a row, and rows without an id, in which a common form is sought
POLICIES = ("quarantine", "drop", "fail")
COLUMNS = ("user_id", "item_id", "timestamp", "rating", "weight", "event", "order")  # without those for steps only
COUNTS = ("rows", "users", "items", "first_timestamp", "last_timestamp", "events_min")
STEP_TABLE = pa.schema(  # detail is JSON; events_* are statistics of events per user
    [("step", pa.int32()), ("name", pa.string()), ("detail", pa.string())]
    + [(name, pa.int64()) for name in COUNTS]
    + [("events_mean", pa.float64()), ("events_median", pa.float64()), ("events_max", pa.int64())]
)


@dataclass(frozen=True)
class Ingested:
    """Lazy tables of an ingested log, the step table (raw log, without bad rows, after every step), rows per file."""

    interactions: ir.Table
    quarantine: ir.Table
    steps: pa.Table
    items: ir.Table
    users: ir.Table
    file_rows: list[dict[str, Any]]  # rows read and rows taken of each file of the log; file is None for a single one
    joins: list[dict[str, Any]]  # how many ids of the log the tables of items and users have
    duplicate_ids: list[dict[str, Any]]  # ids of the log that are another one of its ids in another form


def ingest(
    raw: RawTables, steps: sampling.Steps, *, bad_rows: str = "quarantine", engine: Mapping[str, Any] | None = None
) -> Ingested:
    """Clean and sample a raw log on its DuckDB connection or, for ``name: spark``, on Spark.

    bad_rows: ``quarantine`` (stored in a table of their own), ``drop`` (only counted) or ``fail``. Raises ValueError
    if more than half of the rows are bad, not counting those without an id or time, such as those of guests; if all
    are; or if a step leaves no rows.
    """
    check_known(bad_rows, POLICIES, what="bad_rows of the data set")
    sampling.check(steps)
    engine = engine or {}
    if engine.get("name") == "spark":
        con = connect(engine)
        tables = {name: getattr(raw, name) for name in ("interactions", "items", "users")}
        raw = replace(
            raw, **{name: transfer(table, con, engine) for name, table in tables.items() if table is not None}
        )
    log, quarantine, rows, file_rows = _without_bad_rows(raw.interactions, bad_rows)
    log, step_rows = sampling.apply(log, steps, rows[-1])
    interactions = log.rows.select([name for name in log.rows.columns if name in COLUMNS])
    if steps or not comes_sorted(interactions, "order"):  # joins of the steps keep no order
        interactions = interactions.order_by("order")
    return Ingested(
        interactions=interactions,
        quarantine=quarantine,
        steps=pa.Table.from_pylist(rows + step_rows, schema=STEP_TABLE),
        items=_one_row_per_id(log.items.select("item_id"), raw.items, title="title"),
        users=_users(log, raw.users),
        file_rows=file_rows,
        joins=_joins(log, raw),
        duplicate_ids=[
            entry for key, ids in (("item_id", log.items), ("user_id", log.users)) for entry in _duplicate_ids(ids, key)
        ],
    )


def _without_bad_rows(
    events: ir.Table, policy: str
) -> tuple[EventLog, ir.Table, list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the log of good rows, the quarantine table, the first two rows of the step table, and rows per file."""
    log = raw_log = EventLog.of(events)
    if not (rows := n_events(raw_log)):
        raise ValueError("the raw log has no rows; look at the files in the folder of the data set under data/01_raw")
    bad = select_bad_rows(events)
    bad = materialize(bad) if may_have_bad_rows(raw_log) else bad.limit(0)
    counts = count_reasons(bad)
    if n_bad := sum(counts.values()):
        reasons = "; ".join(f"{reason}: {n:,}" for reason, n in counts.items())
        n_unreadable = n_bad - sum(counts.get(reason, 0) for reason in NO_VALUE)
        if policy == "fail" or 2 * n_unreadable > rows or n_bad == rows:
            raise ValueError(f"{n_bad:,} of {rows:,} rows are bad ({reasons}). {bad_row_examples(bad, reasons)}")
        log = EventLog.of(events.filter(check_number(events) == 0))
        logger.warning("bad rows (%s): %s of %s. %s", policy, f"{n_bad:,}", f"{rows:,}", reasons)
    file_rows = _rows_per_file(events, bad, rows, n_bad)
    if names := [name for name in ("problem", "source_file") if name in events.columns]:  # they end with this stage
        log = replace(log, source=log.source.drop(*names))
    detail = json.dumps({"policy": policy, "reasons": counts}, ensure_ascii=False)
    step_rows = [
        {"step": 0, "name": "raw", "detail": "{}"} | step_statistics(raw_log),
        {"step": 1, "name": "bad_rows", "detail": detail} | step_statistics(log),
    ]
    return log, bad if policy == "quarantine" else bad.limit(0), step_rows, file_rows


def _rows_per_file(events: ir.Table, bad: ir.Table, rows: int, n_bad: int) -> list[dict[str, Any]]:
    """Count the rows that were read and taken from each file of the log."""
    if "source_file" not in events.columns:
        return [{"file": None, "rows_read": rows, "rows_taken": rows - n_bad}]
    read, bad_rows = (
        {row["source_file"]: row["rows"] for row in table.to_pyarrow().to_pylist()}
        for table in (each.group_by("source_file").aggregate(rows=each.count()) for each in (events, bad))
    )
    return [{"file": file, "rows_read": n, "rows_taken": n - bad_rows.get(file, 0)} for file, n in read.items()]


def _joins(log: EventLog, raw: RawTables) -> list[dict[str, Any]]:
    """Count the ids of the log that the tables of items and users have; below half with examples and a hint."""
    owners = log.rows.select(user_id="owner").distinct() if "owner" in log.rows.columns else log.users.select("user_id")
    tables = {"items": (log.items.select("item_id"), raw.items), "users": (owners, raw.users)}
    joins = []
    for name, (ids, table) in tables.items():
        if table is not None:
            file = PurePath(raw.files.get(name, f"the table of {name}")).name
            joins.append({"table": name, "file": file} | _join(ids, table))
    return joins


def _join(ids: ir.Table, table: ir.Table) -> dict[str, Any]:
    (key,) = ids.columns
    joined = table.semi_join(ids, key)
    aggregates = {"matched": joined.count()}
    if "text" in table.columns:
        aggregates["without_text"] = (joined.text.isnull() | (joined.text.cast("string").strip() == "")).sum()
    join = single_row(ids.aggregate(ids=ids.count())) | single_row(joined.aggregate(**aggregates))
    if 2 * join["matched"] >= join["ids"]:
        return join
    missing, others = (
        rows.select(key).order_by(key).limit(MAX_COMPARED_IDS).to_pyarrow()[key].to_pylist()
        for rows in (ids.anti_join(table, key), table.anti_join(ids, key))
    )
    hint = _column_hint(missing, table, key) or id_form_hint(missing, others)
    return join | {"log_examples": missing[:2], "file_examples": others[:2], "hint": hint}


def _duplicate_ids(ids: ir.Table, key: str) -> list[dict[str, Any]]:
    """Count ids that are another id in lower case, or without leading zeros, ``.0`` at their end, or blanks."""
    column = ids[key]
    forms = {
        "in lower case": (column != column.lower(), column.lower()),
        "without leading zeros": (column.startswith("0"), column.re_replace("^0+", "")),
        "without `.0` at their end": (column.endswith(".0"), column.re_replace(r"\.0$", "")),
        "without blanks": (column.contains(" "), column.replace(" ", "")),
    }
    tests = {f"form_{place}": test.sum() for place, (test, _) in enumerate(forms.values())}
    counts = single_row(ids.aggregate(ids=ids.count(), **tests))
    entries = []
    for place, (phrase, (test, form)) in enumerate(forms.items()):
        if not counts[f"form_{place}"]:
            continue
        others = ids.filter(test).select(other=column, form=form).semi_join(ids, [("form", key)])
        pairs = single_row(others.aggregate(pairs=others.count(), example=others.other.min()))
        if pairs["pairs"]:
            entries.append({"table": f"{key[:-3]}s", "ids": counts["ids"], "form": phrase, **pairs})
    return entries


def _column_hint(ids: list[str], table: ir.Table, key: str) -> str:
    """Name the column of a table that has at least half of ``ids``; empty without one."""
    sample = ids[:1000]
    columns = {
        f"column_{place}": table[name].cast("string")
        for place, (name, kind) in enumerate(table.schema().items())
        if name not in (key, *TEXTS) and (kind.is_string() or kind.is_integer())
    }
    if not columns:
        return ""
    numbers = {name: column.nunique(where=column.isin(sample)) for name, column in columns.items()}
    counts = single_row(table.aggregate(**numbers))
    best = max(counts, key=lambda name: counts[name])
    if 2 * counts[best] < len(sample):
        return ""
    column = table.columns[int(best.removeprefix("column_"))]
    return f"the column {column!r} has {counts[best]:,} of {len(sample):,}: perhaps set `columns: {{{key}: {column}}}`"


def _users(log: EventLog, table: ir.Table | None) -> ir.Table:
    """Select one row of ``table`` per user of the log; a session has the row of its user."""
    if table is None or "owner" not in log.rows.columns:
        return _one_row_per_id(log.users.select("user_id"), table)
    sessions = log.rows.select("user_id", "owner").distinct()
    columns = {name: f"column_{place}" for place, name in enumerate(table.columns)}  # `owner` may be one of them
    owners = table.rename({new: name for name, new in columns.items()})
    rows = sessions.left_join(owners, sessions.owner == owners[columns.pop("user_id")])
    return rows.select("user_id", **{name: rows[new] for name, new in columns.items()}).order_by("user_id")


def _one_row_per_id(ids: ir.Table, table: ir.Table | None, title: str | None = None) -> ir.Table:
    """Select one row of ``table`` per id, ordered by id; ids without a row get nulls and the id as title."""
    (key,) = ids.columns
    if table is None:
        return ids.mutate(**({} if title is None else {title: ids[key]})).order_by(key)
    missing = ids.anti_join(table, key)
    columns = {name: ibis.null(kind) for name, kind in table.schema().items()}
    columns |= {key: missing[key]} | ({title: missing[key]} if title in columns else {})
    return table.semi_join(ids, key).union(missing.select(**columns)).order_by(key)
