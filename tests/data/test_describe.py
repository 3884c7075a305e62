"""A raw log is described, and the data-set file that is proposed for it is one that ingest reads."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recpipe.config import ConfigError
from recpipe.data.describe import choose_core, describe, main
from recpipe.data.sample_rows import read_sample
from recpipe.data.time_formats import detect_time_format


def rows(users: int = 30, items: int = 12) -> list[tuple[str, str, int]]:
    """Each of the users has events with the next eight items."""
    return [(f"u{u}", f"p{(u + n) % items}", 1_700_000_000 + 60 * n) for u in range(users) for n in range(8)]


def write_log(path: Path, header: str, *, separator: str = ",") -> Path:
    lines = [header, *(separator.join(map(str, row)) for row in rows())]
    text = "\n".join(lines).encode() + b"\n"
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def run(folder: Path, *arguments: str) -> tuple[int, dict]:
    (folder / "conf").mkdir(exist_ok=True)
    status = main([*arguments, "--conf", str(folder / "conf")])
    files = list((folder / "conf").rglob("*.yml"))
    return status, yaml.safe_load(files[0].read_text())["datasets"] if files else {}


@pytest.mark.parametrize("separator", [",", ";", "\t", "|", "::"])
@pytest.mark.parametrize("name", ["log.csv", "log.dat.gz"])
def test_delimiter_columns_and_time_are_found(tmp_path, separator, name) -> None:
    path = write_log(tmp_path / name, separator.join(("Customer_ID", "sku", "happened at")), separator=separator)
    status, datasets = run(tmp_path, str(path), "--name", "shop")
    assert status == 0
    options = datasets["shop"]["options"]
    assert options["columns"] == {"user_id": "Customer_ID", "item_id": "sku", "timestamp": "happened at"}
    assert options.get("delimiter", ",") == separator and options["timestamp"] == "s"
    assert {"step": "k_core", "users": 5, "items": 5} in datasets["shop"]["steps"]


def test_json_lines_arrays_and_parquet_have_the_same_columns(tmp_path) -> None:
    records = [dict(zip(("user", "item", "ts"), row, strict=True)) for row in rows()]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "b.json").write_text(json.dumps(records))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    samples = [read_sample(tmp_path / name, rows=1000, delimiter=None) for name in ("a.jsonl", "b.json", "c.parquet")]
    assert all(sample.table == samples[0].table and sample.complete for sample in samples)
    assert samples[0].columns == ["user", "item", "ts"] and samples[0].rows == 240


def test_items_get_titles_and_content(tmp_path) -> None:
    log = write_log(tmp_path / "log.csv", "user,article,time")
    (tmp_path / "products.csv").write_text("article,name,brand\n" + "".join(f"p{n},Lamp {n},Acme\n" for n in range(12)))
    _, datasets = run(tmp_path, str(log), "--name", "shop", "--items", str(tmp_path / "products.csv"))
    assert datasets["shop"]["options"]["items"] == {"columns": {"item_id": "article", "title": "name"}}
    assert datasets["shop"]["content"]["text"] == {"template": "{title}. {brand}"}


def test_an_existing_file_stays_and_print_writes_none(tmp_path, capsys) -> None:
    log = write_log(tmp_path / "log.csv", "user,article,time")
    assert run(tmp_path, str(log), "--print") == (0, {})
    assert run(tmp_path, str(log))[0] == 0
    assert run(tmp_path, str(log))[0] == 1
    assert "--force" in capsys.readouterr().err
    assert run(tmp_path, str(log), "--force")[0] == 0


@pytest.mark.parametrize(
    ("header", "arguments", "message"),
    [
        ("a,article,time", [], "--user-id COLUMN; its columns: a, article, time"),
        ("user,article,time", ["--user-id", "client"], "has no column 'client'"),
        (
            "user,article,time",
            ["--item-id", "time", "--timestamp", "article"],
            "no known time format fits the column 'article'",
        ),
        ("1,2,3", [], "does not name its columns"),
    ],
)
def test_what_cannot_be_guessed_is_an_error_with_the_option_to_give(
    tmp_path, capsys, header, arguments, message
) -> None:
    log = write_log(tmp_path / "log.csv", header)
    assert run(tmp_path, str(log), *arguments) == (1, {})
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "name", "ambiguous"),
    [
        (["1700000000", "1700000060"], "s", False),
        (["1700000000000"], "ms", False),
        (["2024-05-01T12:30:00Z", "2024-05-02 12:30"], "iso", False),
        (["31.12.2024 23:59"], "%d.%m.%Y %H:%M", False),
        (["12/31/2024"], "%m/%d/%Y", False),
        (["03/04/2024", "05/04/2024"], "%d/%m/%Y", True),
        (["20240131"], "%Y%m%d", False),
        (["Jan 31, 2024 10:15 PM"], "%b %d, %Y %I:%M %p", False),
    ],
)
def test_time_formats(values, name, ambiguous) -> None:
    found = detect_time_format(values)
    assert found is not None and (found.name, found.ambiguous, found.share) == (name, ambiguous, 1.0)


def test_words_and_missing_values_are_no_times() -> None:
    assert detect_time_format(["yesterday", "soon"]) is None
    assert detect_time_format(["", " "]) is None


def test_the_core_is_the_largest_that_keeps_half_of_the_events() -> None:
    events = [(user, item) for user, item, _ in rows()]
    single = [(f"s{n}", "p0") for n in range(100)]
    assert choose_core(events) == (5, 1.0)
    assert choose_core(events + single) == (5, pytest.approx(240 / 340))
    assert choose_core(single) == (None, 1.0)


def test_repeated_items_are_counted(tmp_path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + "a,x\n" * 3 + "b,y\n")
    log = describe(read_sample(path, rows=100, delimiter=None), {})
    assert log.counts == {"events": 4, "users": 2, "items": 2} and log.repeats == 0.5 and log.time is None


def test_a_file_without_rows_is_an_error(tmp_path) -> None:
    (tmp_path / "log.csv").write_text("user,item\n")
    with pytest.raises(ConfigError, match="has no rows"):
        read_sample(tmp_path / "log.csv", rows=10, delimiter=None)
