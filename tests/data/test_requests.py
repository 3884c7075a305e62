"""Requests and logs as histories on disk: the truth is recomputed from plain lists of Python."""

from __future__ import annotations

import bz2
import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.synthetic import write_log

from recpipe.data.requests import RequestFile, Requests
from recpipe.data.sequence_builder import build_sequences
from recpipe.data.sequences import Vocabulary

VOCABULARY = Vocabulary(np.array([f"i{n}" for n in range(10)], dtype=object))
EVENTS = "user_id,item_id,timestamp\nann,i3,30\nbob,i1,5\nann,i2,10\nann,i9,20\n"


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., list[dict]]:
    """`read(Requests(…))`: a dict per user, and what was set aside in `quarantine.parquet`."""

    def rows(requests: Requests, *, users: int = 100, events: int = 1000) -> list[dict]:
        engine = {"spill_folder": str(tmp_path / "spill"), "memory_limit": "512MB", "threads": 1}
        found = []
        with requests.stored(VOCABULARY, engine, quarantine=tmp_path / "quarantine.parquet") as stored:
            for batch in stored.batches(users, events=events):
                data = batch.sequences
                for u in range(len(batch)):
                    place = slice(*batch.candidate_offsets[u : u + 2])
                    times = data.timestamps
                    found.append(
                        {
                            "user": data.users[u],
                            "items": [VOCABULARY.ids[item - 1] for item in data.row(u)],
                            "times": None if times is None else times[slice(*data.offsets[u : u + 2])].tolist(),
                            "candidates": [VOCABULARY.ids[item - 1] for item in batch.candidate_items[place]]
                            if batch.has_candidates[u]
                            else None,
                            **{name: column[u].as_py() for name, column in data.profiles.items()},
                        }
                    )
            assert stored.n_users == len(found)
            assert stored.n_events == sum(len(row["items"]) for row in found)
            assert [user for part in stored.user_ids() for user in part] == [row["user"] for row in found]
        assert not [path for path in (tmp_path / "spill").iterdir() if path.name.startswith(".histories")]
        return found

    return rows


def requests(path: Path, **fields: object) -> Requests:
    return Requests(Path("no log"), RequestFile(path, **fields))


def histories(rows: list[dict]) -> dict[str, list[str]]:
    return {row["user"]: row["items"] for row in rows}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_every_user_of_the_log_has_his_whole_history_in_the_order_of_training(tmp_path, read):
    rng = np.random.default_rng(0)
    log = [(f"u{rng.integers(30)}", f"i{rng.integers(10)}", int(rng.integers(50))) for _ in range(400)]
    path = write_log(tmp_path / "interactions.parquet", log)
    sequences, vocabulary = build_sequences(path)
    expected = {user: vocabulary.ids[sequences.row(u) - 1].tolist() for u, user in enumerate(sequences.users)}
    for users, events in ((7, 1000), (100, 1), (100, 30), (1, 1000)):
        rows = read(Requests(path), users=users, events=events)
        assert histories(rows) == expected
        assert [row["user"] for row in rows] == sequences.users.tolist()
        assert all(row["times"] == sorted(row["times"]) for row in rows)


def test_a_log_without_times_is_ordered_by_its_rows(tmp_path, read):
    path = write_log(tmp_path / "interactions.parquet", [("u", "i5", None), ("u", "i1", None), ("a", "i2", None)])
    rows = read(Requests(path))
    assert histories(rows) == {"a": ["i2"], "u": ["i5", "i1"]}
    assert rows[0]["times"] is None


def test_events_of_items_that_the_model_does_not_know_are_counted(tmp_path):
    path = write_log(tmp_path / "interactions.parquet", [("u", "i5", 1), ("u", "new", 2), ("v", "new", 3)])
    with Requests(path).stored(VOCABULARY, {"spill_folder": str(tmp_path)}) as stored:
        (batch,) = stored.batches(10)
        assert (stored.n_events, stored.unknown_events) == (1, 2)
        assert batch.sequences.lengths.tolist() == [1, 0]


COMPRESSED = {".csv": None, ".csv.gz": gzip.compress, ".csv.bz2": bz2.compress,
              ".csv.zst": zstandard.ZstdCompressor().compress}  # fmt: skip


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_events_of_plain_and_compressed_csv_are_sorted_by_time(tmp_path, read, suffix):
    path, compress = tmp_path / f"requests{suffix}", COMPRESSED[suffix]
    path.write_bytes(EVENTS.encode() if compress is None else compress(EVENTS.encode()))
    assert histories(read(requests(path))) == {"ann": ["i2", "i9", "i3"], "bob": ["i1"]}


def test_parquet_tsv_and_json_lines_give_the_same_histories(tmp_path, read):
    rows = [dict(zip(("user_id", "item_id", "timestamp"), line.split(","), strict=True))
            for line in EVENTS.splitlines()[1:]]  # fmt: skip
    table = pa.table({name: [row[name] for row in rows] for name in rows[0]})
    table = table.set_column(2, "timestamp", pc.cast(table["timestamp"], pa.int64()))
    pq.write_table(table, tmp_path / "r.parquet")
    write(tmp_path / "r.tsv", EVENTS.replace(",", "\t"))
    write(tmp_path / "r.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    expected = {"ann": ["i2", "i9", "i3"], "bob": ["i1"]}
    assert all(histories(read(requests(tmp_path / f"r.{end}"))) == expected for end in ("parquet", "tsv", "jsonl"))


def test_a_history_per_row_may_be_text_or_a_list_and_may_be_empty(tmp_path, read):
    options = {"sequence_per_row": True}
    text = write(tmp_path / "r.csv", 'user_id,item_id\nann,"i2 i9"\nnobody,\nbob,"[i1]"\n')
    pq.write_table(pa.table({"user_id": ["ann", "nobody", "bob"], "item_id": [["i2", "i9"], [], ["i1"]]}),
                   tmp_path / "r.parquet")  # fmt: skip
    for path in (text, tmp_path / "r.parquet"):
        rows = read(requests(path, options=options))
        assert [(row["user"], row["items"]) for row in rows] == [("ann", ["i2", "i9"]), ("nobody", []), ("bob", ["i1"])]
        assert not (tmp_path / "quarantine.parquet").exists()


def test_rows_of_one_user_merge(tmp_path, read):
    path = write(tmp_path / "r.csv", "user_id,item_id\nann,i1 i2\nbob,i3\n ann ,i4\n")
    rows = read(requests(path, options={"sequence_per_row": True}))
    assert histories(rows) == {"ann": ["i1", "i2", "i4"], "bob": ["i3"]}


def test_columns_are_mapped_by_hand_or_as_in_the_log(tmp_path, read):
    path = write(tmp_path / "r.csv", "visitor;sku;at\nann;i3;01.05.2024\nann;i2;30.04.2024\n")
    log = {"columns": {"user_id": "visitor", "item_id": "sku", "timestamp": "at", "rating": "stars"},
           "timestamp": "%d.%m.%Y", "delimiter": ";"}  # fmt: skip
    assert histories(read(requests(path, log=log))) == {"ann": ["i2", "i3"]}
    options = {"delimiter": ";"}
    assert histories(read(requests(path, columns={"user_id": "visitor", "item_id": "sku"}, options=options))) == {
        "ann": ["i3", "i2"]
    }


def test_candidates_are_lists_of_ids_or_an_id_per_row(tmp_path, read):
    path = write(tmp_path / "r.csv", "user_id,item_id,candidates\nann,i1,i5 i4 nope\nbob,i2,\nann,i3,i6\neve,i1,nope\n")
    rows = {row["user"]: row["candidates"] for row in read(requests(path))}
    assert rows == {"ann": ["i4", "i5", "i6"], "bob": None, "eve": []}
    table = pa.table({"user_id": [1, 2], "item_id": ["i1", "i2"], "allowed": [["i7"], None]})
    pq.write_table(table, tmp_path / "r.parquet")
    rows = read(requests(tmp_path / "r.parquet", columns={"candidates": "allowed"}))
    assert [(row["user"], row["candidates"]) for row in rows] == [("1", ["i7"]), ("2", None)]


def test_profiles_of_the_requests_come_before_those_of_the_data_set(tmp_path, read):
    path = write(tmp_path / "r.csv", "user_id,item_id,country,years\nann,i1,AT,41\nbob,i2,,\nnew,i2,DE,7\n")
    stored = pa.table({"user_id": ["ann", "bob"], "country": ["CH", "FR"], "age": [1.0, 2.0], "other": [1, 1]})
    pq.write_table(stored, tmp_path / "users.parquet")
    file = RequestFile(path, columns={"age": "years"})
    found = read(
        Requests(Path("no log"), file, profiles=tmp_path / "users.parquet", profile_columns=["country", "age"])
    )
    assert [(row["user"], row["country"], row["age"]) for row in found] == [
        ("ann", "AT", 41.0), ("bob", "FR", 2.0), ("new", "DE", 7.0)
    ]  # fmt: skip
    assert "other" not in found[0]


def test_bad_rows_are_set_aside_with_a_reason_and_their_users_stay(tmp_path, read, caplog):
    lines = ["ann,i1,10", "ann,i2,never", ",i3,20", "bob,,20", "NULL,i1,5", "eve,i4,-5", *["ann,i5,11"] * 5]
    path = write(tmp_path / "r.csv", "user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    with caplog.at_level(logging.WARNING):
        rows = read(requests(path))
    assert histories(rows) == {"ann": ["i1", *["i5"] * 5], "bob": [], "eve": []}
    bad = pq.read_table(tmp_path / "quarantine.parquet")
    assert bad["order"].to_pylist() == [1, 2, 3, 4, 5]
    assert all(bad["reason"].to_pylist())
    assert "5 of 11 rows set aside" in caplog.text


def test_the_file_of_users_says_who_gets_a_list_and_in_which_order(tmp_path, read):
    sample = write(tmp_path / "sample.csv", "id,prediction\nbob,\nnobody,\nann,\nbob,\n")
    users = RequestFile(sample, columns={"user_id": "id"})
    found = read(Requests(Path("no log"), RequestFile(write(tmp_path / "r.csv", EVENTS)), users=users))
    assert [(row["user"], row["items"]) for row in found] == [
        ("bob", ["i1"]), ("nobody", []), ("ann", ["i2", "i9", "i3"])
    ]  # fmt: skip
    log = write_log(tmp_path / "log.parquet", [("ann", "i1", 1), ("zoe", "i2", 1)])
    assert histories(read(Requests(log, users=users))) == {"bob": [], "nobody": [], "ann": ["i1"]}


def test_the_delimiter_of_the_log_is_that_of_a_file_with_its_columns(tmp_path, read):
    log = {"columns": {"user_id": "visitor", "item_id": "sku"}, "delimiter": ";"}
    sessions = RequestFile(write(tmp_path / "r.csv", "visitor;sku\nann;i1\nbob;i2\n"), log=log)
    sample = write(tmp_path / "sample.csv", "id,sku\nbob,\nann,\n")
    found = read(Requests(Path("no log"), sessions, users=RequestFile(sample, log=log, user_names=["id"])))
    assert [(row["user"], row["items"]) for row in found] == [("bob", ["i2"]), ("ann", ["i1"])]
    for text, message in (("a;b\nbob;x\n", "set `delimiter`"), ("a,b\nbob,x\n", "no column of users")):
        with pytest.raises(ValueError, match=message):
            read(Requests(Path("no log"), sessions, users=RequestFile(write(sample, text), user_names=["id"])))


def test_a_history_of_100_000_events_is_one_user(tmp_path, read):
    path = write(tmp_path / "r.csv", "user_id,item_id\n" + "".join(f"ann,i{n % 10}\n" for n in range(100_000)))
    (row,) = read(requests(path), events=1000)
    assert row["items"] == [f"i{n % 10}" for n in range(100_000)]


@pytest.mark.parametrize(
    ("text", "fields", "message"),
    [
        (None, {}, "is no file"),
        ("", {}, "has no rows"),
        ("user_id,item_id\n", {}, "has no rows"),
        ("user,item\na,i1\n", {}, "no column of item_id and none of user_id.*recommend.columns"),
        ("user_id,item_id\na,i1\n", {"columns": {"timestamp": "at"}}, "no column 'at' for timestamp; found: user_id"),
        ("user_id,item_id\na,i1\n", {"options": {"delimeter": ";"}}, "delimeter.*delimiter"),
        ("user_id,item_id\n,i1\n", {}, "no row has a usable user id"),
        ("user_id,item_id,timestamp\na,i1,x\na,i2,y\n", {}, "2 of 2 rows of .* are bad"),
        ("user_id,item_id\na,i1\n", {"options": {"format": "xml"}}, "'xml'"),
    ],
)  # fmt: skip
def test_unusable_files_are_errors_that_say_what_to_change(tmp_path, read, text, fields, message):
    path = tmp_path / "r.csv"
    if text is not None:
        write(path, text)
    with pytest.raises(ValueError, match=message):
        read(requests(path, **fields))


def test_some_times_but_not_all_are_an_error(tmp_path, read):
    path = write_log(tmp_path / "log.parquet", [("ann", "i1", 1), ("ann", "i2", None)])
    with pytest.raises(ValueError, match="1 of 2 events have no timestamp"):
        read(Requests(path))
