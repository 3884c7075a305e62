"""Tables of items and users: types of columns, ids, names that clash, HTML entities, rows per file."""

from __future__ import annotations

import json
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, log_tuples, rows


def test_repeated_ids_are_counted_in_a_warning(
    tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,s1,1\nu,s3,2\n")
    (tmp_path / "users.csv").write_text("user_id,name\nu,a\nv,b\nv,c\n")
    items, options = tmp_path / "items.csv", {"columns": MAPPING, "items": {}}
    items.write_text("item_id,title\ns3,first\ns1,one\ns3,second\ns3,third\ns3,\n,none\n,none\n")
    users = tmp_path / "users.csv"
    options["users"] = {}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=items, users=users)
    assert {row["item_id"]: row["title"] for row in rows(tables.items)} == {"s1": "one", "s3": "first"}
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"{items}: 2 rows left out, they have no item_id",
        f"{items}: 3 rows of items repeat an item_id, the first of each counts: s3",
        f"{users}: 1 rows of users repeat a user_id, the first of each counts: v",
    ]
    items.write_text("item_id,title\n" + "".join(f"s{n},x\n" for n in (9, 8, 7, 6, 5)) * 2)
    caplog.clear()
    reading("files", options, interactions=tmp_path / "log.csv", items=items)
    assert "5 rows of items repeat an item_id, the first of each counts: s9, s8, s7, …" in caplog.text


def test_column_names_are_quoted(tmp_path: Path, reading: Reading, con: Backend) -> None:
    con.raw_sql("CREATE TABLE other AS SELECT 1")
    evil = 'x" FROM other; DROP TABLE other; --'
    (tmp_path / "log.jsonl").write_text(json.dumps({evil: "u", "it'em": "i", "rowid": 7}) + "\n")
    columns = {"user_id": evil, "item_id": "it'em", "rating": "rowid"}
    assert log_tuples(reading("files", {"columns": columns}, interactions=tmp_path / "log.jsonl")) == [
        ("u", "i", None, 0)
    ]
    assert con.raw_sql("SELECT count(*) FROM other").fetchall() == [(1,)]


def test_columns_of_text_become_numbers_where_all_values_are(
    tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    columns = {
        "price": (["12.50", "-3", "NaN", ""], [12.5, -3.0, None, None]),
        "pieces": (["1", "20", " 3 ", "N/A"], [1, 20, 3, None]),
        "sale": (["True", "false", "NULL", "TRUE"], [True, False, None, True]),
        "zip": (["01067", "10115", "20095", "80331"], ["01067", "10115", "20095", "80331"]),
        "size": (["38", "40", "42", "XL"], ["38", "40", "42", "XL"]),
        "comma": (["1,50", "2,00", "3,10", "4,00"], ["1,50", "2,00", "3,10", "4,00"]),
        "hash": (["12345678901234567890", "2", "3", "4"], ["12345678901234567890", "2", "3", "4"]),
        "exact": (["9007199254740993", "2", "3", "4.5"], ["9007199254740993", "2", "3", "4.5"]),
        "huge": (["1e999", "2", "3", "4"], ["1e999", "2", "3", "4"]),
        "nothing": (["None", "", "NA", "<NA>"], [None] * 4),
        "title": (["1984", "2001", "NULL", "300"], ["1984", "2001", "i2", "300"]),
    }  # fmt: skip
    records = [{"item_id": f"i{n}"} | {name: texts[n] for name, (texts, _) in columns.items()} for n in range(4)]
    (tmp_path / "log.csv").write_text("who,what,when\nu,i1,1\n")
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, records)))
    pl.DataFrame(records).write_csv(tmp_path / "items.csv")
    for name in ("items.csv", "items.jsonl"):
        options = {"columns": MAPPING, "items": {}}
        tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / name)
        table = rows(tables.items)
        assert {name: [row[name] for row in table] for name in columns} == {
            name: values for name, (_, values) in columns.items()
        }
        summary = next(record.message for record in caplog.records if f"{name}: 4 items" in record.message)
        for part in ("price number (2 empty)", "sale boolean (1 empty)", "size text (4 values)", "nothing text (0 val"):
            assert part in summary


def test_columns_of_parquet_have_their_types_under_any_name(tmp_path: Path, reading: Reading) -> None:
    table = {
        "item_id": [1, 2],
        "code": ["1", "2"],
        "price": [1.5, 2.0],
        "tags": [["a", "b"], None],
        "word": ["NaN", ""],
    }
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.parquet"}
    values = list(zip(table["code"], table["price"], table["tags"], [None, None], strict=True))
    names = ("code", "price", "tags", "word")
    for suffix in ("", "_2"):
        items = {"columns": {name + suffix: name for name in names}}
        stored = rows(reading("files", {"columns": MAPPING, "items": items}, **files).items)
        assert [tuple(row[name + suffix] for name in names) for row in stored] == values


def test_the_configuration_decides_on_types(tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    (tmp_path / "items.csv").write_text("item_id,brand,code,stock,flag\n1,10,007,5,yes\n2,20,8,many,no\n")
    pq.write_table(
        pa.table({"item_id": [1, 2], "brand": [10, 20], "code": ["007", "8"], "stock": ["5", "many"], "flag": [1, 0]}),
        tmp_path / "items.parquet",
    )
    types = {"brand": "text", "code": "number", "stock": "number", "flag": "boolean"}
    for file in ("items.csv", "items.parquet"):
        caplog.clear()
        files = {"interactions": tmp_path / "log.csv", "items": tmp_path / file}
        table = rows(reading("files", {"columns": MAPPING, "items": {"types": types}}, **files).items)
        assert [(row["brand"], row["code"], row["stock"], row["flag"]) for row in table] == [
            ("10", 7, 5.0, True),
            ("20", 8, None, False),
        ]
        assert "1 of 2 values of stock are no number, such as 'many': they count as empty" in caplog.text
        for wrong, message in (
            ({"brnd": "text"}, "unknown column in `types` of .*'brnd'"),
            ({"brand": "int"}, "unknown type of the column brand .*'int'"),
            ({"item_id": "number"}, "item_id is always text"),
        ):
            with pytest.raises(ValueError, match=message):
                reading("files", {"columns": MAPPING, "items": {"types": wrong}}, **files)
    (tmp_path / "items.csv").write_text('item_id,price\n1,"1,50"\n2,"2,00"\n')
    with pytest.raises(ValueError, match="2 of 2 values of price are no number, such as '1,50'. Change `types`"):
        reading(
            "files",
            {"columns": MAPPING, "items": {"types": {"price": "number"}}},
            **files | {"items": tmp_path / "items.csv"},
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"types": "number"}, "types 'number' of a table are no mapping"),
        ({"null_words": "NA"}, "null_words 'NA' is no list of words"),
        ({"columns": {"title": 5}}, "5 is not a column name"),
        ({"columns": {"item_id": ["item_id", "price"]}}, "is not a column name"),
        ({"types": {"tags": "number"}}, "tags holds lists or records, no number"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value),
)
def test_options_of_a_table_that_cannot_be_are_refused(
    tmp_path: Path, reading: Reading, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    (tmp_path / "items.jsonl").write_text('{"item_id": 1, "price": 2, "tags": ["a"]}\n')
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.jsonl"}
    with pytest.raises(ValueError, match=message):
        reading("files", {"columns": MAPPING, "items": options}, **files)
    tables = reading("files", {"columns": MAPPING, "items": {"columns": {"title": None}}}, **files)
    assert [(row["title"], row["price"]) for row in rows(tables.items)] == [("1", 2)]


def test_many_columns_need_little_memory(tmp_path: Path, reading: Reading, con: Backend) -> None:
    con.raw_sql("SET memory_limit = '100MB'")
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    pl.DataFrame({"item_id": [1, 2], **{f"c{n}": [n, 5] for n in range(120)}}).write_csv(tmp_path / "items.csv")
    tables = reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv", items=tmp_path / "items.csv")
    assert [(row["c0"], row["c119"]) for row in rows(tables.items)] == [(0, 119), (5, 5)]


def test_rows_without_an_id_are_left_out(tmp_path: Path, reading: Reading, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,NA,1\n")
    (tmp_path / "items.csv").write_text("item_id,title\nNA,a\n  ,b\nnull,c\ns1,d\n")
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    tables = reading("files", {"columns": MAPPING}, **files)
    assert [row["item_id"] for row in rows(tables.items)] == ["s1"]
    assert "3 rows left out, they have no item_id" in caplog.text
    tables = reading("files", {"columns": MAPPING, "null_words": ["null"]}, **files)
    assert [row["item_id"] for row in rows(tables.items)] == ["NA", "s1"], "the null words of the log count"


@pytest.mark.parametrize("name", ["rowid", "id", "source", "problem", "place", "file", "user_id", "Title", "text"])
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_of_item_columns_do_not_clash(tmp_path: Path, reading: Reading, name: str, suffix: str) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    table = pl.DataFrame({"key": ["1", "2", "1"], "name": ["One", "Two", "again"], name: ["c", "b", "a"]})
    table.write_csv(tmp_path / "items.csv")
    table.write_parquet(tmp_path / "items.parquet")
    options = {"columns": MAPPING, "items": {"columns": {"item_id": "key", "title": "name"}}}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / f"items.{suffix}")
    expected = [{"item_id": "1", "title": "One", name: "c"}, {"item_id": "2", "title": "Two", name: "b"}]
    if name == "Title":  # SQL does not tell names apart by case; the mapped column counts
        expected = [{key: row[key] for key in ("item_id", "title")} for row in expected]
    assert rows(tables.items) == expected


def test_html_entities_of_titles_and_texts_are_decoded_once(tmp_path: Path, reading: Reading) -> None:
    title = "Bath &amp; Body&#39;s &lt;b&gt; &eacute; &amp;amp; AT&T"
    record = {"item_id": "a&amp;b", "title": title, "text": title, "image": "http://x/?a=1&copy=2"}
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    (tmp_path / "items.jsonl").write_text(json.dumps(record))
    options = {"columns": MAPPING, "items": {}}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / "items.jsonl")
    decoded = "Bath & Body's <b> \u00e9 &amp; AT&T"
    assert rows(tables.items) == [record | {"title": decoded, "text": decoded}]


def test_columns_of_nulls_and_of_records_do_not_stop_a_run(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    items = pa.table({
        "item_id": [1, 2], "nothing": pa.nulls(2), "tags": pa.array([[], None], pa.list_(pa.null())),
        "size": [{"cm": 3}, None], "prices": pa.array([[("eu", 1.5)], None], pa.map_(pa.string(), pa.float64())),
        "bytes": [b"\xff", b"\x00"], "title": pa.nulls(2),
    })  # fmt: skip
    pq.write_table(items, tmp_path / "items.parquet")
    options = {"columns": MAPPING, "items": {}}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / "items.parquet")
    table = rows(tables.items)
    assert [(row["item_id"], row["title"], row["nothing"]) for row in table] == [("1", "1", None), ("2", "2", None)]


VALUES = {
    "duration": (pa.array([timedelta(days=1)], pa.duration("us")), None),
    "time": (pa.array([time(1, 2)], pa.time64("us")), "01:02:00"),
    "date": (pa.array([date(2020, 1, 2)]), date(2020, 1, 2)),
    "zone": (pa.array([datetime(2020, 1, 2)], pa.timestamp("us", "Europe/Berlin")), None),
    "zone of pandas": (pa.array([datetime(2020, 1, 2)], pa.timestamp("ns", "Asia/Tokyo")), datetime(2020, 1, 2)),
    "dictionary": (pa.array(["a"]).dictionary_encode(), "a"),
    "vector": (pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)), [1.0, 2.0]),
    "list of dates": (pa.array([[date(2020, 1, 2)]]), [date(2020, 1, 2)]),
    "list of times": (pa.array([[time(1, 2)]], pa.list_(pa.time64("us"))), ["01:02:00"]),
    "unsigned": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
}


@pytest.mark.parametrize(("values", "expected"), VALUES.values(), ids=VALUES)
def test_columns_of_every_type_can_be_stored(tmp_path: Path, reading: Reading, values: pa.Array, expected: Any) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    pq.write_table(pa.table({"item_id": ["1"], "other": values}), tmp_path / "items.parquet")
    tables = reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv", items=tmp_path / "items.parquet")
    assert tables.items is not None
    stored = tables.items.to_polars()["other"][0]
    assert expected is None or (stored.to_list() if isinstance(stored, pl.Series) else stored) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (["http://x/1.jpg", "http://x/2.jpg"], ["http://x/1.jpg", "http://x/2.jpg"]),
        ([["http://x/1.jpg"], []], ["http://x/1.jpg"]),
        ("a.jpg", "a.jpg"),
    ],
)
def test_lists_of_images_stay_lists(tmp_path: Path, reading: Reading, image: object, expected: object) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    pq.write_table(pa.table({"item_id": ["1"], "urls": [image]}), tmp_path / "items.parquet")
    (tmp_path / "items.jsonl").write_text(json.dumps({"item_id": "1", "urls": image}))
    options = {"columns": MAPPING, "items": {"columns": {"image": "urls"}}}
    for name in ("items.parquet", "items.jsonl"):
        tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / name)
        value = rows(tables.items)[0]["image"]
        assert value == expected or (name, image) == ("items.jsonl", [["http://x/1.jpg"], []])
