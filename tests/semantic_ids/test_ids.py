"""Semantic ids as a file and as a table: round trip, refusals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.artefacts import forget_digest, names

from recpipe.semantic_ids.ids import SemanticIds

SIZES = (4, 8, 3)


def ids(n: int = 6, **changed) -> SemanticIds:
    codes = np.column_stack([np.arange(n) % size for size in SIZES]).astype(np.int32)
    fields = {
        "item_ids": np.array([f"item {i} ü" for i in range(n)], object),
        "codes": codes,
        "quantized": codes[:, :2].copy(),
        "added": np.arange(n) == n - 1,
        "sizes": SIZES,
        "about": {"quantizer": "abc", "space": "def", "policy": "extra_digit"},
        "keys": np.array([f"{i:064x}" for i in range(n)], object),
    }
    return SemanticIds(**{**fields, **changed})


@pytest.mark.parametrize("n", [0, 1, 6])
def test_what_is_read_is_what_was_written(tmp_path, n):
    written = ids(n)
    written.write(tmp_path / "deep" / "ids.parquet")
    read = SemanticIds.read(tmp_path / "deep" / "ids.parquet")
    for name in ("item_ids", "codes", "quantized", "added", "keys"):
        before, after = getattr(written, name), getattr(read, name)
        assert after.tolist() == before.tolist()
        assert after.dtype == before.dtype
        assert after.shape == before.shape
    assert (read.sizes, read.about, read.hash) == (written.sizes, written.about, written.hash)
    assert names(tmp_path / "deep") == ["ids.parquet"]


def test_the_file_is_plain_parquet_with_lists(tmp_path):
    ids(3).write(tmp_path / "ids.parquet")
    table = pq.read_table(tmp_path / "ids.parquet")
    assert table["codes"].to_pylist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2]]
    assert str(table.schema.field("quantized").type) == "list<element: int32>"


@pytest.mark.parametrize("damage", ["missing", "cut", "foreign"])
def test_a_file_that_is_no_semantic_ids_is_refused(tmp_path, damage):
    path = tmp_path / "ids.parquet"
    if damage != "missing":
        ids().write(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    if damage == "foreign":
        pq.write_table(pq.read_table(path).replace_schema_metadata({}), path)
    with pytest.raises(ValueError, match=r"is not a file of semantic ids .* run `kedro run --pipelines=semantic_ids`"):
        SemanticIds.read(path)


def test_codes_out_of_range_in_a_file_are_refused_with_its_path_and_what_to_run(tmp_path):
    path = tmp_path / "ids.parquet"
    ids().write(path)
    table = pq.read_table(path)
    codes = pa.array(bad_code(2, 1, 8).tolist(), table["codes"].type)
    pq.write_table(table.set_column(table.column_names.index("codes"), "codes", codes), path)
    forget_digest(path)
    with pytest.raises(ValueError, match=r"ids.parquet is not a file .*'item 2 ü' has 8 at level 2.*run `kedro run"):
        SemanticIds.read(path)


def bad_code(row: int, level: int, code: int) -> np.ndarray:
    codes = ids().codes.copy()
    codes[row, level] = code
    return codes


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"item_ids": np.array(list("abcdea"), object)}, "1 items have more than one row: a"),
        ({"codes": bad_code(2, 1, 8)}, r"'item 2 ü' has 8 at level 2, allowed 0 to 7"),
        ({"codes": bad_code(0, 0, -1)}, r"'item 0 ü' has -1 at level 1, allowed 0 to 3"),
        ({"quantized": bad_code(5, 2, 3)}, r"quantized codes of 1 items .* 'item 5 ü' has 3 at level 3"),
        ({"codes": ids(5).codes}, r"6 items with 3 sizes need codes \(6, 3\)"),
        ({"sizes": (4, 8)}, r"6 items with 2 sizes need codes \(6, 2\)"),
        ({"added": np.zeros(5, bool)}, r"added and keys \(6,\)"),
        ({"quantized": np.zeros((6, 4), np.int32)}, r"quantized \(6, ≤3\).* \(6, 4\)"),
    ],
    ids=["duplicate", "too large", "negative", "quantized", "fewer rows", "fewer sizes", "added", "levels"],
)
def test_bad_tables_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        ids(**changed)


def test_unique_tells_whether_all_codes_together_differ():
    assert ids(24).unique
    assert not ids(25).unique  # 4, 8 and 3 come round after 24
    assert ids(0).unique


def test_the_hash_changes_with_items_codes_sizes_and_quantizer_only():
    first = ids()
    other_item = ids(item_ids=np.array([*"abcdef"], object))
    others = [ids(codes=bad_code(0, 0, 1)), ids(sizes=(4, 8, 4)), ids(about={"quantizer": "x"}), other_item]
    assert len({first.hash, *(other.hash for other in others)}) == 5
    assert ids(about={**first.about, "space": "z"}, keys=np.full(6, "", object)).hash == first.hash


def test_rows_finds_items_and_says_minus_one_for_unknown_ones():
    assert ids().rows(["item 3 ü", "nobody", "item 0 ü"]).tolist() == [3, -1, 0]
    assert ids().rows([]).tolist() == []
