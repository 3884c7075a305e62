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
from recpipe.data.column_roles import list_separator
from recpipe.data.describe import choose_core, describe, good_ratings, main
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


def test_the_id_of_the_items_may_have_another_name_than_in_the_log(tmp_path, capsys) -> None:
    log = write_log(tmp_path / "log.csv", "user,article,time")
    items = tmp_path / "lamps.csv"
    items.write_text("code,name\n" + "".join(f"p{n},Lamp {n}\n" for n in range(12)))
    _, datasets = run(tmp_path, str(log), "--name", "shop", "--items", str(items))
    assert datasets["shop"]["options"]["items"]["columns"] == {"item_id": "code", "title": "name"}
    items.write_text("code,name\nx1,Lamp\n")
    assert run(tmp_path, str(log), "--name", "shop", "--items", str(items), "--force")[0] == 1
    assert "has the ids of the log's column 'article', such as 'p0'" in capsys.readouterr().err


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
        ("a,b,time", [], "a user id or an item id: name it with --user-id COLUMN --item-id COLUMN; its columns: a, b"),
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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "is empty"),
        ("cut.csv.gz", gzip.compress(b"user,item\n" + bytes(range(256)) * 99)[:-50], "cannot be read"),
        ("fake.csv.gz", b"user,item\n1,2\n", "cannot be read"),
        ("fake.csv.bz2", b"user,item\n1,2\n", "cannot be read"),
        ("fake.csv.zst", b"user,item\n1,2\n", "cannot be read"),
        ("fake.parquet", b"user,item\n1,2\n", "as Parquet"),
        ("long.csv", b"user,item\n1," + b"x" * 200_000 + b"\n", "cannot be read"),
        ("deep.json", b"[" * 100_000, "cannot be read"),
        ("utf16.csv", "user,item\n1,2\n".encode("utf-16"), "iconv"),
        ("one.csv", b"user\n1\n2\n", "has one column"),
        ("ids.csv", b"user,item\n1,\n,2\n", "no row of"),
        ("log.xlsx", b"user,item\n", "does not say its format"),
    ],
)
def test_a_file_that_cannot_be_described_is_an_error_of_one_line(tmp_path, capsys, name, content, message) -> None:
    (tmp_path / name).write_bytes(content)
    assert run(tmp_path, str(tmp_path / name), "--name", "shop") == (1, {})
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_and_too_few_rows_are_errors(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        read_sample(tmp_path, rows=10, delimiter=None)
    with pytest.raises(ConfigError, match="read one or more"):
        read_sample(write_log(tmp_path / "log.csv", "user,item,time"), rows=-1, delimiter=None)


@pytest.mark.parametrize(
    "column", ["#a: b", "{a}, [b]", 'it\'s "so"', "a\nb", "us\x85er", "\u2028", "\x7f", "😀", "yes", "1e3", "~", "- a"]
)
def test_any_name_of_a_column_is_the_same_in_the_file(tmp_path, column) -> None:
    records = [dict(zip((column, "item", "ts"), row, strict=True)) for row in rows()]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, records)))
    _, datasets = run(tmp_path, str(tmp_path / "log.jsonl"), "--name", "shop", "--user-id", column)
    assert datasets["shop"]["options"]["columns"]["user_id"] == column


@pytest.mark.parametrize("name", ["a\nseed: 1\n#.csv", 'it\'s {a}: "b" #.csv', "orders [2024].csv"])
def test_the_name_of_a_file_adds_no_key(tmp_path, name) -> None:
    log = write_log(tmp_path / name, "user,item,time")
    assert run(tmp_path, str(log), "--name", "shop")[0] == 0
    values = yaml.safe_load((tmp_path / "conf/local/parameters/datasets/shop.yml").read_text(encoding="utf-8"))
    assert list(values) == ["datasets"] and list(values["datasets"]) == ["shop"]
    assert values["datasets"]["shop"]["files"] == {"interactions": str(log)}


@pytest.mark.parametrize("name", ["../shop", "a/b", "a\nb", "", ".shop", "a b", "123", "2024_10", "yes", "null"])
def test_a_name_that_is_no_file_name_or_no_text_in_yaml_is_refused(tmp_path, capsys, name) -> None:
    log = write_log(tmp_path / "log.csv", "user,item,time")
    assert run(tmp_path, str(log), "--name", name) == (1, {})
    assert "--name NAME" in capsys.readouterr().err
    assert not (tmp_path / "conf/local").exists()


def test_a_data_set_of_base_is_not_overridden_and_a_project_is_needed(tmp_path, capsys) -> None:
    log = write_log(tmp_path / "log.csv", "user,item,time")
    base = tmp_path / "conf/base/parameters/datasets/shop.yml"
    base.parent.mkdir(parents=True)
    base.write_text("datasets: {shop: {source: files}}\n", encoding="utf-8")
    assert main([str(log), "--name", "shop", "--force", "--conf", str(tmp_path / "conf")]) == 1
    assert "would be mixed" in capsys.readouterr().err
    assert main([str(log), "--name", "shop", "--conf", str(tmp_path / "none")]) == 1
    assert "`recpipe new`" in capsys.readouterr().err
    assert not (tmp_path / "conf/local").exists() and not (tmp_path / "none").exists()


def test_a_column_has_one_role(tmp_path, capsys) -> None:
    log = write_log(tmp_path / "log.csv", "user,item,time")
    assert run(tmp_path, str(log), "--user-id", "item", "--item-id", "item") == (1, {})
    assert "'item' is named for two roles" in capsys.readouterr().err


@pytest.mark.parametrize("rating", ["0,5", "good"])
def test_a_rating_that_is_no_number_is_not_used(tmp_path, capsys, rating) -> None:
    lines = ["user;item;time;rating", *(";".join((*map(str, row), rating)) for row in rows())]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    status, datasets = run(tmp_path, str(tmp_path / "log.csv"), "--name", "shop")
    assert status == 0 and set(datasets["shop"]["options"]["columns"]) == {"user_id", "item_id", "timestamp"}
    assert f"{rating!r} is no number" in capsys.readouterr().out
    assert run(tmp_path, str(tmp_path / "log.csv"), "--name", "other", "--rating", "rating")[0] == 1
    assert "leave out --rating" in capsys.readouterr().err


def test_a_rating_with_a_point_is_used(tmp_path) -> None:
    lines = ["user,item,rating", *(f"{u},{i},{n % 5}.5" for n, (u, i, _) in enumerate(rows()))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    _, datasets = run(tmp_path, str(tmp_path / "log.csv"), "--name", "shop")
    assert datasets["shop"]["options"]["columns"]["rating"] == "rating"


def test_a_time_format_is_found_where_the_first_and_the_last_value_are_broken() -> None:
    values = ["?", *(f"{day:02}.11.2026 10:00" for day in range(1, 29)), "never"]
    detected = detect_time_format(values)
    assert detected is not None
    assert (detected.name, detected.first, detected.last) == ("%d.%m.%Y %H:%M", "2026-11-01", "2026-11-28")


def write_table(path: Path, header: str, table: list[tuple[str, ...]]) -> Path:
    path.write_text("\n".join([header, *map(";".join, table)]) + "\n")
    return path


def events(*more: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Each of 30 users has events with the next eight items, on as many days of May 2024; then the columns ``more``."""
    return [
        (f"u{u}", f"p{(u + n) % 12}", f"{n + 1:02}.05.2024 10:{u:02}", *(column[u % 2] for column in more))
        for u in range(30)
        for n in range(8)
    ]


@pytest.mark.parametrize("name", ["when", "at", "zeit", "x"])
def test_a_column_of_times_is_the_timestamp_whatever_its_name(tmp_path, capsys, name) -> None:
    """Birthdays of users are times as well, and none of their events."""
    born = ("24.12.1990", "01.02.1985")
    log = write_table(tmp_path / "log.csv", f"user;item;{name};born;grade", events(born, ("1", "2")))
    _, datasets = run(tmp_path, str(log), "--name", "shop")
    options = datasets["shop"]["options"]
    assert options["columns"] == {"user_id": "user", "item_id": "item", "timestamp": name}
    assert options["timestamp"] == "%d.%m.%Y %H:%M"
    assert {"step": "duplicates", "keep": "first", "by": ["user_id", "item_id", "timestamp"]} in datasets["shop"][
        "steps"
    ]
    output = capsys.readouterr().out
    assert "no time column" not in output and (f"{name!r} is the timestamp by its values" in output) is (
        name in ("zeit", "x")
    )


def test_plain_numbers_words_and_two_columns_of_times_are_not_taken_for_the_timestamp(tmp_path, capsys) -> None:
    numbers = [(user, item, "1700000000", "20240131") for user, item, _ in events()]
    cases = {
        "numbers": ("user;item;x;y", numbers),
        "two": ("user;item;x;y", [(*row, row[2]) for row in events()]),
        "some": ("user;item;x", [(*row[:2], row[2] if n % 20 else "soon") for n, row in enumerate(events())]),
        "empty": ("user;item;x", [(*row[:2], row[2] if n % 20 else "") for n, row in enumerate(events())]),
    }
    for name, (header, table) in cases.items():
        _, datasets = run(tmp_path, str(write_table(tmp_path / "log.csv", header, table)), "--name", "shop", "--force")
        assert "timestamp" not in datasets["shop"]["options"]["columns"], name
        output = capsys.readouterr().out
        assert "no time column: the order of the rows decides; name one with --timestamp COLUMN\n" in output
        assert ("several columns hold times: x, y" in output) is (name == "two")
    assert "no time column: the order" in (tmp_path / "conf/local/parameters/datasets/shop.yml").read_text()


def test_unusable_and_repeated_rows_are_counted_and_no_events(tmp_path, capsys) -> None:
    """Of 240 rows, 3 lose their user, 2 their time and 4 appear again."""
    table = events()
    broken = [("", *row[1:]) for row in table[:3]] + [(*table[3][:2], "??"), (*table[4][:2], "31.02.2024 10:00")]
    log = write_table(tmp_path / "log.csv", "user;item;when", broken + table[5:] + table[100:104])
    run(tmp_path, str(log), "--name", "shop")
    lines = capsys.readouterr().out.splitlines()
    assert "239 events, 30 users, 12 items" in lines
    assert "3 rows have no user or no item" in lines
    assert "2 rows have no time in the format %d.%m.%Y %H:%M, such as '??'" in lines
    assert any(line.startswith("4 rows have user, item and time of an earlier row") for line in lines)


def test_a_log_whose_rows_lack_user_or_time_is_an_error(tmp_path, capsys) -> None:
    table = [("", "p", "01.05.2024"), ("u", "p", "")]
    log = write_table(tmp_path / "log.csv", "user;item;when", table)
    assert run(tmp_path, str(log), "--name", "shop") == (1, {})
    assert "has a value in both 'user' and 'item', and a time in 'when'" in capsys.readouterr().err


def test_columns_of_the_items_are_shown_with_roles_and_lists_are_split(tmp_path, capsys) -> None:
    log = write_table(tmp_path / "log.csv", "user;item;when", events())
    kinds = ["Drama", "Drama|War", "War", "Comedy"]
    films = [(f"p{n}", f"Film {n}", kinds[n % 4], f"{n}.5") for n in range(12)]
    items = write_table(tmp_path / "films.csv", "item;name;kinds;price", films)
    _, datasets = run(tmp_path, str(log), "--name", "shop", "--items", str(items))
    assert datasets["shop"]["options"]["items"] == {
        "columns": {"item_id": "item", "title": "name"}, "lists": {"kinds": "|"}, "delimiter": ";",
    }  # fmt: skip
    content = datasets["shop"]["content"]
    assert content["text"]["template"] == "{title}. {kinds}"
    assert content["category"] == {"column": "kinds", "of_list": "first"}
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        "item item_id 12 p0",
        "name title 12 Film 0",
        "kinds text, category, list by '|' 4 Drama",
        "price - 12 0.5",
    ):
        assert line.split() in shown


def test_a_list_of_another_name_is_text_and_a_category_by_its_name(tmp_path, capsys) -> None:
    log = write_table(tmp_path / "log.csv", "member;title_id;when", events())
    films = [(f"p{n}", f"Film {n}", ["Drama", "Drama|War", "War"][n % 3]) for n in range(12)]
    items = write_table(tmp_path / "films.csv", "title_id;label;genre_list", films)
    _, datasets = run(tmp_path, str(log), "--name", "shop", "--items", str(items), "--rows", "100")
    assert datasets["shop"]["options"]["columns"]["item_id"] == "title_id"
    content = datasets["shop"]["content"]
    assert content["text"]["template"] == "{title}. {genre_list}"
    assert content["category"] == {"column": "genre_list", "of_list": "first"}
    assert "\nin these 100 rows: 100 events" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "separator"),
    [
        (["Drama|War", "War", "Drama", "War", "Drama"], "|"),  # one of five, 2 names for 6 parts
        (["Drama|War", "War", "Drama", "War", "Drama", "War"], None),  # one of six
        (["a; b", "b;a", "", "a"], ";"),
        (["Salt; and pepper", "A film; in colour"], None),  # four parts, each once
        (["Drama", "War"], None),
        ([], None),
    ],
)
def test_separators_of_lists(values, separator) -> None:
    assert list_separator(values) == separator


@pytest.mark.parametrize(
    ("values", "good"),
    [
        (["5", "4", "3", "1", ""], ("4", 0.5)),
        (["0.5", "4.5", "3.5", "5.0"], ("4.5", 0.5)),
        (["1", "0", "0", "0"], ("1", 0.25)),
        (["10", "7", "8", "2"], ("8", 0.5)),
        (["3", "3"], None),
        (["-1", "-2"], None),
        ([""], None),
    ],
)
def test_good_ratings_begin_at_four_fifths_of_the_highest(values, good) -> None:
    assert good_ratings(values) == good


def test_ratings_count_as_events_and_the_step_that_keeps_good_ones_is_offered(tmp_path, capsys) -> None:
    log = write_table(tmp_path / "log.csv", "user;item;when;stars", events(("5", "2")))
    run(tmp_path, str(log), "--name", "shop")
    assert (
        "every rating counts as an event; to keep the good ones, 50%, use the step min_rating"
        in capsys.readouterr().out
    )
    text = (tmp_path / "conf/local/parameters/datasets/shop.yml").read_text()
    assert "Every rating counts as an event" in text
    steps = yaml.safe_load(text.replace("# - {step: min_rating", "- {step: min_rating"))["datasets"]["shop"]["steps"]
    assert steps[0] == {"step": "min_rating", "at_least": 5}


def test_the_last_lines_propose_the_fast_models_first(tmp_path, capsys) -> None:
    log = write_table(tmp_path / "log.csv", "user;item;when", events())
    run(tmp_path, str(log), "--name", "shop")
    commands = [line.strip() for line in capsys.readouterr().out.splitlines() if line.strip().startswith("kedro")]
    assert commands == [
        "kedro run --pipelines=ingest,train,evaluate,report --params dataset=shop,model=popular+item_knn",
        "kedro run --params dataset=shop",
    ]
