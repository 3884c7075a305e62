"""Files of ids as other repositories publish them: read, written, and every defect named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recpipe.semantic_ids import id_files
from recpipe.semantic_ids.id_files import read_ids, read_item_map, write_ids

CODES = np.array([[1, 3, 0], [1, 3, 255], [0, 2, 7]], np.int32)


def put(folder: Path, content: object, name: str = "shop.index.json") -> Path:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_an_index_as_published_by_lc_rec_and_image_ids_of_mql4grec(tmp_path) -> None:
    table = read_ids(put(tmp_path, {"0": ["<a_1>", "<b_3>"], "17": ["<a_0>", "<b_255>"]}))
    assert table.keys.tolist() == ["0", "17"] and table.codes.tolist() == [[1, 3], [0, 255]]
    assert table.letters == "ab" and table.codes.dtype == np.int32
    assert read_ids(put(tmp_path, {"0": ["<A_1>", "<B_3>"]})).letters == "AB"


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"x": [1, 3], "y": [0, 2]}, ["x", "y"]),
        ([[1, 3], [0, 2]], ["0", "1"]),
        ([["<a_1>", "<b_3>"], ["<a_0>", "<b_2>"]], ["0", "1"]),
        ({"x": "<a_1><b_3>", "y": "<a_0> <b_2>"}, ["x", "y"]),
    ],
)
def test_other_forms_of_json_hold_the_same_codes(tmp_path, content: object, keys: list[str]) -> None:
    table = read_ids(put(tmp_path, content))
    assert table.keys.tolist() == keys and table.codes.tolist() == [[1, 3], [0, 2]]


def test_a_column_of_a_table_with_tokens_where_items_without_ids_are_null(tmp_path) -> None:
    table = pa.table({"asin": [7, 8, 9], "sid": [["<a_5>", "<b_6>"], None, ["<a_0>", "<b_0>"]]})
    pq.write_table(table, tmp_path / "items.parquet")
    read = read_ids(tmp_path / "items.parquet", item_id="asin", column="sid")
    assert read.keys.tolist() == ["7", "9"] and read.codes.tolist() == [[5, 6], [0, 0]]
    with pytest.raises(ValueError, match="items.parquet has no column 'codes'; it has asin, sid"):
        read_ids(tmp_path / "items.parquet", item_id="asin")


@given(
    codes=st.integers(1, 6).flatmap(
        lambda n: st.lists(st.lists(st.integers(0, 999), min_size=n, max_size=n), min_size=1)
    ),
    form=st.sampled_from(id_files.FORMATS),
    capital=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_what_was_written_is_read_back(tmp_path_factory, codes: list[list[int]], form: str, capital: bool) -> None:
    path = tmp_path_factory.mktemp("ids") / ("ids.parquet" if form == "parquet" else "ids.json")
    keys = [f"item {number} \u00e4" for number in range(len(codes))]
    write_ids(path, keys, np.array(codes, np.int32), form=form, capital=capital)
    table = read_ids(path)
    assert table.keys.tolist() == keys and table.codes.tolist() == codes
    expected = ("ABCDEF" if capital else "abcdef")[: len(codes[0])]
    assert table.letters == (expected if form == "tokens" else None)


def test_the_written_index_is_the_published_one(tmp_path) -> None:
    write_ids(tmp_path / "i.json", ["0", "1", "2"], CODES, form="tokens")
    assert json.loads((tmp_path / "i.json").read_text())["1"] == ["<a_1>", "<b_3>", "<c_255>"]
    with pytest.raises(ValueError, match="27 levels have no letters, only 26 do: write integers or parquet"):
        write_ids(tmp_path / "i.json", ["0"], np.zeros((1, 27), np.int32), form="tokens")
    with pytest.raises(ValueError, match="the format is 'csv'; allowed: tokens, integers, parquet"):
        write_ids(tmp_path / "i.json", ["0"], CODES[:1], form="csv")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": ["<a_1>"], "1": ["<a_2>"], "0": ["<a_3>"]}', "has several ids of an item: '0'; keep one"),
        (
            {"0": ["<a_1>", "<b_2>"], "1": ["<a_1>"], "2": [1, 1]},
            "1 of 3 items do not have 2 codes as most do: '1' has 1",
        ),
        ({"0": ["<a_1>", "<b>"]}, r"the id of item '0' is .*allowed are tokens such as <a_12>"),
        ({"0": ["a_1"]}, "the id of item '0'"),
        ({"0": [1.5]}, "the id of item '0' is '\\[1.5\\]'"),
        ({"0": [True]}, "the id of item '0'"),
        ({"0": {"a": 1}}, "the id of item '0'"),
        ({"0": None}, "the id of item '0'"),
        ({"0": [1, -2]}, r"item '0' has the codes \[1, -2\]; allowed: 0 to 1048575"),
        ({"0": ["<a_1048576>"]}, "allowed: 0 to 1048575"),
        ({"0": [10**20]}, "item '0' has the codes .*allowed: 0 to 1048575"),
        ('{"0": [' + "9" * 5000 + "]}", "shop.index.json is not JSON"),
        ({"0": ["<a_99999999999999999999>"]}, "the id of item '0'"),
        (
            {"0": ["<a_1>", "<b_1>"], "1": ["<b_1>", "<a_1>"]},
            "levels of item '1' have the letters 'ba', those of '0' 'ab'",
        ),
        ({"0": ["<a_1>"], "1": [1]}, "item '1' have the letters 'of integers'"),
        ({}, "has no ids"),
        ({"0": []}, "items have 0 codes; allowed: 1 to 256"),
        ("3", "must be a JSON object of ids by item, or a list of ids"),
        ("{", "is not JSON"),
    ],
)
def test_defects_of_a_file_are_named(tmp_path, content: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ids(put(tmp_path, content))


def test_files_that_cannot_be_read(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="there is no file .*gone.json: put it there"):
        read_ids(tmp_path / "gone.json")
    with pytest.raises(ValueError, match="is neither JSON .* nor Parquet"):
        read_ids(put(tmp_path, "x", "ids.npy"))
    with pytest.raises(ValueError, match="is not a Parquet file"):
        read_ids(put(tmp_path, "x", "ids.parquet"))
    (tmp_path / "latin.json").write_bytes(b'{"\xe4": [1]}')
    with pytest.raises(ValueError, match="is not text in UTF-8"):
        read_ids(tmp_path / "latin.json")
    monkeypatch.setattr(id_files, "MAX_BYTES", 3)
    with pytest.raises(ValueError, match="allowed: 0 MiB"):
        read_ids(put(tmp_path, {"0": [1]}))


@pytest.mark.parametrize(
    ("keys", "codes", "message"),
    [
        ([["a"]], [[1]], "column 'item_id' of type list<.*holds no item ids"),
        (pa.array([b"\xff"], pa.binary()), [[1]], "column 'item_id' of type binary holds no item ids"),
        (["a"], pa.array([[2**63 + 5]], pa.list_(pa.uint64())), "item 'a' has the codes .*allowed: 0 to"),
        (["a"], [1], "the id of item 'a' is '1'"),
        (["a"], [[1.0]], "the id of item 'a'"),
        ([1, 1], [[1], [2]], "several ids of an item: '1'"),
        ([None], [[1]], "1 rows have no item_id"),
    ],
)
def test_defects_of_a_table_are_named(tmp_path, keys, codes, message: str) -> None:
    pq.write_table(pa.table({"item_id": keys, "codes": codes}), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match=f"ids.parquet.*{message}"):
        read_ids(tmp_path / "ids.parquet")


def test_two_columns_of_a_name_are_refused(tmp_path) -> None:
    columns = [pa.array(["a"]), pa.array([[1]]), pa.array([[2]])]
    pq.write_table(pa.Table.from_arrays(columns, names=["item_id", "codes", "codes"]), tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match="ids.parquet has 2 columns 'codes'"):
        read_ids(tmp_path / "ids.parquet")


def test_an_item_map_in_any_direction(tmp_path) -> None:
    expected = {"0": "B00A", "1": "B00B"}
    assert read_item_map(put(tmp_path, "B00A\t0\nB00B\t1\n", "shop.item2id")) == expected
    assert read_item_map(put(tmp_path, {"B00A": 0, "B00B": 1}, "map.json")) == expected
    assert read_item_map(put(tmp_path, {"0": "B00A", "1": "B00B"}, "map.json")) == expected
    assert read_item_map(put(tmp_path, {"12": 0, "3": 1}, "map.json")) == {"0": "12", "1": "3"}
    assert read_item_map(put(tmp_path, "B\u2028A\t0\r\nB\x85B\t1\n", "lines")) == {"0": "B\u2028A", "1": "B\x85B"}


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("B00A 0\n", "item2id", "is no item id, a tab and a number"),
        ("B00A\tx\n", "item2id", "is no item id, a tab and a number"),
        ("a\t0\nb\t0\n", "item2id", "numbers that occur more than once: '0'"),
        ("a\t0\na\t1\n", "item2id", "items that occur more than once: 'a'"),
        ("a\t\u00b2\n", "item2id", "is no item id, a tab and a number"),
        ({"a": [1]}, "map.json", "is no pair of an item id and a number"),
        ("[1]", "map.json", "must be a JSON object of item ids and numbers"),
    ],
)
def test_defects_of_an_item_map(tmp_path, content: object, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_item_map(put(tmp_path, content, name))
