"""Conditions on Arrow tables: against DuckDB on random tables, columns of lists, unusual types, and no SQL engine."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recpipe.data.conditions import condition_mask
from recpipe.data.conditions.ibis_rows import condition_expression

COLUMNS = {
    "i": (pa.int64(), st.integers(-3, 3) | st.integers(-(2**63), 2**63 - 1)),
    "j": (pa.int32(), st.integers(-2, 2)),
    "f": (pa.float64(), st.sampled_from([-1.5, -0.0, 0.0, 1.0, 2.0, 2.5, 1e300, float("inf")])),
    "s": (
        pa.string(),
        st.sampled_from(["", "a", "B", "it's", "1", " 2 ", "+-3", "1_0", "1e", "1.5_5", ".5", "nan", "ü"]),
    ),
    "t": (pa.string(), st.sampled_from(["a", "B", "2", "10", "inf"])),
    "b": (pa.bool_(), st.booleans()),
    "l": (pa.list_(pa.string()), st.lists(st.sampled_from(["a", "B", None]), max_size=3)),
    "n": (pa.list_(pa.int64()), st.lists(st.integers(-2, 2) | st.none(), max_size=3)),
}
NUMBERS, TEXTS = ("i", "j", "f"), ("s", "t")
CONNECTION = ibis.duckdb.connect()
Pair = tuple[str, str]  # condition, SQL


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    rows = draw(st.integers(0, 12))
    return pa.table(
        {
            name: pa.array(draw(st.lists(values | st.none(), min_size=rows, max_size=rows)), type_)
            for name, (type_, values) in COLUMNS.items()
        }
    )


def text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


@st.composite
def comparisons(draw: st.DrawFn) -> Pair:
    operator = draw(st.sampled_from(["=", "<>", "<", "<=", ">", ">="]))
    number = draw(st.sampled_from(["-2", "0", "1", "2.5", "1e3", "9223372036854775807"]))
    small = draw(st.sampled_from(["-2", "0", "1", "2.5", "10"]))
    one, other = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(NUMBERS))
    word, column = draw(st.sampled_from(["a", "B", "it's", "1", ""])), draw(st.sampled_from(TEXTS))
    double = f"nullif(TRY_CAST({column} AS DOUBLE), 'nan'::DOUBLE)"
    sql_number = number if "9223" in number else f"{number}::DOUBLE" if "." in number or "e" in number else number
    return draw(
        st.sampled_from(
            [
                (f"{one} {operator} {number}", f"{one} {operator} {sql_number}"),
                (f"{number} {operator} {one}", f"{sql_number} {operator} {one}"),
                (f"{one} {operator} {other}", f"{one} {operator} {other}"),
                (f"{column} {operator} {text(word)}", f"{column} {operator} {text(word)}"),
                (f"s {operator} t", f"s {operator} t"),
                (f"{column} {operator} {small}", f"{double} {operator} {small}::DOUBLE"),
                (f"{column} {operator} {one}", f"{double} {operator} {one}::DOUBLE"),
                ("b", "b"),
                ("b = false", "b = false"),
                ("b <> true", "b <> true"),
                (f"{one} in [1, {small}]", f"{one} IN (1, {small}::DOUBLE)"),
                (f"{one} not in (0, 2)", f"{one} NOT IN (0, 2)"),
                (f"{column} IN ({text(word)}, 'a')", f"{column} IN ({text(word)}, 'a')"),
                ("i in [j, 3]", "i IN (j, 3)"),
                (f"{text(word)} in l", f"list_contains(l, {text(word)})"),
                ("s not in l", "NOT list_contains(l, s)"),
                ("j in n", "list_contains(n, j)"),
                ("0 in n", "list_contains(n, 0)"),
                *[(f"{name} is null", f"{name} IS NULL") for name in COLUMNS],
                *[(f"{name} IS NOT null", f"{name} IS NOT NULL") for name in COLUMNS],
            ]
        )
    )


def combined(parts: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    def combine(word: str, pairs: list[Pair]) -> Pair:
        ours, sql = zip(*pairs, strict=True)
        return "(" + f" {word} ".join(ours) + ")", "(" + f" {word} ".join(sql) + ")"

    several = st.lists(parts, min_size=2, max_size=3)
    return st.builds(combine, st.sampled_from(["and", "or", "AND", "OR"]), several) | parts.map(
        lambda pair: (f"not {pair[0]}", f"NOT {pair[1]}")
    )


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.too_slow])
@given(tables(), st.recursive(comparisons(), combined, max_leaves=5))
def test_a_mask_equals_duckdb_and_the_ibis_expression(table: pa.Table, pair: Pair) -> None:
    condition, sql = pair
    numbered = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    rows = CONNECTION.create_table("items", numbered, overwrite=True)
    oracle = CONNECTION.con.execute(f"SELECT row FROM items WHERE {sql} ORDER BY row").fetchall()
    assert np.flatnonzero(condition_mask(condition, table)).tolist() == [row for (row,) in oracle]
    selected = rows.filter(condition_expression(condition, rows)[0]).row.to_pyarrow().to_pylist()
    assert sorted(selected) == [row for (row,) in oracle]


@pytest.mark.parametrize(
    "word",
    ["1", " 3.5\t", "1e3", "1_000", "inf", "-INF", "+3", "Infinity", "nan", "-nan", "0x10", "1.", ".", ".5", "1e",
     "1e999", "1,000", "", "٣", "1d", "true", "1e-400", "00012", "- 3", "+-3", "--3", "1 2", "1\x0b", "\u00a01", "1__0",
     "_1", "1_", "1._5", "1.5_5", "1e+5", "1e1_0", "e5"],
)  # fmt: skip
def test_text_is_a_number_where_duckdb_says_so(word: str) -> None:
    with duckdb.connect() as connection:
        (number,) = connection.execute("SELECT TRY_CAST(? AS DOUBLE)", [word]).fetchone()
    table = pa.table({"quantity": [word], "number": pa.array([number], pa.float64())})
    is_number = number is not None and not np.isnan(number)
    assert condition_mask("quantity = number", table).tolist() == [is_number]


def test_columns_of_unusual_types_are_compared_as_numbers_and_texts() -> None:
    table = pa.table(
        {
            "huge": pa.array([2**64 - 1, 2, None], pa.uint64()),
            "small": pa.array([255, 2, None], pa.uint8()),
            "half": pa.array([np.float16(0.5), np.float16(2), None], pa.float16()),
            "price": pa.array([Decimal("1.50"), Decimal("2.00"), None]),
            "gap": [float("nan"), 2.0, None],
            "zero": [0.0, -0.0, None],
            "colour": pa.array(["red", "blue", None]).dictionary_encode(),
            "long": pa.array(["red", "blue", None], pa.large_string()),
            "view": pa.array(["red", "blue", None], pa.string_view()),
            "lists": pa.array([["red"], [], None], pa.large_list(pa.large_string())),
            "pairs": pa.array([[1, 2], [3, 4], None], pa.list_(pa.int8(), 2)),
            "nothing": pa.nulls(3),
            "day": pa.array([1, 2, None], pa.date32()),
        }
    )
    table = pa.concat_tables([table.slice(0, 1), table.slice(1)])  # of several chunks
    first, second, none = [True, False, False], [False, True, False], [False, False, False]
    for condition, mask in {
        "huge > 9000000000000000000": first, "small > 200": first, "half < 1": first, "price = 1.5": first,
        "not gap = 1": second, "zero in (0, 3)": [True, True, False], "zero not in (-0.0)": none,
        "gap is null": [True, False, True], "colour = 'red'": first, "long in ['blue']": second,
        "view = colour and long <> 'blue'": first, "'red' in lists": first, "'red' not in lists": second,
        "3 in pairs": second, "nothing = 1": none, "not nothing = 'a'": none, "nothing in ['a']": none,
        "nothing is null": [True, True, True], "day is not null": [True, True, False],
    }.items():  # fmt: skip
        assert condition_mask(condition, table).tolist() == mask, condition
    assert condition_mask("small = 2", table.slice(0, 0)).tolist() == []


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("in_stok", "position 1.*the items have no column 'in_stok' .did you mean 'in_stock'.., only in_stock, reg"),
        ("price = 'cheap'", "position 9.*is text and the column has numbers"),
        ("regions = 'DE'", "write `'value' in regions`"),
        ("regions in ['DE', 'AT']", "position 1.*write `'value' in regions`, one for each value"),
        ("7 in regions", "is number and regions has lists of text"),
        ("'DE' in price", "a list of values in brackets, or a column of lists"),
        ("in_stock = price", "boolean and number cannot be compared"),
        ("day > '2024-01-01'", "position 1.*neither numbers"),
        ("nested is null and 'a' in nested", "lists of other"),
        ("price", "is no condition"),
        ("item_id = 7", "item_id is text; write the value in quotation marks"),
    ],
)
def test_a_condition_that_does_not_fit_the_columns_is_refused(condition: str, message: str) -> None:
    fields = {"in_stock": pa.bool_(), "regions": pa.list_(pa.string()), "price": pa.float64(), "day": pa.date32()}
    fields |= {"nested": pa.list_(pa.list_(pa.string())), "item_id": pa.string()}
    with pytest.raises(ValueError, match=message):
        condition_mask(condition, pa.schema(fields).empty_table())


def test_a_mask_needs_no_sql_engine() -> None:
    code = (
        "import sys; sys.modules.update(ibis=None, duckdb=None, polars=None)\n"
        "import pyarrow as pa; from recpipe.data.conditions import condition_mask\n"
        "assert condition_mask('a in (1, 2)', pa.table({'a': [1, 3]})).tolist() == [True, False]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
