"""Encodings of columns against plain loops, and tables in another order."""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from statistics import fmean, pstdev

import numpy as np
import pyarrow as pa
import pytest

from recpipe.data import features
from recpipe.data.features import Column, align_rows, fit_columns


def encoded_by_loop(column: Column, rows: list) -> list[list[int]]:
    codes = {value: n + 1 for n, value in enumerate(column.values)}
    values = [[row] if not isinstance(row, list) else row for row in rows]
    encoded = [[codes.get(str(v), 0) for v in row if v is not None][: column.per_row] for row in values]
    return [row + [0] * (column.per_row - len(row)) for row in encoded]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (["b", "a", None, "b", "b", "c"], pa.string()),
        ([["x", "y"], None, [], ["y"], ["z", None, "x", "y"]], pa.list_(pa.string())),
        ([3, 1, None, 3], pa.int64()),
    ],
    ids=["text", "lists", "few-numbers"],
)
def test_categories_have_codes_by_frequency_and_zero_is_none_or_unknown(rows, kind):
    column = Column.of("c", pa.array(rows, kind))
    flat = [v for row in rows for v in (row if isinstance(row, list) else [row]) if v is not None]
    counts = Counter(map(str, flat))
    assert list(column.values) == sorted(counts, key=lambda v: (-counts[v], v))
    assert column.encode(pa.chunked_array([pa.array(rows, kind)])).tolist() == encoded_by_loop(column, rows)
    assert column.encode(pa.array([None, None], kind)).tolist() == column.missing(2).tolist()


def test_unseen_categories_are_unknown_and_rows_are_cut_to_the_longest_seen():
    column = Column.of("c", pa.array([["a"], ["b", "a"]]))
    assert column.encode(pa.array([["new"], ["new", "b", "a"], ["a"]])).tolist() == [[0, 0], [0, 2], [1, 0]]


def test_rare_values_and_long_rows_are_cut(monkeypatch):
    monkeypatch.setattr(features, "MAX_CATEGORIES", 2)
    monkeypatch.setattr(features, "MAX_VALUES_PER_ROW", 3)
    column = Column.of("c", pa.array([["a", "a", "b", "c", "b", "a"], ["b"]]))
    assert (column.values, column.per_row) == (("a", "b"), 3)


def test_booleans_and_nested_lists_are_categories():
    assert Column.of("c", pa.array([True, False, True])).values == ("true", "false")
    nested = Column.of("c", pa.array([[["a"], ["b", "a"]], None, [None, ["b"]]]))
    assert nested.encode(pa.array([[["b"], ["a"]], [[]]])).tolist() == [[2, 1, 0], [0, 0, 0]]


def test_many_numbers_are_standardised_with_a_flag_for_missing_values():
    rng = np.random.default_rng(0)
    values = [None if i % 9 == 0 else float(x) for i, x in enumerate(rng.normal(5, 3, 200))]
    values[4], values[5] = float("nan"), float("-inf")
    valid = [v for v in values if v is not None and isfinite(v)]
    column = Column.of("c", pa.array(values))
    encoded = column.encode(pa.array(values))
    for value, (number, present) in zip(values, encoded, strict=True):
        has_value = value is not None and isfinite(value)
        assert present == has_value
        assert number == pytest.approx((value - fmean(valid)) / pstdev(valid) if has_value else 0.0, abs=1e-5)


def test_columns_round_trip_through_json():
    for rows in (["b", "a", None], list(map(float, range(60)))):
        column = Column.of("c", pa.array(rows))
        assert Column.from_dict(json.loads(json.dumps(column.to_dict()))) == column


def test_missing_and_empty_columns_are_refused():
    table = {"price": pa.array([1.0]), "size": pa.array([None], pa.int64())}
    with pytest.raises(ValueError, match=r"colour.*price, size"):
        fit_columns(["price", "colour"], table, where="side.items")
    with pytest.raises(ValueError, match="column 'size' has no value"):
        fit_columns(["size"], table, where="side.items")


def test_aligned_rows_are_null_for_missing_ids():
    table = pa.table({"item_id": pa.array(["b", "a"], pa.large_string()), "x": [2, 1]})
    assert align_rows(table, "item_id", ["a", "z", "b", "a"])["x"].to_pylist() == [1, None, 2, 1]
