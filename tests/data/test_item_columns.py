"""Item columns of bundles: joined by id in the order of the vocabulary, without columns that are too large."""

from __future__ import annotations

import logging

import pyarrow as pa
import pytest

from recpipe.data.item_columns import current_item_columns, item_columns

WHERE = "stock.parquet"


def test_columns_are_in_the_order_of_the_ids_with_nulls_for_missing_items() -> None:
    items = pa.table({"item_id": ["a", "b", "c"], "title": ["A", "B", "C"], "price": [1.0, 2.0, None]})
    items = items.append_column("regions", pa.array([["DE"], [], None]))
    columns = item_columns(items, ["c", "b", "x", "a"])
    assert columns.to_pydict() == {"price": [None, 2.0, None, 1.0], "regions": [None, [], None, ["DE"]]}
    assert item_columns(items.select(["item_id", "title"]), ["a"]) is None


def test_columns_of_long_text_and_of_nested_values_are_left_out_and_named(caplog: pytest.LogCaptureFixture) -> None:
    items = pa.table(
        {
            "item_id": ["a", "b", "c"],
            "title": ["t" * 900] * 3,
            "short": ["x" * 200, None, "x" * 200],
            "review": ["x" * 201, None, "x" * 201],
            "words": [["x" * 100] * 3, [], ["x" * 101]],
            "sides": [[[1, 2]], None, []],
            "image": [b"1", b"2", b"3"],
            "size": [{"width": 3}, None, None],
            "shade": pa.array(["red", "red", None]).dictionary_encode(),
            "train_events": [1, 2, 3],
        }
    )
    with caplog.at_level(logging.INFO):
        columns = item_columns(items, ["a"])
    assert columns.column_names == ["short", "words", "shade"]
    (message,) = caplog.messages
    for name in ("review", "sides", "image", "size"):
        assert f"{name} (" in message
    for name in ("title", "short", "train_events"):
        assert f"{name} (" not in message


def test_current_columns_leave_out_unknown_items() -> None:
    table = pa.table({"item_id": pa.array([7, 9, None, 8]), "stock": [70, 90, 0, 80]})
    assert current_item_columns(table, ["8", "7", "6"], where=WHERE).to_pydict() == {"stock": [80, 70, None]}
    assert current_item_columns(table.slice(0, 0), ["8"], where=WHERE).to_pydict() == {"stock": [None]}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"sku": ["a"]}), "^stock.parquet has no column item_id, only sku"),
        (pa.table({"item_id": ["a", "b", "a"]}), "1 items in several rows, such as 'a'"),
        (pa.table({"item_id": ["A", "B"]}), "none of the 2 items of the bundle, but 'A'; 2 of 2 are"),
        (pa.table({"item_id": ["x"]}), "none of the 2 items of the bundle, but 'x'$"),
    ],
)
def test_tables_that_do_not_fit_are_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        current_item_columns(table, ["a", "b"], where=WHERE)
