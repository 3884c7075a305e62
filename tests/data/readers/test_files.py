"""The generic reader: formats, compression, patterns, mappings, sequences per row, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, ReadLog, log_tuples, rows

EVENTS = [("u1", "a,1", 10), ("u2", "b", 20), ("u1", "c", 30)]


EXPECTED = [("u1", "a,1", 10, 0), ("u2", "b", 20, 1), ("u1", "c", 30, 2)]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "csv.zst", "tsv", "parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
def test_formats(tmp_path: Path, reading: Reading, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    table = pa.table(dict(zip(("who", "what", "when"), map(list, zip(*EVENTS, strict=True)), strict=True)))
    copy = duckdb.connect()
    copy.register("events", table)
    kind = suffix.split(".", maxsplit=1)[0]
    how = {
        "csv": "FORMAT csv, HEADER",
        "tsv": "FORMAT csv, HEADER, DELIMITER '\t'",
        "parquet": "FORMAT parquet",
        "jsonl": "FORMAT json",
    }
    packed = {"gz": ", COMPRESSION gzip", "zst": ", COMPRESSION zstd"}.get(suffix.rsplit(".", maxsplit=1)[-1], "")
    copy.execute(f"COPY events TO '{path}' ({how[kind]}{packed})")
    assert log_tuples(reading("files", {"columns": MAPPING}, interactions=path)) == EXPECTED


def test_several_files_are_read_in_the_order_of_their_names(tmp_path: Path, read_log: ReadLog, con: Backend) -> None:
    con.raw_sql("SET preserve_insertion_order = false")
    paths = [tmp_path / f"part-{number}.csv" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_text("who,what,when\n" + "".join(f"u,{number}-{line},1\n" for line in range(3000)))
    log = read_log({"columns": MAPPING}, paths)
    assert [row["item_id"] for row in log] == [f"{number}-{line}" for number in range(5) for line in range(3000)]
    assert con.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall() == [(False,)]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"who;what;when\nu;i;1\n", {"columns": MAPPING}, "one column, 'who;what;when', when split at ','"),
        (
            b"u;i;1\nu;j;2\n",
            {"columns": MAPPING, "header": False, "names": ["who", "what", "when"]},
            "Is the delimiter right",
        ),
        (b"who,what\nu,i\n", {"columns": MAPPING}, "no column 'when'; found: who, what"),
        (b"who,what,when\nu,i,1\n", {"columns": {"item_id": "what"}}, "no column is mapped to user_id"),
        (b"who,what,when\nu,i,1\n", {"columns": {"user": "who"}}, "unknown column .*'user'"),
        (b"who,what,when\nu,i,1\n", {"columns": MAPPING, "timestamp": "minutes"}, "unknown timestamp unit 'minutes'"),
        (b"who,what,when\nu,i,1\n", {"colums": MAPPING}, "unknown option of source files 'colums'"),
        (b"who,what,when\nu,i,1\n", {"columns": MAPPING, "format": "xlsx"}, "unknown format 'xlsx'"),
        (b"who,what,when\nu,caf\xe9,1\n", {"columns": MAPPING}, "encoding: cp1252"),
        (b"who,wh\xe9t,when\nu,i,1\n", {"columns": MAPPING}, "encoding: cp1252"),
        (b"", {"columns": MAPPING}, "is empty"),
        (b"who,who,when\n", {"columns": MAPPING}, "names a column twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_unreadable_files_say_what_to_change(
    tmp_path: Path, reading: Reading, content: bytes, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reading("files", options, interactions=tmp_path / "log.csv")


def test_json_values_are_read_as_text(tmp_path: Path, read_log: ReadLog) -> None:
    lines = [{"who": 1, "what": "i", "when": "2024-05-01T12:30:00+02:00"}] * 30_000
    lines += [{"who": "late", "what": "0x", "when": "2024-05-01T12:30:00-02:00"}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{oops\n[1]\n")
    options = {"columns": MAPPING, "timestamp": "iso"}
    log = read_log(options, tmp_path / "log.jsonl")
    assert (log[0]["user_id"], log[0]["timestamp"]) == ("1", 1714559400)
    late = log[30_000]
    assert (late["user_id"], late["item_id"], late["timestamp"]) == ("late", "0x", 1714573800)
    assert [row["problem"] for row in log[30_001:]] == ["not a JSON object"] * 2
    assert all(row["problem"] is None for row in log[:30_001])


def test_items_and_users(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what\nu,1\nu,2\n")
    items = pa.table(
        {
            "sku": [1, 1, 3],
            "name": ["One", "again", "Three"],
            "tags": [["a", "b"], [], None],
            "path": [[["x", "y"], ["z"]], None, None],
            "colour": ["red", "blue", "green"],
        }
    )
    pq.write_table(items, tmp_path / "items.parquet")
    (tmp_path / "users.tsv").write_text("id\tcity\nu\tRome\n")
    options = {
        "columns": {"user_id": "who", "item_id": "what"},
        "items": {"columns": {"item_id": "sku", "title": "name", "text": ["name", "tags", "path"]}},
        "users": {"columns": {"user_id": "id"}},
    }
    files = {"interactions": "log.csv", "items": "items.parquet", "users": "users.tsv"}
    tables = reading("files", options, **{role: tmp_path / name for role, name in files.items()})
    by_item = {row["item_id"]: row for row in rows(tables.items)}
    assert set(by_item) == {"1", "3"}
    assert by_item["1"] == {"item_id": "1", "title": "One", "text": "One. a, b. x, y, z", "tags": ["a", "b"],
                          "path": [["x", "y"], ["z"]], "colour": "red"}  # fmt: skip
    assert by_item["3"]["text"] == "Three"
    assert rows(tables.users) == [{"user_id": "u", "city": "Rome"}]


def test_a_column_with_a_separator_becomes_a_list(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what\nu,1\n")
    (tmp_path / "films.csv").write_text(
        "what,name,kinds,tags\n1,A,War|Drama,x; y ;\n2,B,Drama,NULL\n3,C,,a|b\n4,D,|(none)|War,;\n"
    )
    (tmp_path / "users.csv").write_text("who,likes\nu,tea+jam\n")
    options = {
        "columns": {"user_id": "who", "item_id": "what"},
        "items": {
            "columns": {"item_id": "what", "title": "name", "genres": "kinds"},
            "lists": {"genres": "|", "tags": ";"},
            "null_words": ["NULL", "(none)"],
        },
        "users": {"columns": {"user_id": "who"}, "lists": {"likes": "+"}},
    }
    files = {"interactions": "log.csv", "items": "films.csv", "users": "users.csv"}
    tables = reading("files", options, **{role: tmp_path / name for role, name in files.items()})
    assert [(row["title"], row["genres"], row["tags"]) for row in rows(tables.items)] == [
        ("A", ["War", "Drama"], ["x", "y"]), ("B", ["Drama"], None), ("C", None, ["a|b"]), ("D", ["War"], None),
    ]  # fmt: skip
    assert rows(tables.users) == [{"user_id": "u", "likes": ["tea", "jam"]}]


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({"lists": "kinds"}, "no mapping: {genres: '|'}"),
        ({"lists": {"kinds": ""}}, "names no separator, as {kinds: '|'} does"),
        ({"lists": {"kind": "|"}}, r"unknown column in `lists` of .* 'kind' \(did you mean 'kinds'\?\)"),
        ({"lists": {"title": "|"}, "columns": {"item_id": "item_id", "title": "kinds"}}, "title is one text, no list"),
        ({"lists": {"kinds": "|"}, "types": {"kinds": "text"}}, "kinds is in `lists` and in `types`"),
    ],
)
def test_lists_that_cannot_be_are_refused(
    tmp_path: Path, reading: Reading, items: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_text("who,what\nu,1\n")
    (tmp_path / "films.csv").write_text("item_id,kinds\n1,War|Drama\n")
    options = {"columns": {"user_id": "who", "item_id": "what"}, "items": items}
    with pytest.raises(ValueError, match=message):
        reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / "films.csv")


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ('user,items\n7,"3 9 4"\n8,"9"\n', {"sequence_per_row": True}),
        ('user,items\n7,"[3, 9, 4]"\n8,[9]\n', {"sequence_per_row": True}),
        ("user,items\n7,\"['3', '9', '4']\"\n8,['9']\n", {"sequence_per_row": True}),
        ("user,items\n7,3|9|4\n8,9\n", {"sequence_per_row": {"delimiter": "|"}}),
        ("7 3 9 4\n8 9\n", {"sequence_per_row": True, "format": "lines", "delimiter": " ", "columns": {}}),
    ],
)
def test_a_sequence_per_row(tmp_path: Path, reading: Reading, content: str, options: dict[str, Any]) -> None:
    (tmp_path / "log.csv").write_text(content)
    mapping = {"columns": {"user_id": "user", "item_id": "items"}}
    assert log_tuples(reading("files", mapping | options, interactions=tmp_path / "log.csv")) == [
        ("7", "3", None, 0), ("7", "9", None, 1), ("7", "4", None, 2), ("8", "9", None, 3),
    ]  # fmt: skip


AWKWARD = ["a,b", "Toy Story", "[x]", "O'Brien", 'say "so"', "back\\slash", "(1)", "3"]


@pytest.mark.parametrize(
    "text",
    [json.dumps(AWKWARD), repr(AWKWARD), repr(tuple(AWKWARD)), repr(AWKWARD)[1:-1], repr(AWKWARD).replace("'3'", "3")],
    ids=["JSON", "Python list", "Python tuple", "no brackets", "a number among them"],
)
def test_quoted_items_keep_their_spaces_commas_and_brackets(tmp_path: Path, read_log: ReadLog, text: str) -> None:
    pq.write_table(pa.table({"user": ["7", "8"], "items": [text, "3 9"]}), tmp_path / "log.parquet")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    log = read_log(options, tmp_path / "log.parquet")
    assert [row["item_id"] for row in log] == [*AWKWARD, "3", "9"]
    assert {row["problem"] for row in log} == {None}


@pytest.mark.parametrize("text", ["['a, 'b']", '["a", "b', "O'Brien 3", '{"a": 1}', '[["a"], "b"]', "['a'"])
def test_text_that_is_no_list_is_a_problem(tmp_path: Path, read_log: ReadLog, text: str) -> None:
    pq.write_table(pa.table({"user": ["7", "8"], "items": [text, "3"]}), tmp_path / "log.parquet")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    log = read_log(options, tmp_path / "log.parquet")
    assert [(row["user_id"], row["item_id"], row["problem"]) for row in log] == [
        ("7", None, f"not a list of values: '{text}'"), ("8", "3", None),
    ]  # fmt: skip


def test_sequences_in_lists_with_times(tmp_path: Path, read_log: ReadLog) -> None:
    table = pa.table({"items": [[3, 9], [4], [], [5, 6]], "times": [[1, 2], [3], [], [4]]})
    pq.write_table(table, tmp_path / "log.parquet")
    options = {"columns": {"item_id": "items", "timestamp": "times"}, "sequence_per_row": True}
    log = read_log(options, tmp_path / "log.parquet")
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in log if not row["problem"]] == [
        ("1", "3", 1), ("1", "9", 2), ("2", "4", 3),
    ]  # fmt: skip
    assert [row["problem"] for row in log if row["problem"]] == [
        "empty sequence",
        "not as many times as items in the row",
    ]


def test_real_amazon_beauty(shared: Path, reading: Reading) -> None:
    folder = shared / "amazon-beauty"
    options = {"columns": {"user_id": "user_id", "item_id": "item_id", "order": "pos"},
               "items": {"columns": {"item_id": "item_id", "text": ["title", "categories"]}}}  # fmt: skip
    tables = reading("files", options, interactions=folder / "interactions.parquet", items=folder / "items.parquet")
    log = tables.interactions
    assert (log.user_id.nunique().execute(), log.item_id.nunique().execute(), log.count().execute()) == (
        22_363,
        12_101,
        198_502,
    )
    assert log.problem.count().execute() == 0
    items = rows(tables.items)
    assert len(items) == 12_101 and all(item["title"] and item["text"] for item in items)
    raw = pq.read_table(folder / "interactions.parquet").to_pylist()
    assert [row["pos"] for row in raw if row["user_id"] == 17] == [
        row["order"] for row in rows(log) if row["user_id"] == "17"
    ]


def test_event_types_sessions_and_extra_columns_are_read(tmp_path: Path, reading: Reading, con: Backend) -> None:
    table = pa.table(
        {
            "u": ["a", "a#1", "a", " "], "s": ["1", "2", "1#2", "3"], "i": ["x", "y", "z", "w"],
            "type": [" view", "cart", "NULL", "view"], "qty": [1.5, float("nan"), 2.0, 1.0],
            "note": ["1", "NULL", "c", "d"],
        }
    )  # fmt: skip
    pq.write_table(table, tmp_path / "log.parquet")
    options = {
        "columns": {"user_id": "u", "session_id": "s", "item_id": "i", "event": "type"},
        "extra_columns": {"quantity": "qty", "remark": "note"},
    }
    log = rows(reading("files", options, interactions=tmp_path / "log.parquet").interactions)
    assert [row["user_id"] for row in log] == ["a#1", "a#1#2", "a#1%232", None]
    assert [row["owner"] for row in log] == ["a", "a#1", "a", None]
    assert [row["event"] for row in log] == ["view", "cart", "NULL", "view"]
    assert [row["problem"] for row in log] == [None, None, "event is empty", None]
    assert [row["quantity"] for row in log] == [1.5, None, 2.0, 1.0] and [row["remark"] for row in log[:2]] == [
        "1",
        None,
    ]
    alone = {"columns": {"session_id": "s", "item_id": "i"}}
    log = rows(reading("files", alone, interactions=tmp_path / "log.parquet").interactions)
    assert [row["user_id"] for row in log] == ["1", "2", "1#2", "3"] and "owner" not in log[0]
    for extra, message in (
        ({"rating": "qty"}, "a name of the log itself"),
        ({"n": "no"}, "no column 'no'.*`extra_col"),
    ):
        with pytest.raises(ValueError, match=message):
            reading("files", options | {"extra_columns": extra}, interactions=tmp_path / "log.parquet")


def test_a_row_with_a_sequence_may_be_a_session_and_have_event_types(tmp_path: Path, read_log: ReadLog) -> None:
    path = tmp_path / "log.csv"
    path.write_text('visit,items,types\nv1,"3 9","view cart"\nv2,4,view\n')
    options = {"columns": {"session_id": "visit", "item_id": "items", "event": "types"}, "sequence_per_row": True}
    log = [(row["user_id"], row["item_id"], row["event"]) for row in read_log(options, path)]
    assert log == [("v1", "3", "view"), ("v1", "9", "cart"), ("v2", "4", "view")]
    with pytest.raises(ValueError, match="user_id or session_id, not both"):
        read_log(options | {"columns": options["columns"] | {"user_id": "visit"}}, path)
    with pytest.raises(ValueError, match="extra_columns do not go with sequence_per_row"):
        read_log(options | {"extra_columns": {"a": "visit"}}, path)


@pytest.mark.parametrize(
    "text",
    ["[3, [4]]", "{3, 4}", "[3, 4", "array([3, 4])", "[np.int64(3), np.int64(4)]", "[Decimal('3')]", '[{"id": 3}]'],
)
def test_text_that_is_no_flat_list_is_one_bad_row(tmp_path: Path, read_log: ReadLog, text: str) -> None:
    (tmp_path / "log.tsv").write_text(f"user\titems\n7\t{text}\n8\t3 4\n")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    assert [(row["item_id"], row["problem"]) for row in read_log(options, tmp_path / "log.tsv")] == [
        (None, f"not a list of values: '{text}'"), ("3", None), ("4", None),
    ]  # fmt: skip


def test_sequences_of_json_may_be_lists_or_text(tmp_path: Path, read_log: ReadLog) -> None:
    values = ['[1, "2", 3.0]', '"1 2 3"', '"[1, 2, 3]"', '"1,2,3"', "7"]
    (tmp_path / "log.jsonl").write_text("".join(f'{{"u": "a", "i": {value}}}\n' for value in values))
    log = read_log({"columns": {"user_id": "u", "item_id": "i"}, "sequence_per_row": True}, tmp_path / "log.jsonl")
    assert [row["item_id"] for row in log] == [*"123" * 4, "7"]


TIME = 1_714_557_600_000
SESSIONS = [
    {"session": 1, "events": [{"aid": 2**60 + 1, "ts": TIME, "type": "buy"}, {"aid": 2, "ts": TIME, "type": "cart"}]},
    {"session": 2, "events": [{"aid": 3, "ts": TIME, "type": "buy"}]},
]
FIELDS = {"session_id": "session", "item_id": "events.aid", "timestamp": "events.ts", "event": "events.type"}


@pytest.mark.parametrize("suffix", ["jsonl", "json", "parquet"])
def test_a_sequence_may_be_a_list_of_records(tmp_path: Path, read_log: ReadLog, suffix: str) -> None:
    path = tmp_path / f"log.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.Table.from_pylist(SESSIONS), path)
    else:
        path.write_text("\n".join(map(json.dumps, SESSIONS)) if suffix == "jsonl" else json.dumps(SESSIONS, indent=1))
    log = read_log({"columns": FIELDS, "timestamp": "ms", "sequence_per_row": True}, path)
    assert {(row["timestamp"], row["problem"]) for row in log} == {(TIME // 1000, None)}
    assert [(row["user_id"], row["item_id"], row["event"]) for row in log] == [
        ("1", str(2**60 + 1), "buy"), ("1", "2", "cart"), ("2", "3", "buy"),
    ]  # fmt: skip


def test_fields_of_records_are_columns(tmp_path: Path, reading: Reading) -> None:
    """A record in place of the id is no id; neither is a field that holds one."""
    (tmp_path / "log.jsonl").write_text(
        '{"user": {"id": 7.0, "a.b": 1}, "_id": {"$oid": "507f"}}\n{"user": {"id": {}}, "_id": {"$oid": "5080"}}\n'
    )
    (tmp_path / "items.jsonl").write_text(
        '{"id": "507f", "meta": {"name": "Pan"}, "images": [{"url": "a"}, {"url": "b"}]}'
    )
    options = {
        "columns": {"user_id": "user.id", "item_id": "_id.$oid"},
        "items": {"columns": {"item_id": "id", "title": "meta.name", "image": "images.url"}},
    }
    files = {"interactions": tmp_path / "log.jsonl", "items": tmp_path / "items.jsonl"}
    tables = reading("files", options, **files)
    assert [(row["user_id"], row["item_id"], bool(row["problem"])) for row in rows(tables.interactions)] == [
        ("7", "507f", False), (None, "5080", True),
    ]  # fmt: skip
    (item,) = rows(tables.items)
    assert (item["item_id"], item["title"], item["image"]) == ("507f", "Pan", ["a", "b"])
    with pytest.raises(ValueError, match=r"'_id' is of lists or records, no id.*a field of it, such as _id\.\$oid"):
        reading("files", {"columns": {"user_id": "user.id", "item_id": "_id"}}, interactions=files["interactions"])
