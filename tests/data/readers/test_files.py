"""The generic reader: formats, compressions, globs, mappings, time units, whole sequences per row, and
input gone bad.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ibis.backends.duckdb import Backend
from tests.data.conftest import Reading, rows

from recpipe.data.interactions import ingest
from recpipe.data.readers import read, reader_names

MAPPING = {"user_id": "who", "item_id": "what", "timestamp": "when"}
EVENTS = [("u1", "a,1", 10), ("u2", "b", 20), ("u1", "c", 30)]
EXPECTED = [("u1", "a,1", 10, 0), ("u2", "b", 20, 1), ("u1", "c", 30, 2)]


def _log(tables: Any) -> list[tuple[Any, ...]]:
    return [
        (row["user_id"], row["item_id"], row["timestamp"], row["order"]) for row in rows(tables.interactions)
    ]


@pytest.mark.parametrize(
    "suffix", ["csv", "csv.gz", "csv.zst", "tsv", "parquet", "jsonl", "jsonl.gz", "jsonl.zst"]
)
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
    packed = {"gz": ", COMPRESSION gzip", "zst": ", COMPRESSION zstd"}.get(
        suffix.rsplit(".", maxsplit=1)[-1], ""
    )
    copy.execute(f"COPY events TO '{path}' ({how[kind]}{packed})")
    assert _log(reading("files", {"columns": MAPPING}, interactions=path)) == EXPECTED


def test_many_files_in_the_order_of_their_names_whatever_the_connection_says(
    tmp_path: Path, reading: Reading, con: Backend
) -> None:
    con.raw_sql("SET preserve_insertion_order = false")
    paths = [tmp_path / f"part-{number}.csv" for number in range(5)]
    for number, path in enumerate(paths):
        path.write_text("who,what,when\n" + "".join(f"u,{number}-{line},1\n" for line in range(3000)))
    log = rows(reading("files", {"columns": MAPPING}, interactions=paths).interactions)
    assert [row["item_id"] for row in log] == [
        f"{number}-{line}" for number in range(5) for line in range(3000)
    ]
    assert con.raw_sql("SELECT current_setting('preserve_insertion_order')").fetchall() == [(False,)]


@pytest.mark.parametrize(
    ("unit", "text", "expected"),
    [
        ("s", "1700000000", 1700000000),
        ("s", "1700000000.9", 1700000000),
        ("ms", "1700000000999", 1700000000),
        ("us", "1700000000999999", 1700000000),
        ("ns", "1700000000999999999", 1700000000),
        ("iso", "2023-11-14T22:13:20Z", 1700000000),
        ("iso", "2023-11-15 00:13:20.75+02:00", 1700000000),
        ("iso", "2023-11-14 17:13:20-05", 1700000000),
        ("iso", "2023-11-14 22:13:20", 1700000000),
        ("iso", "2023-11-14", 1699920000),
        ("%d.%m.%Y %H:%M", "14.11.2023 22:13", 1699999980),
    ],
)
def test_times(tmp_path: Path, reading: Reading, con: Backend, unit: str, text: str, expected: int) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    (tmp_path / "log.csv").write_text(f"who,what,when\nu,i,{text}\n")
    row = rows(
        reading(
            "files", {"columns": MAPPING, "timestamp": unit}, interactions=tmp_path / "log.csv"
        ).interactions
    )[0]
    assert (row["timestamp"], row["problem"]) == (expected, None)


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
def test_typed_times(tmp_path: Path, reading: Reading, con: Backend, zone: str | None) -> None:
    con.raw_sql("SET TimeZone = 'America/New_York'")
    when = pa.array([datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)], pa.timestamp("us", "UTC")).cast(
        pa.timestamp("us", zone)
    )
    pq.write_table(pa.table({"who": [1.0], "what": [2], "when": when}), tmp_path / "log.parquet")
    row = rows(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.parquet").interactions)[0]
    assert (row["user_id"], row["item_id"], row["timestamp"]) == ("1", "2", 1700000000)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("u,i,12x", "timestamp not a number: '12x'"),
        ("u,i,", "timestamp is empty"),
        ("u,i,-5", "timestamp before 1970: '-5'"),
        ("u,i,1700000000000", "timestamp after 2100, in another unit than s: '1700000000000'"),
        ("u,i,nan", "timestamp not a number: 'nan'"),
        ("u,i", "missing columns: 'u,i'"),
        ("u,i,5,6", "too many columns: 'u,i,5,6'"),
        ("o'brien,\"it's; DROP TABLE x\",oops'", "timestamp not a number: 'oops''"),
    ],
)
def test_a_bad_row_says_why_and_harms_no_other(
    tmp_path: Path, reading: Reading, line: str, problem: str
) -> None:
    (tmp_path / "log.csv").write_text(f"who,what,when\nu,i,1\n{line}\nu,j,2\n")
    log = rows(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv").interactions)
    assert [row["problem"] for row in log if row["problem"]] == [problem]
    assert [(row["item_id"], row["timestamp"]) for row in log if not row["problem"]] == [("i", 1), ("j", 2)]


def test_rows_without_an_id_end_in_quarantine(tmp_path: Path, reading: Reading) -> None:
    good = "".join(f"u,i{n},{n}\n" for n in range(9))
    (tmp_path / "log.csv").write_text(f"who,what,when\n{good},i,5\nu, ,5\nu,i\0j,5\nu,i\n")
    found = ingest(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv"), [])
    assert found.interactions.count().execute() == 9
    assert sorted(reason.split(":")[0] for reason in found.quarantine.reason.execute()) == [
        "empty item_id", "empty user_id", "missing columns", "null byte in item_id",
    ]  # fmt: skip


def test_ratings_and_weights_must_be_numbers(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what,stars,n\nu,i,4.5,2\nu,i,good,1\nu,i,,inf\n")
    columns = {"user_id": "who", "item_id": "what", "rating": "stars", "weight": "n"}
    log = rows(reading("files", {"columns": columns}, interactions=tmp_path / "log.csv").interactions)
    assert [row["problem"] for row in log] == [
        None,
        "rating not a number: 'good'",
        "weight not a number: 'inf'",
    ]
    assert (log[0]["rating"], log[0]["weight"], log[0]["timestamp"]) == (4.5, 2.0, None)


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
        (b"who,what,when\nu,i,1\n", {"columns": {"user": "who"}}, "unknown column 'user'"),
        (
            b"who,what,when\nu,i,1\n",
            {"columns": MAPPING, "timestamp": "minutes"},
            "unknown timestamp unit 'minutes'",
        ),
        (b"who,what,when\nu,i,1\n", {"colums": MAPPING}, "unknown option of source files 'colums'"),
        (b"who,what,when\nu,i,1\n", {"columns": MAPPING, "format": "xlsx"}, "unknown format 'xlsx'"),
        (b"who,what,when\nu,caf\xe9,1\n", {"columns": MAPPING}, "encoding: latin-1"),
        (b"who,wh\xe9t,when\nu,i,1\n", {"columns": MAPPING}, "encoding: latin-1"),
        (b"", {"columns": MAPPING}, "is empty"),
        (b"who,who,when\n", {"columns": MAPPING}, "names a column twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_unreadable_files_say_what_to_change(
    tmp_path: Path, reading: Reading, content: bytes, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reading("files", options, interactions=tmp_path / "log.csv")


def test_json_keeps_what_a_guess_at_types_would_lose(tmp_path: Path, reading: Reading) -> None:
    lines = [{"who": 1, "what": "i", "when": "2024-05-01T12:30:00+02:00"}] * 30_000
    lines += [{"who": "late", "what": "0x", "when": "2024-05-01T12:30:00-02:00"}]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n{oops\n[1]\n")
    options = {"columns": MAPPING, "timestamp": "iso"}
    log = rows(reading("files", options, interactions=tmp_path / "log.jsonl").interactions)
    assert (log[0]["user_id"], log[0]["timestamp"]) == ("1", 1714559400)
    late = log[30_000]
    assert (late["user_id"], late["item_id"], late["timestamp"]) == ("late", "0x", 1714573800)
    assert [row["problem"] for row in log[30_001:]] == ["not a JSON object"] * 2
    assert all(row["problem"] is None for row in log[:30_001])


def test_a_quotation_mark_left_open_is_an_error(tmp_path: Path, reading: Reading) -> None:
    mark = {500: '"'}
    text = "who,what,when\n" + "".join(f"u{n},{mark.get(n, '')}i{n},{n}\n" for n in range(1000))
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"not closed.*`quote: ''`"):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")
    tables = reading("files", {"columns": MAPPING, "quote": ""}, interactions=tmp_path / "log.csv")
    log = rows(tables.interactions)
    assert len(log) == 1000 and log[500]["item_id"] == '"i500'


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.zst", "log.parquet", "log.jsonl.gz"])
@pytest.mark.parametrize("damage", ["cut short", "something else"])
def test_damaged_files_are_named(tmp_path: Path, reading: Reading, name: str, damage: str) -> None:
    path = tmp_path / name
    copy = duckdb.connect()
    rows_ = "SELECT i AS who, md5(i::VARCHAR) AS what, i AS when FROM range(20000) t(i)"
    copy.execute(
        f"COPY ({rows_}) TO '{path}'" + (" (FORMAT json, COMPRESSION gzip)" if "jsonl" in name else "")
    )
    path.write_bytes(path.read_bytes()[:-4000] if damage == "cut short" else b"who,what,when\n1,2,3\n")
    with pytest.raises(ValueError, match=f"cannot read .*{name}.*cut short"):
        reading("files", {"columns": MAPPING}, interactions=path)


def test_names_of_columns_are_only_ever_names(tmp_path: Path, reading: Reading, con: Backend) -> None:
    con.raw_sql("CREATE TABLE kept AS SELECT 1")
    evil = 'x" FROM kept; DROP TABLE kept; --'
    (tmp_path / "log.jsonl").write_text(json.dumps({evil: "u", "it'em": "i", "rowid": 7}) + "\n")
    columns = {"user_id": evil, "item_id": "it'em", "rating": "rowid"}
    assert _log(reading("files", {"columns": columns}, interactions=tmp_path / "log.jsonl")) == [
        ("u", "i", None, 0)
    ]
    assert con.raw_sql("SELECT count(*) FROM kept").fetchall() == [(1,)]


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
    found = {row["item_id"]: row for row in rows(tables.items)}
    assert set(found) == {"1", "2", "3"}
    assert found["1"] == {"item_id": "1", "title": "One", "text": "One. a, b. x, y, z", "tags": ["a", "b"],
                          "path": [["x", "y"], ["z"]], "colour": "red"}  # fmt: skip
    assert found["2"]["title"] == "2" and found["3"]["text"] == "Three"
    assert rows(tables.users) == [{"user_id": "u", "city": "Rome"}]


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
def test_whole_sequences_in_rows(
    tmp_path: Path, reading: Reading, content: str, options: dict[str, Any]
) -> None:
    (tmp_path / "log.csv").write_text(content)
    mapping = {"columns": {"user_id": "user", "item_id": "items"}}
    assert _log(reading("files", mapping | options, interactions=tmp_path / "log.csv")) == [
        ("7", "3", None, 0), ("7", "9", None, 1), ("7", "4", None, 2), ("8", "9", None, 3),
    ]  # fmt: skip


AWKWARD = ["a,b", "Toy Story", "[x]", "O'Brien", 'say "so"', "back\\slash", "(1)", "3"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(AWKWARD),
        repr(AWKWARD),
        repr(tuple(AWKWARD)),
        repr(AWKWARD)[1:-1],
        repr(AWKWARD).replace("'3'", "3"),
    ],
    ids=["JSON", "Python list", "Python tuple", "no brackets", "a number among them"],
)
def test_quoted_items_keep_their_spaces_commas_and_brackets(
    tmp_path: Path, reading: Reading, text: str
) -> None:
    pq.write_table(pa.table({"user": ["7", "8"], "items": [text, "3 9"]}), tmp_path / "log.parquet")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    log = rows(reading("files", options, interactions=tmp_path / "log.parquet").interactions)
    assert [row["item_id"] for row in log] == [*AWKWARD, "3", "9"]
    assert {row["problem"] for row in log} == {None}


@pytest.mark.parametrize("text", ["['a, 'b']", '["a", "b', "O'Brien 3", '{"a": 1}', '[["a"], "b"]', "['a'"])
def test_quotes_that_make_no_list_are_a_problem(tmp_path: Path, reading: Reading, text: str) -> None:
    pq.write_table(pa.table({"user": ["7", "8"], "items": [text, "3"]}), tmp_path / "log.parquet")
    options = {"columns": {"user_id": "user", "item_id": "items"}, "sequence_per_row": True}
    log = rows(reading("files", options, interactions=tmp_path / "log.parquet").interactions)
    assert [(row["user_id"], row["item_id"], row["problem"]) for row in log] == [
        ("7", None, f"not a list of values: '{text}'"), ("8", "3", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "order", "problem"),
    [
        ("90", 90, None),
        ("90.0", 90, None),
        ("9007199254740993", 9007199254740993, None),
        ("", None, "order is empty"),
        ("90.4", None, "order is not a whole number: '90.4'"),
        ("first", None, "order is not a whole number: 'first'"),
        ("1e30", None, "order is not a whole number: '1e30'"),
    ],
)
def test_an_order_must_be_a_whole_number(
    tmp_path: Path, reading: Reading, value: str, order: int | None, problem: str | None
) -> None:
    (tmp_path / "log.csv").write_text(f"who,what,pos\nu,i,{value}\nu,j,5\n")
    columns = {"user_id": "who", "item_id": "what", "order": "pos"}
    log = rows(reading("files", {"columns": columns}, interactions=tmp_path / "log.csv").interactions)
    found = {row["item_id"]: row for row in log}
    assert (found["j"]["order"], found["j"]["problem"], found["i"]["problem"]) == (5, None, problem)
    assert problem or found["i"]["order"] == order


@pytest.mark.parametrize(
    ("values", "problem"),
    [([1.0, None], "order is empty"), ([1.0, 90.4], "order is not a whole number: '90.4'")],
)
def test_an_order_of_floats(tmp_path: Path, reading: Reading, values: list[float], problem: str) -> None:
    pq.write_table(pa.table({"who": ["u", "u"], "what": ["i", "j"], "pos": values}), tmp_path / "log.parquet")
    columns = {"user_id": "who", "item_id": "what", "order": "pos"}
    log = rows(reading("files", {"columns": columns}, interactions=tmp_path / "log.parquet").interactions)
    assert {row["item_id"]: row["problem"] for row in log} == {"i": None, "j": problem}
    assert {row["order"] for row in log if row["item_id"] == "i"} == {1}


def test_sequences_in_lists_with_times(tmp_path: Path, reading: Reading) -> None:
    table = pa.table({"items": [[3, 9], [4], [], [5, 6]], "times": [[1, 2], [3], [], [4]]})
    pq.write_table(table, tmp_path / "log.parquet")
    options = {"columns": {"item_id": "items", "timestamp": "times"}, "sequence_per_row": True}
    log = rows(reading("files", options, interactions=tmp_path / "log.parquet").interactions)
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in log if not row["problem"]] == [
        ("1", "3", 1), ("1", "9", 2), ("2", "4", 3),
    ]  # fmt: skip
    assert [row["problem"] for row in log if row["problem"]] == [
        "empty sequence",
        "not as many times as items in the row",
    ]


def test_rows_that_repeat_an_id_are_counted(
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
    assert [record.message for record in caplog.records] == [
        f"{items}: 3 rows of items repeat an item_id, the first of each counts: s3",
        f"{users}: 1 rows of users repeat a user_id, the first of each counts: v",
    ]
    items.write_text("item_id,title\n" + "".join(f"s{n},x\n" for n in (9, 8, 7, 6, 5)) * 2)
    caplog.clear()
    reading("files", options, interactions=tmp_path / "log.csv", items=items)
    assert "5 rows of items repeat an item_id, the first of each counts: s9, s8, s7, …" in caplog.text


def test_real_amazon_beauty(shared: Path, reading: Reading) -> None:
    folder = shared / "amazon-beauty"
    options = {"columns": {"user_id": "user_id", "item_id": "item_id", "order": "pos"},
               "items": {"columns": {"item_id": "item_id", "text": ["title", "categories"]}}}  # fmt: skip
    tables = reading(
        "files", options, interactions=folder / "interactions.parquet", items=folder / "items.parquet"
    )
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


def test_unknown_source_names_the_known(con: Backend) -> None:
    assert reader_names() == ["amazon", "files", "movielens", "music4all", "online_retail", "steam"]
    for source in ("movielense", "fetch", "../movielens", "os"):
        with pytest.raises(ValueError, match="choose amazon, files, movielens"):
            read({"source": source}, {"files": {}}, con)
