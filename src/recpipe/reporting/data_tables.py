"""The log before cleaning and sampling beside what is left of it, from the step table alone."""

from __future__ import annotations

from typing import Any

import polars as pl

from recpipe.reporting.insight_tables import Table
from recpipe.reporting.wording import count, number, percent, span

HEAD = ["", "raw log", "as models see it"]


def before_and_after(steps: Any) -> Table | None:
    """Sizes of the first and the last row of the step table, side by side; None where there are not two.

    The density counts repeated pairs each time, so that it can be had without looking at pairs; a median is missing in
    tables of before there was one.
    """
    table = steps if isinstance(steps, pl.DataFrame) else pl.DataFrame([] if steps is None else steps)
    if table.height < 2:
        return None
    table = table.sort("step")
    ends = [table.row(at, named=True) for at in (0, -1)]
    columns = [_sizes(row) for row in ends]
    return HEAD, [[name, *(sizes[name] for sizes in columns)] for name in columns[0]]


def _sizes(row: dict[str, Any]) -> dict[str, str]:
    pairs = (row["users"] or 0) * (row["items"] or 0)
    return {
        "interactions": count(row["rows"]),
        "users": count(row["users"]),
        "items": count(row["items"]),
        "interactions over possible user-item pairs": percent(row["rows"] / pairs if pairs else None),
        "interactions of the median user": number(row.get("events_median")),
        "of the average user": number(row.get("events_mean")),
        "from, to": span(row.get("first_timestamp"), row.get("last_timestamp")),
    }
