"""Item texts: templates, cleaning, columns from further files, placeholder titles."""

from __future__ import annotations

import gzip
import json
import logging
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.content.item_texts import NULL_WORDS, build_texts, clear_placeholder_texts, join_file
from recpipe.data.readers import files


def items(**columns: list) -> pa.Table:
    n = len(next(iter(columns.values())))
    return pa.table({"item_id": [f"i{i}" for i in range(n)], **columns})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"),
        (None, None),
        ("", None),
        (" \t\n\u00a0\u3000", None),
        ("a \n\t b\u00a0c", "a b c"),
        ("Tom &amp; Jerry&#39;s &eacute;", "Tom & Jerry's é"),
        ("<b>bold</b><br/>next<p class='x'>line</p>", "bold next line"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("a<script>alert('x')</script>b<!-- hidden -->c", "a b c"),
        ("1 < 2 > 0, I <3 you", "1 < 2 > 0, I <3 you"),
        ("e\u0301", "é"),
        ("漢字 кириллица العربية", "漢字 кириллица العربية"),
        ("nul\x00\x1b", "nul"),
    ],
)
def test_a_string_is_cleaned(value: str | None, text: str | None) -> None:
    assert build_texts(items(c=pa.array([value], pa.string())), "{c}") == [text]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([5.0, 0.25, None, float("nan"), 1e20]), ["5", "0.25", None, None, "1e+20"]),
        (pa.array([1, None, -3], pa.int32()), ["1", None, "-3"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([["a", None, "b"], [], None, ["", " "], ["<i>c</i>"]]), ["a, b", None, None, None, "c"]),
        (pa.array([[["a", "b"], ["c"]], [[], None, ["d"]], None]), ["a, b, c", "d", None]),
        (pa.array([[1.0, 2.5], [None]]), ["1, 2.5", None]),
        (pa.array([["a", "b"], None], pa.list_(pa.string(), 2)), ["a, b", None]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ["x", None, "x"]),
        (pa.nulls(2), [None, None]),
        (pa.array([["a"], ["b", "c"], ["d"]], pa.large_list(pa.large_string())).slice(1), ["b, c", "d"]),
        (pa.chunked_array([["a"], ["b", None]]), ["a", "b", None]),
    ],
    ids=lambda value: str(value.type) if hasattr(value, "type") else "",
)
def test_types_of_columns(array: pa.Array, expected: list[str | None]) -> None:
    table = pa.table({"item_id": [str(i) for i in range(len(array))], "c": array})
    assert build_texts(table, "{c}") == expected


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{a}. {b}. {c}", "xyz", "x. y. z"),
        ("{a}. {b}. {c}", "x-z", "x. z"),
        ("{a}. {b}. {c}", "x--", "x"),
        ("{a}. {b}. {c}", "-y-", "y"),
        ("{a}. {b}. {c}", "--z", "z"),
        ("{a}. {b}. {c}", "---", None),
        ("{a} ({b}), {c}.", "xyz", "x (y), z."),
        ("{a} ({b}), {c}.", "x-z", "x, z."),
        ("{a} ({b}), {c}.", "xy-", "x (y)"),
        ("{a} ({b}), {c}.", "-yz", "(y), z."),
        ("Title: {a}. Brand: {b}", "xy-", "Title: x. Brand: y"),
        ("Title: {a}. Brand: {b}", "-y-", "Brand: y"),
        ("Title: {a}. Brand: {b}", "x--", "Title: x"),
        ("{{{a}}} {b}", "xy-", "{x} y"),
        ("{a}{a}", "x--", "xx"),
    ],
)
def test_nothing_is_left_of_empty_fields(template: str, row: str, text: str | None) -> None:
    columns = {name: [value if value != "-" else None] for name, value in zip("abc", row, strict=True)}
    table = items(**{name: pa.array(values, pa.string()) for name, values in columns.items()})
    assert build_texts(table, template) == [text]


def test_punctuation_of_the_content_stays() -> None:
    assert build_texts(items(a=["Wait... . what?!"], b=["x"]), "{a}. {b}") == ["Wait... . what?!. x"]


def test_very_long_text_is_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    table = items(a=["word " * 20_000, "short", "漢" * 100_000])
    with caplog.at_level(logging.WARNING):
        texts = build_texts(table, "{a}", max_chars=1000)
    assert [len(text or "") for text in texts] == [999, 5, 1000]  # a blank at the end goes
    assert "2 texts are longer than 1,000 characters" in caplog.text


def test_missing_column_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="'brand', which items lack; there are item_id, title"):
        build_texts(items(title=["x"]), "{title} {brand}")


@pytest.mark.parametrize(
    "template", ["{c.__class__}", "{c[0]}", "{c!r}", "{c:>10}", "{}", "{0}", "{c", "no field", "{c.x[1]}"]
)
def test_more_than_a_name_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        build_texts(items(c=["x"]), template)


def test_structs_are_refused() -> None:
    with pytest.raises(ValueError, match="struct"):
        build_texts(items(c=[{"a": 1}]), "{c}")


def test_no_items() -> None:
    assert build_texts(pa.table({"item_id": pa.array([], pa.string()), "c": pa.array([], pa.string())}), "{c}") == []


ITEMS = pa.table({"item_id": ["007", "42", "x"], "title": ["Bond", "Answer", "x"]})
CSV = 'sku,other,plot\n007,1,"0010, and\nmore"\n9,2,nobody\n42,3,null\n'


def plots(folder: Path, file: str, **settings: Any) -> list[str | None]:
    settings = {"item_id": "sku", "columns": ["plot"], **settings}
    plot: list[str | None] = join_file(ITEMS, folder, file, **settings)["plot"].to_pylist()
    return plot


@pytest.mark.parametrize("file", ["plots.csv", "plots.csv.gz", "PLOTS.CSV"])
def test_csv_stays_text(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    content = CSV.encode()
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    with caplog.at_level(logging.INFO):
        assert plots(tmp_path, file) == ["0010, and\nmore", None, None]
    assert f"2 of 3 items found in {file}" in caplog.text


def test_numbers_and_dates_of_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,plot,year\n007,0100,1999-01-02\n42,1e3,2000-01-01\n")
    texts = join_file(ITEMS, tmp_path, "a.csv", columns=["year", "plot"])
    assert texts.column_names == ["item_id", "title", "year", "plot"]
    assert texts["plot"].to_pylist() == ["0100", "1e3", None]
    assert texts["year"].to_pylist() == ["1999-01-02", "2000-01-01", None]


@pytest.mark.parametrize("file", ["plots.tsv", "plots.tsv.gz"])
def test_tsv_splits_at_tabs_and_does_not_quote(tmp_path: Path, file: str) -> None:
    content = b'sku\tplot\n007\t"Hello" he said, twice\n42\t"open\nx\tlast\n'
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    assert plots(tmp_path, file) == ['"Hello" he said, twice', '"open', "last"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([42, 10_000_000_001], pa.int64()),
        pa.array([42.0, 10_000_000_001.0, None]),
        pa.array(["42", "10000000001"]).dictionary_encode(),
    ],
    ids=lambda ids: str(ids.type),
)
def test_parquet_ids_become_text(tmp_path: Path, ids: pa.Array) -> None:
    table = pa.table({"sku": ids, "plot": ["a", "b", "c"][: len(ids)]})
    pq.write_table(table, tmp_path / "plots.parquet")
    items = pa.table({"item_id": ["10000000001", "42", "7"]})
    texts = join_file(items, tmp_path, "plots.parquet", item_id="sku", columns=["plot"])
    assert texts["plot"].to_pylist() == ["b", "a", None]


@pytest.mark.parametrize("file", ["plots.jsonl", "plots.jsonl.gz", "plots.json"])
def test_json_lines(tmp_path: Path, file: str) -> None:
    rows = [{"sku": "007", "plot": "2020-01-02", "tags": ["a"]}, {"sku": "42", "tags": ["b", "c"]}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    texts = join_file(ITEMS, tmp_path, file, item_id="sku", columns=["plot", "tags"])
    assert texts["plot"].to_pylist() == ["2020-01-02", None, None]
    assert texts["tags"].to_pylist() == [["a"], ["b", "c"], None]


def test_numbers_as_ids_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sku": 42, "plot": "p"}\n{"sku": 9007199254740993, "plot": "q"}\n')
    assert plots(tmp_path, "a.jsonl") == [None, "p", None]


def test_few_common_ids_are_warned_of_with_the_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = pa.table({"item_id": ["007", "042", "a"]})
    (tmp_path / "plots.csv").write_text("sku,plot\n7,p\n42,q\n a ,r\n")
    texts = join_file(items, tmp_path, "plots.csv", item_id="sku", columns=["plot"])
    assert texts["plot"].to_pylist() == [None, None, "r"]
    for part in (
        "1 of 3 items found",
        "are '007', '042'",
        "an item '7', '42'",
        "2 of 2 are the same without leading zeros",
    ):
        assert part in caplog.text


def test_decimals_are_ids_without_their_zeros(tmp_path: Path) -> None:
    ids = pa.array([Decimal("10.00"), Decimal("7.50")], pa.decimal128(10, 2))
    pq.write_table(pa.table({"sku": ids, "plot": ["a", "b"]}), tmp_path / "plots.parquet")
    items = pa.table({"item_id": ["10", "7.5"]})
    assert join_file(items, tmp_path, "plots.parquet", item_id="sku", columns=["plot"])["plot"].to_pylist() == [
        "a",
        "b",
    ]


def test_no_overlap_is_refused_with_ids_of_both(tmp_path: Path) -> None:
    (tmp_path / "plots.csv").write_text("sku,plot\n7,p\n8,q\n")
    with pytest.raises(ValueError, match=r"0 of 3 items .* plots.csv.*'sku' holds '7', '8'.*'007'.*`item_id`"):
        plots(tmp_path, "plots.csv", optional=True)
    nobody = ITEMS.slice(0, 0)
    assert join_file(nobody, tmp_path, "plots.csv", item_id="sku", columns=["plot"]).num_rows == 0


def test_absent_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert plots(tmp_path, "plots.csv", columns=["plot", "cast"], optional=True) == [None] * 3
    assert "plots.csv does not exist: texts are made without plot, cast" in caplog.text
    with pytest.raises(ValueError, match="'plots.csv', which is not in .*optional"):
        plots(tmp_path, "plots.csv")


@pytest.mark.parametrize("file", ["../plots.csv", "/etc/passwd", "link.csv"])
def test_files_outside_are_refused(tmp_path: Path, file: str) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (tmp_path / "plots.csv").write_text(CSV)
    (raw / "link.csv").symlink_to(tmp_path / "plots.csv")
    with pytest.raises(ValueError, match="outside"):
        plots(raw, file, optional=True)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_absent_columns_list_those_there_are(tmp_path: Path, kind: str) -> None:
    path, table = tmp_path / f"plots.{kind}", pa.table({"sku": ["x"], "story": ["s"]})
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        split = {"csv": "sku,story\nx,s\n", "tsv": "sku\tstory\nx\ts\n", "jsonl": '{"sku":"x","story":"s"}\n'}
        path.write_text(split[kind])
    with pytest.raises(ValueError, match=f"plots.{kind} has no column 'plot'; it has sku, story"):
        plots(tmp_path, path.name)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.xlsx", b"", "format of a.xlsx: name it .csv"),
        ("a", b"", "format of a:"),
        ("a.csv", b"", "cannot read a.csv as csv"),
        ("a.csv", "sku,plot\nx,é\n".encode("latin-1"), "cannot read a.csv as csv.*utf-8"),
        ("a.csv.gz", b"sku,plot\nx,y\n", "cannot read a.csv.gz as csv"),
        ("a.parquet", b"sku", "cannot read a.parquet as parquet"),
        ("a.jsonl", b"[1", "cannot read a.jsonl as jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        plots(tmp_path, file)


def test_words_for_null_are_no_text_of_an_item(tmp_path: Path) -> None:
    assert NULL_WORDS == files.NULL_WORDS
    words = ["", *NULL_WORDS, "nano"]
    (tmp_path / "a.csv").write_text("sku,plot\n" + "".join(f"{n},{word}\n" for n, word in enumerate(words)))
    items = pa.table({"item_id": [str(n) for n in range(len(words))]})
    joined = join_file(items, tmp_path, "a.csv", columns=["plot"], item_id="sku")
    assert joined["plot"].to_pylist() == [None] * (len(words) - 1) + ["nano"]


def test_columns_of_every_parquet_type_are_joined_or_refused(tmp_path: Path) -> None:
    items = pa.table({"item_id": ["1", "2"]})
    small = pa.array([1.0, 2.0], pa.float32()).cast(pa.float16())
    pq.write_table(pa.table({"sku": small, "plot": pa.array(["a", "b"], pa.string_view())}), tmp_path / "a.parquet")
    joined = join_file(items, tmp_path, "a.parquet", columns=["plot"], item_id="sku")
    assert joined["plot"].to_pylist() == ["a", "b"]
    for ids in ([[1], [2]], [{"id": 1}, {"id": 2}]):
        pq.write_table(pa.table({"sku": ids, "plot": ["a", "b"]}), tmp_path / "a.parquet")
        with pytest.raises(ValueError, match=r"a\.parquet: the column 'sku' is (list|struct).*no id; set `item_id`"):
            join_file(items, tmp_path, "a.parquet", columns=["plot"], item_id="sku")


def test_stand_ins_are_null_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    items = ITEMS.append_column("text", [["007", None, "x y"]]).append_column("brand", [["007", "42", "x"]])
    with caplog.at_level(logging.INFO):
        texts = clear_placeholder_texts(items)
    assert texts["title"].to_pylist() == ["Bond", "Answer", None]
    assert texts["text"].to_pylist() == [None, None, "x y"]
    assert texts["brand"].equals(items["brand"]) and texts.column_names == items.column_names
    assert "1 items have no title but their id" in caplog.text


def test_items_without_titles_or_with_numbers_for_titles_stay() -> None:
    for items in (pa.table({"item_id": ["1"]}), pa.table({"item_id": ["1"], "title": [1]})):
        assert clear_placeholder_texts(items).equals(items)


def test_rows_are_joined_by_id_in_the_order_of_items_and_the_first_of_repeated_ids_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.csv").write_text("item_id,plot\n42,first\n007,bond\n42,second\n")
    with caplog.at_level(logging.WARNING):
        assert plots(tmp_path, "a.csv", item_id="item_id") == ["bond", "first", None]
    assert "1 rows" in caplog.text


def test_a_column_that_items_have_already_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sku,title\n42,x\n")
    with pytest.raises(ValueError, match="column 'title'"):
        plots(tmp_path, "a.csv", columns=["title"])
