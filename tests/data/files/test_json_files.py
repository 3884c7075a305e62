"""JSON of every layout: one text per value, all keys, and damage that stays in its row."""

from __future__ import annotations

import bz2
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import MAPPING, Reading, ReadLog, rows, write_gzip

from recpipe.data.files import json_files
from recpipe.data.files.json_files import typed_json_source

OPTIONS = {"columns": MAPPING}
EVENTS = [{"who": f"u{n % 3}", "what": n, "when": 1_500_000_000 + n} for n in range(9)]


def write_lines(path: Path, records: list[Any]) -> Path:
    """Write records or raw lines."""
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in records))
    return path


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (['1', '"1"', "1.0", "2"], ["1", "1", "1", "2"]),
        (["-0.0", "0", "-5", "1e2", "2.5"], ["0", "0", "-5", "100", "2.5"]),
        (['"1.0"', "1.0", "true", '"007"'], ["1.0", "1", "true", "007"]),
        (["9007199254740993", "18446744073709551615", "123456789012345678901234567890"], None),
    ],
)  # fmt: skip
def test_a_value_is_one_text_whatever_its_json_type(
    tmp_path: Path, read_log: ReadLog, values: list[str], expected: list[str] | None
) -> None:
    path = write_lines(tmp_path / "log.jsonl", [f'{{"who": "u", "what": {v}, "when": 1}}' for v in values])
    assert [row["item_id"] for row in read_log(OPTIONS, path)] == (expected or values)


def test_lists_objects_and_inexact_numbers_are_no_ids(tmp_path: Path, read_log: ReadLog) -> None:
    values = ['"a"', "1", '["a", "b"]', '{"b": 1}', "9007199254740993.0", "2.0", '"c"']
    path = write_lines(tmp_path / "log.jsonl", [f'{{"who": "u", "what": {v}, "when": 1}}' for v in values])
    log = read_log(OPTIONS, path)
    assert [row["item_id"] for row in log] == ["a", "1", None, None, None, "2", "c"]
    assert [bool(row["problem"]) for row in log] == [False, False, True, True, True, False, False]
    assert """'["a","b"]'""" in log[2]["problem"]


def test_mixed_columns_of_items_become_text(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what\n" + "".join(f"u,{n}\n" for n in range(1, 6)))
    items = [
        {"id": 1, "name": "Thing 1", "brand": None, "tags": ["x", "y"], "size": {"cm": 3}},
        {"id": "2", "name": ["Thing 2", "x"], "brand": None},
        {"id": 3.0, "name": 7, "brand": "Acme", "tags": [], "path": [["a", "b"], ["c"]]},
        {"id": 4, "name": [], "brand": "Acme"},
    ]
    options = {
        "columns": {"user_id": "who", "item_id": "what"},
        "items": {"columns": {"item_id": "id", "title": "name", "text": ["name", "brand"]}},
    }
    path = write_lines(tmp_path / "items.jsonl", items)
    table = rows(reading("files", options, interactions=tmp_path / "log.csv", items=path).items)
    assert [row["title"] for row in table] == ["Thing 1", "Thing 2, x", "7", "4"]
    assert [row["text"] for row in table] == ["Thing 1", "Thing 2, x", "7. Acme", "Acme"]
    assert [row["tags"] for row in table[:3]] == [["x", "y"], None, []]
    assert (table[0]["size"], table[2]["path"]) == ('{"cm":3}', "a, b, c")


def test_keys_count_whatever_the_record_they_first_stand_in(tmp_path: Path, read_log: ReadLog) -> None:
    lines = [{**event, f"rare{n % 300}": 1} for n in range(25_000) for event in EVENTS[:1]]
    path = write_lines(tmp_path / "log.jsonl", [*lines, {**EVENTS[1], "stars": 4}])
    log = read_log({"columns": {**MAPPING, "rating": "stars"}}, path)
    assert (len(log), log[0]["rating"], log[-1]["rating"]) == (25_001, None, 4.0)


@pytest.mark.parametrize("key", ["a.b", 'say "hi"', "it's", "a/b", "a~b", "back\\slash", "é", "*", "$", "[0]", "json"])
def test_any_key_can_be_a_column(tmp_path: Path, read_log: ReadLog, key: str) -> None:
    path = write_lines(tmp_path / "log.jsonl", [{"user": "u", key: [1], "": 2, "nul\0": 3}, {"user": "u", key: [2, 3]}])
    options = {"columns": {"user_id": "user", "item_id": key}, "sequence_per_row": True}
    assert [row["item_id"] for row in read_log(options, path)] == ["1", "2", "3"]


def test_lists_of_mixed_values(tmp_path: Path, read_log: ReadLog) -> None:
    lines = [
        '{"u": 1, "items": [1, "1", 1.0, true, "1.0"]}',
        '{"u": 2.0, "items": null}',
        '{"u": "2", "items": [-0.0]}',
    ]
    options = {"columns": {"user_id": "u", "item_id": "items"}, "sequence_per_row": True}
    log = read_log(options, write_lines(tmp_path / "log.jsonl", lines))
    events = [(row["user_id"], row["item_id"]) for row in log]
    assert events == [("1", "1"), ("1", "1"), ("1", "1"), ("1", "true"), ("1", "1.0"), ("2", None), ("2", "0")]


def test_keys_that_differ_in_case(tmp_path: Path, read_log: ReadLog, caplog: pytest.LogCaptureFixture) -> None:
    path = write_lines(tmp_path / "log.jsonl", [{"ID": f"event{n}", "id": "u1", "item": n} for n in range(3)])
    with caplog.at_level(logging.WARNING):
        assert {row["user_id"] for row in read_log({"columns": {"user_id": "id", "item_id": "item"}}, path)} == {"u1"}
    assert "'ID' is left out" in caplog.text
    with pytest.raises(ValueError, match="'ID'.*'id'.*only in case"):
        read_log({"columns": {"user_id": "id", "item_id": "ID"}}, path)


def test_too_many_keys_leave_those_that_are_mapped(
    tmp_path: Path, read_log: ReadLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MAX_KEYS", 10)
    path = write_lines(tmp_path / "log.jsonl", [{f"key{n}": 1, f"word{n}": 2} for n in range(50)] + EVENTS[:3])
    log = read_log(OPTIONS, path)
    assert [row["item_id"] for row in log] == [None] * 50 + ["0", "1", "2"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        json.dumps(EVENTS),
        json.dumps(EVENTS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, EVENTS)) + "\n]\n",
        "\n".join(json.dumps(event, indent=4) for event in EVENTS),
        "\r\n".join(map(json.dumps, EVENTS)),
        "\n\n  " + "\n \n".join(map(json.dumps, EVENTS)),
    ],
    ids=["array", "indented array", "array of lines", "indented objects", "lines", "blank lines"],
)
def test_layouts(tmp_path: Path, read_log: ReadLog, text: str, bom: bool, packed: bool) -> None:
    path = tmp_path / "log.json"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    if packed:
        path = write_gzip(tmp_path / "log.json.gz", [path.read_text()])
    log = read_log(OPTIONS, path)
    assert [(row["user_id"], row["item_id"], row["timestamp"], row["problem"]) for row in log] == [
        (event["who"], str(event["what"]), event["when"], None) for event in EVENTS
    ]


def test_files_of_several_layouts_keep_their_order(tmp_path: Path, read_log: ReadLog) -> None:
    parts = [EVENTS[:3], EVENTS[3:6], EVENTS[6:]]
    paths = [tmp_path / f"part{n}.json" for n in range(3)]
    for n, (path, part) in enumerate(zip(paths, parts, strict=True)):
        path.write_text(json.dumps(part) if n == 1 else "\n".join(map(json.dumps, part)))
    assert [row["item_id"] for row in read_log(OPTIONS, paths)] == [str(event["what"]) for event in EVENTS]


COLUMNS = {name: {str(n): event[name] for n, event in enumerate(EVENTS)} for name in EVENTS[0]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COLUMNS, r"orient='records', lines=True"),
        ({str(n): event for n, event in enumerate(EVENTS)}, r"orient='records', lines=True"),
        ({"columns": ["who"], "index": [0], "data": [["u"]]}, r"orient='records', lines=True"),
        ({"who": {str(n): "u" for n in range(100_000)}}, r"orient='records', lines=True"),
        ({"count": 9, "data": EVENTS}, r"no column 'who'; found: count, data.*in its list 'data'"),
        ({"data": [{**EVENTS[0], "text": "x" * 1_100_000}]}, r"in its list 'data'"),
    ],
    ids=["columns", "index", "split", "long columns", "wrapper", "long wrapper"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_objects_that_are_no_records_are_refused_with_advice(
    tmp_path: Path, read_log: ReadLog, content: object, message: str, indent: int | None
) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(content, indent=indent))
    with pytest.raises(ValueError, match=message):
        read_log(OPTIONS, path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'["u", 1]\n["u", 2]\n', "no JSON objects.*begins with.*one record per line"),
        ('{"who": "u"}\n'.encode("utf-16"), "no JSON objects.*encoding: "),
        (b"[]", "no column 'who'; found: none"),
    ],
)
def test_files_without_objects_are_refused_with_advice(
    tmp_path: Path, read_log: ReadLog, content: bytes, message: str
) -> None:
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_log(OPTIONS, tmp_path / "log.jsonl")


def test_damage_of_a_line_stays_in_its_row(tmp_path: Path, read_log: ReadLog) -> None:
    bad = [
        b'{"who": "u", "what": ', b"[1, 2]", b"5", b'"text"', b"null", b"\xff\xfe", b"\0\0",
        b'{"who": "u"} {"who": "u"}',
        b'{"who": "u", "what": 1}}', b"[" * 5000, b"{oops",
    ]  # fmt: skip
    good = [json.dumps(event).encode() for event in EVENTS] + [
        b'{"who": "u", "what": "deep", "when": 1, "more": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"who": "u", "what": "first", "what": "second", "when": 1}',
    ]
    lines = [line for pair in zip(good, bad, strict=True) for line in pair]
    (tmp_path / "log.jsonl").write_bytes(b"\n".join(lines))
    log = read_log(OPTIONS, tmp_path / "log.jsonl")
    assert [row["item_id"] for row in log[::2]] == [str(event["what"]) for event in EVENTS] + ["deep", "first"]
    assert [row["problem"] for row in log] == [None, "not a JSON object"] * len(good)


def test_an_overlong_line_is_a_bad_row(tmp_path: Path, read_log: ReadLog) -> None:
    lines = [json.dumps(EVENTS[0]), json.dumps({**EVENTS[1], "who": "x" * (34 << 20)}), json.dumps(EVENTS[2])]
    log = read_log(OPTIONS, write_lines(tmp_path / "log.jsonl", lines))
    assert [row["problem"] for row in log] == [None, "not a JSON object", None]


@pytest.mark.parametrize("end", [-30, -1, json.dumps(EVENTS).index(", {") + 2])
def test_an_array_that_is_cut_short_is_refused_by_name(tmp_path: Path, read_log: ReadLog, end: int) -> None:
    (tmp_path / "log.json").write_text(json.dumps(EVENTS)[:end])
    with pytest.raises(ValueError, match=r"cannot read .*log\.json"):
        read_log(OPTIONS, tmp_path / "log.json")


def test_types_of_keys(tmp_path: Path, con: Any) -> None:
    path = write_lines(
        tmp_path / "x.jsonl",
        [
            {"text": "a", "empty": None, "flat": ["a", 1, None], "nested": [[1]], "mixed": 1, "record": {}},
            {"text": 1, "flat": None, "mixed": [1], "objects": [{"a": 1}], "float": [1.0]},
        ],
    )
    assert typed_json_source(con, [str(path)]).types == {
        "text": "VARCHAR", "empty": "VARCHAR", "flat": "VARCHAR[]", "nested": "JSON", "mixed": "JSON", "record": "JSON",
        "objects": "JSON", "float": "VARCHAR[]",
    }  # fmt: skip


@pytest.mark.parametrize("damage", ["truncated", "other keys"])
def test_damaged_json_of_amazon_is_refused(tmp_path: Path, reading: Reading, damage: str) -> None:
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    path = write_gzip(tmp_path / "r.json.gz", [{key: f"{key}{n}" for key in keys} for n in range(3000)])
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-5000])
    else:
        write_gzip(path, [{"a": 1}])
    with pytest.raises(ValueError, match="found: a" if damage == "other keys" else r"r\.json\.gz.*cut short"):
        reading("amazon", {"edition": 2014}, interactions=path)


def test_encodings_and_compression_by_content(tmp_path: Path, read_log: ReadLog) -> None:
    text = "\n".join(json.dumps({**event, "what": f"é{event['what']}"}, ensure_ascii=False) for event in EVENTS)
    (tmp_path / "utf16.jsonl").write_text(text, encoding="utf-16")
    (tmp_path / "packed.jsonl").write_bytes(bz2.compress(text.encode("latin-1")))
    for name, encoding in (("utf16.jsonl", "utf-16"), ("packed.jsonl", "latin1")):
        log = read_log({**OPTIONS, "encoding": encoding}, tmp_path / name)
        assert [row["item_id"] for row in log] == [f"é{event['what']}" for event in EVENTS]
