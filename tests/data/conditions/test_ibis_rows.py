"""Conditions of the step `where`: against plain Python on rows with every kind of value, and columns refused."""

from __future__ import annotations

import itertools
from typing import Any

import ibis
import pyarrow as pa
import pytest

from recpipe.data.conditions import check_condition
from recpipe.data.conditions.ibis_rows import condition_expression

VALUES: dict[str, list[Any]] = {
    "event": ["view", "it's", None], "rating": [1.0, 4.0, None], "quantity": ["-2", "3.5", "many", None],
    "paid": [True, False, None],
}  # fmt: skip
ROWS = [dict(zip(VALUES, values, strict=True)) for values in itertools.product(*VALUES.values())]
SCHEMA = pa.schema(
    {
        "timestamp": pa.int64(),
        "event": pa.string(),
        "rating": pa.float64(),
        "quantity": pa.string(),
        "paid": pa.bool_(),
        "row": pa.int64(),
    }
)


def number(text: str | None) -> float | None:
    return None if text in (None, "many") else float(text)


# Three-valued logic of SQL in plain Python; None is unknown
def less(a: Any, b: Any) -> bool | None:
    return None if a is None or b is None else a < b


def equal(a: Any, b: Any) -> bool | None:
    return None if a is None or b is None else a == b


def inverse(a: bool | None) -> bool | None:
    return None if a is None else not a


def both(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def either(a: bool | None, b: bool | None) -> bool | None:
    return inverse(both(inverse(a), inverse(b)))


@pytest.mark.parametrize(
    ("condition", "oracle"),
    [
        ("rating >= 4", lambda r: inverse(less(r["rating"], 4))),
        ("rating == -4 or rating != 1", lambda r: inverse(equal(r["rating"], 1))),
        ("quantity > 0", lambda r: less(0, number(r["quantity"]))),
        ("-5 < quantity <= 3", lambda r: r["quantity"] == "-2"),
        ("quantity in [3.5, -2]", lambda r: None if (n := number(r["quantity"])) is None else n in (3.5, -2)),
        ("quantity == 'many'", lambda r: equal(r["quantity"], "many")),
        ("rating > quantity", lambda r: less(number(r["quantity"]), r["rating"])),
        ("event in ['view', \"it's\"]", lambda r: None if r["event"] is None else True),
        ("event NOT IN ('view')", lambda r: inverse(equal(r["event"], "view"))),
        ("event is null and rating is not null", lambda r: r["event"] is None and r["rating"] is not None),
        (
            "not (event == 'view' or rating < 2)",
            lambda r: inverse(either(equal(r["event"], "view"), less(r["rating"], 2))),
        ),
        ("event = 'it''s' AND NOT paid = TRUE or rating <> 4", lambda r: either(
            both(equal(r["event"], "it's"), inverse(equal(r["paid"], True))), inverse(equal(r["rating"], 4)))),
        ("paid", lambda r: r["paid"]),
        ("paid == false and not rating == 1", lambda r: both(inverse(r["paid"]), inverse(equal(r["rating"], 1)))),
    ],
)  # fmt: skip
def test_a_condition_equals_plain_python(condition: str, oracle: Any) -> None:
    rows = [row | {"row": place} for place, row in enumerate(ROWS)]
    table = ibis.duckdb.connect().create_table("log", pa.Table.from_pylist(rows, schema=SCHEMA))
    selected = table.filter(condition_expression(condition, table)[0])
    assert sorted(selected.row.to_pyarrow().to_pylist()) == [row["row"] for row in rows if oracle(row) is True]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (
            "event == 'ü' and raiting > 3",
            "position 18, 'raiting > 3': the log has no column 'raiting' .did you mean 'rating'.., only timestamp, ev",
        ),
        ("event == view", "no column 'view'.*text stands in quotation marks"),
        ("rating > '4'", "position 10.*is text and the column has numbers"),
        ("timestamp >= '2024-01-01'", "position 14.*seconds since 1970; the step time_window takes dates"),
        ("event == 7", "position 1.*event is text; write the value in quotation marks"),
        ("quantity == 90071992547409930", "not exact"),
        ("event in 'view'", "needs a list"),
        ("event in ['view', 7]", "event is text"),
        ("quantity in ['3', 3]", "several kinds"),
        ("rating == null", "`is null`"),
        ("rating is 4", "`is` goes with null only"),
        ("paid > true", "by == and != only"),
        ("paid == 1", "boolean and number cannot be compared"),
        ("rating", "is no condition"),
        ("1 < 2", "no column is compared"),
        ("rating > 1e999", "that large"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_is_refused(condition: str, message: str) -> None:
    table = ibis.memtable(pa.Table.from_pylist([], schema=SCHEMA))
    with pytest.raises(ValueError, match=message):
        condition_expression(check_condition(condition), table)


def test_a_long_list_and_many_comparisons_are_possible() -> None:
    table = ibis.duckdb.connect().create_table("log", pa.table({"n": list(range(5000))}))
    for condition, rows in ((f"n in {list(range(3000))}", 3000), (" or ".join(f"n == {n}" for n in range(100)), 100)):
        assert table.filter(condition_expression(condition, table)[0]).count().to_pyarrow().as_py() == rows
