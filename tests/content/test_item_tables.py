"""Further columns of items from files of every format, and titles that are only ids."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recpipe.content.item_texts import clear_placeholder_texts, with_columns

ITEMS = pa.table({"item_id": ["007", "42", "x"], "title": ["Bond", "Answer", "x"]})
CSV = 'sku,other,plot\n007,1,"0010, and\nmore"\n9,2,nobody\n42,3,null\n'


def plots(folder: Path, file: str, **more: Any) -> list[str | None]:
    settings = {"item_id": "sku", "columns": ["plot"], **more}
    plot: list[str | None] = with_columns(ITEMS, folder, file, **settings)["plot"].to_pylist()
    return plot


@pytest.mark.parametrize("file", ["plots.csv", "plots.csv.gz", "PLOTS.CSV"])
def test_csv_stays_text(tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture) -> None:
    content = CSV.encode()
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    with caplog.at_level(logging.INFO):
        assert plots(tmp_path, file) == ["0010, and\nmore", "null", None]
    assert f"2 of 3 items found in {file}" in caplog.text


def test_numbers_and_dates_of_csv_stay_as_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("item_id,plot,year\n007,0100,1999-01-02\n42,1e3,2000-01-01\n")
    made = with_columns(ITEMS, tmp_path, "a.csv", columns=["year", "plot"])
    assert made.column_names == ["item_id", "title", "year", "plot"]
    assert made["plot"].to_pylist() == ["0100", "1e3", None]
    assert made["year"].to_pylist() == ["1999-01-02", "2000-01-01", None]


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
    made = with_columns(items, tmp_path, "plots.parquet", item_id="sku", columns=["plot"])
    assert made["plot"].to_pylist() == ["b", "a", None]


@pytest.mark.parametrize("file", ["plots.jsonl", "plots.jsonl.gz", "plots.json"])
def test_json_lines(tmp_path: Path, file: str) -> None:
    rows = [{"sku": "007", "plot": "2020-01-02", "tags": ["a"]}, {"sku": "42", "tags": ["b", "c"]}]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / file).write_bytes(gzip.compress(content) if file.endswith(".gz") else content)
    made = with_columns(ITEMS, tmp_path, file, item_id="sku", columns=["plot", "tags"])
    assert made["plot"].to_pylist() == ["2020-01-02", None, None]
    assert made["tags"].to_pylist() == [["a"], ["b", "c"], None]


def test_numbers_as_ids_in_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sku": 42, "plot": "p"}\n{"sku": 9007199254740993, "plot": "q"}\n')
    assert plots(tmp_path, "a.jsonl") == [None, "p", None]


def test_no_overlap_is_refused_with_ids_of_both(tmp_path: Path) -> None:
    (tmp_path / "plots.csv").write_text("sku,plot\n7,p\n8,q\n")
    with pytest.raises(
        ValueError, match=r"0 of 3 items .* plots.csv.*'sku' holds '7', '8'.*'007'.*`item_id`"
    ):
        plots(tmp_path, "plots.csv", optional=True)
    nobody = ITEMS.slice(0, 0)
    assert with_columns(nobody, tmp_path, "plots.csv", item_id="sku", columns=["plot"]).num_rows == 0


def test_absent_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert plots(tmp_path, "plots.csv", columns=["plot", "cast"], optional=True) == [None] * 3
    assert "plots.csv is not there: texts are made without plot, cast" in caplog.text
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


def test_stand_ins_are_null_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    items = ITEMS.append_column("text", [["007", None, "x y"]]).append_column("brand", [["007", "42", "x"]])
    with caplog.at_level(logging.INFO):
        made = clear_placeholder_texts(items)
    assert made["title"].to_pylist() == ["Bond", "Answer", None]
    assert made["text"].to_pylist() == [None, None, "x y"]
    assert made["brand"].equals(items["brand"]) and made.column_names == items.column_names
    assert "1 items have no title but their id" in caplog.text


def test_items_without_titles_or_with_numbers_for_titles_stay() -> None:
    for items in (pa.table({"item_id": ["1"]}), pa.table({"item_id": ["1"], "title": [1]})):
        assert clear_placeholder_texts(items).equals(items)
