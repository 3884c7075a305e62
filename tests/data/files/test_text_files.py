"""Compression and encodings, open quotation marks, damaged files, overlong lines."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import zstandard
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, ReadLog, log_tuples, rows, zip_bytes

from recpipe.data.engines import connect
from recpipe.data.files import text_files
from recpipe.data.files.delimited_rows import Dialect
from recpipe.data.files.raw_text import readable_paths

LOG = b"who,what,when\nu1,i1,1\nu2,i2,2\n"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:20]) + gzip.compress(data[20:]),
    "bz2": bz2.compress,
    "zstd": zstandard.compress,
    "zip": lambda data: zip_bytes({"__MACOSX/._log.csv": b"x", "export/log.csv": data, "export/.DS_Store": b"y"}),
}
TITLES = {"cp1252": "Caf\xe9 \u201cx\u201d \u20ac", "gbk": "\u4e2d\u6587 caf", "utf-16": "\u4e2d \u20ac",
          "shift_jis": "\u30c6", "latin-1": "caf\xe9", "utf-8": "\u4e2d \u20ac", "cp1251": "\u041c\u0438"}  # fmt: skip


@pytest.mark.parametrize("kind", COMPRESS)
@pytest.mark.parametrize("name", ["log.csv", "LOG.CSV.GZ", "log.csv.zst", "log.csv.zip", "log.CSV.bz2"])
def test_compression_is_detected_by_content_and_not_by_name(
    tmp_path: Path, reading: Reading, kind: str, name: str
) -> None:
    (tmp_path / name).write_bytes(COMPRESS[kind](LOG))
    tables = reading("files", {"columns": MAPPING}, interactions=tmp_path / name)
    assert log_tuples(tables) == [("u1", "i1", 1, 0), ("u2", "i2", 2, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_bytes({"a.csv": LOG, "b.csv": LOG}), r"2 files \(a.csv, b.csv\) in place of one"),
        (zip_bytes({}), "no file in place of one"),
        (gzip.compress(gzip.compress(LOG)), "compressed twice"),
        (zip_bytes({"log.csv.gz": gzip.compress(LOG)}), "compressed twice"),
        (gzip.compress(bytes(80 << 20)), "refused: more than .* bytes come out"),
        (gzip.compress(LOG)[:-3], "cut short"),
        (zstandard.compress(LOG * 50)[:-3], "cut short"),
        (bz2.compress(LOG)[:-3], "cut short"),
        (zip_bytes({"log.csv": LOG})[:-30], "cut short"),
        (b"PAR1" + LOG, "it is a Parquet file, no text"),
    ],
    ids=range(10),
)
def test_archives_that_are_not_one_text_file_are_refused(
    tmp_path: Path, reading: Reading, content: bytes, message: str
) -> None:
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")


def test_zips_with_a_password_or_a_name_twice_are_refused(tmp_path: Path, reading: Reading) -> None:
    path = tmp_path / "log.csv.zip"
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("log.csv", LOG)
        archive.writestr("log.csv", LOG.replace(b"u", b"v"))
    with pytest.raises(ValueError, match="2 files"):
        reading("files", {"columns": MAPPING}, interactions=path)
    locked = bytearray(zip_bytes({"log.csv": LOG}))
    locked[6] |= 1  # flags in the local header and in the directory
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(locked)
    with pytest.raises(ValueError, match="password"):
        reading("files", {"columns": MAPPING}, interactions=path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("utf8", "utf-8"), ("UTF-8", "utf-8"), ("utf-8-sig", "utf-8-sig"), ("latin1", "latin-1"), ("u16", "utf-16"),
     ("ISO-8859-1", "latin-1"), ("cp1252", "cp1252"), ("windows-1252", "cp1252"), ("gbk", "gbk"), ("GB2312", "gbk"),
     ("utf-16", "utf-16"), ("utf-16-le", "utf-16-le"), ("Shift_JIS", "shift_jis"), ("cp1251", "cp1251")],
)  # fmt: skip
def test_encodings_have_the_names_that_python_knows(tmp_path: Path, reading: Reading, name: str, codec: str) -> None:
    title = TITLES[{"utf-8-sig": "utf-8", "utf-16-le": "utf-16"}.get(codec, codec)]
    (tmp_path / "log.csv").write_bytes(f"who,what,when\nu1,{title},1\n".encode(codec))
    tables = reading("files", {"columns": MAPPING, "encoding": name}, interactions=tmp_path / "log.csv")
    assert log_tuples(tables) == [("u1", title, 1, 0)]


@pytest.mark.parametrize(
    ("encoding", "message"),
    [
        ("klingon", "unknown encoding 'klingon'"),
        ("base64", "unknown encoding 'base64'"),
        ("latin-1", "line 3 has the byte 0x93.*`encoding: cp1252`"),
        ("cp932", r"line 3, byte \d+: .*`encoding: cp1252`"),
        ("utf-8", "`encoding: cp1252`"),
    ],
)
def test_advice_on_encodings_works_when_it_is_followed(
    tmp_path: Path, reading: Reading, encoding: str, message: str
) -> None:
    title = TITLES["cp1252"]
    (tmp_path / "log.csv").write_bytes(f"who,what,when\nu1,i,1\nu2,{title},2\n".encode("cp1252"))
    with pytest.raises(ValueError, match=message):
        reading("files", {"columns": MAPPING, "encoding": encoding}, interactions=tmp_path / "log.csv")
    tables = reading("files", {"columns": MAPPING, "encoding": "cp1252"}, interactions=tmp_path / "log.csv")
    assert [row["item_id"] for row in rows(tables.interactions)] == ["i", title]


def test_text_is_decoded_across_chunks(tmp_path: Path, con: Backend) -> None:
    text = "\u4e2d\u6587," * 400_000  # more than a chunk, whose end falls into a letter
    path = tmp_path / "log.csv"
    path.write_bytes(b"x" + text.encode("gb18030"))
    (copy,) = readable_paths(con, [str(path)], encoding="gb18030")
    assert Path(copy).read_text(encoding="utf-8") == "x" + text


def test_converted_copies_lie_in_the_spill_folder_and_go_with_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(bz2.compress(LOG))
    con = connect({"spill_folder": str(tmp_path / "spill")})
    (copy,) = readable_paths(con, [str(path)])
    assert Path(copy).read_bytes() == LOG and Path(copy).is_relative_to(tmp_path / "spill")
    path.write_bytes(LOG)
    assert readable_paths(con, [str(path)]) == [str(path)]
    del con
    assert not Path(copy).exists()


def test_an_open_quotation_mark_makes_one_bad_line(tmp_path: Path, reading: Reading) -> None:
    mark = {500: '"'}
    text = "who,what,when\n" + "".join(f"u{n},{mark.get(n, '')}i{n},{n}\n" for n in range(1000))
    (tmp_path / "log.csv").write_text(text)
    log = rows(reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv").interactions)
    assert [row["item_id"] for row in log if not row["problem"]] == [f"i{n}" for n in range(1000) if n != 500]
    assert [row["problem"].split(":")[1] for row in log if row["problem"]] == [" 'u500,\"i500,500'"]
    tables = reading("files", {"columns": MAPPING, "quote": ""}, interactions=tmp_path / "log.csv")
    log = rows(tables.interactions)
    assert len(log) == 1000 and log[500]["item_id"] == '"i500'


STRAY, MISSING = "quotation mark stray or not closed, see option quote", "missing columns"
LINE_BREAK = "line break inside a value that must have none, see option quote"
SWALLOWED = "quotation mark that encloses other lines, see option quote"


@pytest.mark.parametrize(
    ("text", "good", "problems"),
    [
        ('u1,"i1,5\nu2,i2,6\nu3,i3",7\n', [("u2", "i2", 6)], [LINE_BREAK, STRAY]),
        ('u1,"i1,5\nu2,i2,6\nu3,i3,7,"\n', [("u2", "i2", 6)], [STRAY, STRAY]),
        ('u1,"i1\n",5\nu2,i2,6\n', [("u2", "i2", 6)], [LINE_BREAK, STRAY]),
        ('u1,"i1\nu2,i2,6\nu3,x",7\n', [("u2", "i2", 6)], [LINE_BREAK, STRAY]),
        ('u1,i"1,5\nu2,i2,6\n', [("u2", "i2", 6)], [STRAY]),
        ('u1,"i"1,5\nu2,i2,6\n', [("u2", "i2", 6)], [STRAY]),
        ('u1,"i1""x",5\n"u2","i,2","6"\n', [("u1", 'i1"x', 5), ("u2", "i,2", 6)], []),
        ('u1,"i1",5\nu2,"i2\n', [("u1", "i1", 5)], [STRAY]),
        ('u1,i1,5,6\nu2,"i2"\nu3,"i3",7', [("u3", "i3", 7)], ["too many columns", MISSING]),
        ("u1,i1,5\n\0\0\nu2,i\0,5\nu3,i3,7\n\0\0\0", [("u1", "i1", 5), ("u3", "i3", 7)], ["null byte"] * 3),
        ("u1,i1,5\r\nu2,i2,6\nu3,i3,7\ru4,i4,8\r\r\n", [(f"u{n}", f"i{n}", n + 4) for n in (1, 2, 3, 4)], []),
        ("u1,i1,5\nwho,what,when\nu2,i2,6\n", [("u1", "i1", 5), ("u2", "i2", 6)], ["header in the middle of the file"]),
        (
            'u1,i1,5\nwho,what,when\nu2,"i2",6\n',
            [("u1", "i1", 5), ("u2", "i2", 6)],
            ["header in the middle of the file"],
        ),
        ("u1,i1,5,\nu2,i2,6\n", [("u1", "i1", 5), ("u2", "i2", 6)], []),
        ('u1,"i1",5,\nu2,i2,6\r\n', [("u1", "i1", 5), ("u2", "i2", 6)], []),
        ("\n\nu1,i1,5\n\n\n", [("u1", "i1", 5)], []),
        ("u1,i1,5\n\ufeffu2,i2,6", [("u1", "i1", 5), ("u2", "i2", 6)], []),
    ],
)
def test_every_line_is_a_row_or_a_bad_row(
    tmp_path: Path, read_log: ReadLog, text: str, good: list[tuple[str, str, int]], problems: list[str]
) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\n" + text, newline="")
    log = read_log({"columns": MAPPING}, tmp_path / "log.csv")
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in log if not row["problem"]] == good
    assert [row["problem"].split(":")[0] for row in log if row["problem"]] == problems


def test_line_breaks_stay_in_other_columns_unless_lines_of_the_log_are_inside(
    tmp_path: Path, read_log: ReadLog
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(
        'who,what,when,note\nu1,i1,1,"good,\r\nvery, very, good\r"\nu2,i2,2,"bad\nu3,i3,3,fine"\n', newline=""
    )
    log = read_log({"columns": MAPPING}, path)
    assert [(row["user_id"], row["problem"] and row["problem"].split(":")[0]) for row in log] == [
        ("u1", None), (None, SWALLOWED), ("u3", None),
    ]  # fmt: skip


def test_titles_have_line_breaks_and_stray_quotation_marks(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    (tmp_path / "items.csv").write_text('id,name,text\n1,"two\r\nlines",12" pan\n2,x,"""y"""\n', newline="")
    options = {"columns": MAPPING, "items": {"columns": {"item_id": "id", "title": "name"}}}
    tables = reading("files", options, interactions=tmp_path / "log.csv", items=tmp_path / "items.csv")
    assert [(row["title"], row["text"]) for row in rows(tables.items)] == [("two\r\nlines", '12" pan'), ("x", '"y"')]


def test_backslashes_escape_by_an_option_and_without_it_the_reason_names_it(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu,1,1\n")
    lines = ['1,"1\\" pan, red",B\\N', "2,pan\\, 2,\\N", '3,"C:\\new",B3', '4,"a\\\\",B4']
    (tmp_path / "items.csv").write_text("\n".join(["id,name,brand", *lines]))
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    items = {"columns": {"item_id": "id", "title": "name"}, "escape": "\\"}
    tables = reading("files", {"columns": MAPPING, "items": items}, **files)
    assert [(row["title"], row["brand"]) for row in rows(tables.items)] == [
        ('1" pan, red', "B\\N"), ("pan, 2", None), ("C:\\new", "B3"), ("a\\", "B4"),
    ]  # fmt: skip
    (tmp_path / "log.csv").write_text('who,what,when\nu,"the \\"1\\" thing",1\n')
    with pytest.raises(ValueError, match="quotation mark after a backslash, set option escape"):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")


def test_comments_are_left_out_by_an_option_and_without_it_the_error_names_it(tmp_path: Path, reading: Reading) -> None:
    (tmp_path / "log.csv").write_text('# exported\n# by "shop\nwho,what,when\nu1,#1,1\n# more\nu2,"i\n#2",2\nu3,i3,3')
    with pytest.raises(ValueError, match="`comment: '#'`"):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")
    log = rows(reading("files", {"columns": MAPPING, "comment": "#"}, interactions=tmp_path / "log.csv").interactions)
    assert [row["item_id"] for row in log if not row["problem"]] == ["#1", "i3"]


def test_parts_are_read_by_the_names_of_their_columns_and_empty_ones_are_skipped(
    tmp_path: Path, read_log: ReadLog, caplog: pytest.LogCaptureFixture
) -> None:
    contents = ["", "who,what,when\nu1,i1,1\n", "when,who,what\n", "when,what,who\n2,i2,u2\n", "\n"]
    paths = [tmp_path / f"part-{number}.csv" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content)
    with caplog.at_level("INFO"):
        log = read_log({"columns": MAPPING}, paths)
    assert [(row["user_id"], row["item_id"], row["timestamp"]) for row in log] == [("u1", "i1", 1), ("u2", "i2", 2)]
    assert "2 of 5 files are empty" in caplog.text
    paths[1].write_text("")
    paths[2].write_text("who,what,when\n")
    with pytest.raises(ValueError, match="is empty"):
        read_log({"columns": MAPPING}, [paths[0], paths[4]])


def test_a_part_without_header_is_named_and_the_advice_works(tmp_path: Path, read_log: ReadLog) -> None:
    paths = [tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "empty.csv"]
    for path, content in zip(paths, ["who,what,when\nu1,i1,1\n", "u2,i2,2\n", ""], strict=True):
        path.write_text(content)
    with pytest.raises(ValueError, match=r"b.csv has the columns u2, i2, 2.*`header: false` and `names: \[...\]`"):
        read_log({"columns": MAPPING}, paths)
    log = read_log({"columns": MAPPING, "header": False, "names": ["who", "what", "when"]}, paths)
    assert [(row["user_id"], row["problem"]) for row in log] == [("u1", None), ("u2", None)]


def test_a_row_in_place_of_the_header_is_recognised_and_the_advice_works(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text("1,1,5\n1,2,6\n")
    with pytest.raises(ValueError, match="no column 'who'; found: 1, 1_2, 5.*values of a row.*`header: false`"):
        read_log({"columns": MAPPING}, tmp_path / "log.csv")
    log = read_log({"columns": MAPPING, "header": False, "names": ["who", "what", "when"]}, tmp_path / "log.csv")
    assert [row["item_id"] for row in log] == ["1", "2"]


def test_columns_that_differ_by_case_are_chosen_by_their_exact_name(tmp_path: Path, read_log: ReadLog) -> None:
    path = tmp_path / "log.csv"
    path.write_text("WHO,Who,who,what,what_2,WHAT,when\nA,B,u1,i1,x,y,1\n")
    (row,) = read_log({"columns": MAPPING}, path)
    assert (row["user_id"], row["item_id"], row["timestamp"]) == ("u1", "i1", 1)
    with pytest.raises(ValueError, match="in upper and lower case: WHO, Who, who"):
        read_log({"columns": MAPPING | {"rating": "Who"}}, path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "delimiter '' must have one to four characters"),
        ({"delimiter": "\n"}, "and no line end"),
        ({"delimiter": '"'}, "quote '\"' must be one character that is not in the delimiter"),
        ({"quote": "''"}, "quote .* must be one character"),
        ({"escape": '"'}, "must not be the quote"),
    ],
)
def test_signs_that_cannot_separate_are_refused(
    tmp_path: Path, read_log: ReadLog, options: dict[str, str], message: str
) -> None:
    (tmp_path / "log.csv").write_text("who,what,when\nu1,i1,1\n")
    with pytest.raises(ValueError, match=message):
        read_log({"columns": MAPPING} | options, tmp_path / "log.csv")


def test_a_tab_may_be_written_as_in_single_quotes_of_yaml(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text("who\twhat\twhen\nu1\ti1\t1\n")
    assert [row["user_id"] for row in read_log({"columns": MAPPING, "delimiter": "\\t"}, tmp_path / "log.csv")] == [
        "u1"
    ]


def test_overlong_lines_and_headers(tmp_path: Path, read_log: ReadLog) -> None:
    path = tmp_path / "log.csv"
    long = "x" * 200_000
    path.write_text(f"{long},who,what,when\n{long},u1,i1,1\n{long * 90},u2,i2,2\n,u3,i3,3\n")
    log = read_log({"columns": MAPPING}, path)
    assert [(row["user_id"], (row["problem"] or "")[:24]) for row in log] == [
        ("u1", ""), (None, "line of more than 16 MiB"), ("u3", ""),
    ]  # fmt: skip
    path.write_text(f"{long * 6},who,what,when\n1,u1,i1,1\n")
    with pytest.raises(ValueError, match="first line of more than .* `header: false`"):
        read_log({"columns": MAPPING}, path)


def test_a_delimiter_of_several_characters_goes_with_quotation_marks(tmp_path: Path, read_log: ReadLog) -> None:
    (tmp_path / "log.csv").write_text('who::what::when\nu1::"i::""1"""::1\nu2::i2::2\n')
    log = read_log({"columns": MAPPING, "delimiter": "::"}, tmp_path / "log.csv")
    assert [row["item_id"] for row in log] == ['i::"1"', "i2"]


def test_a_few_lines_that_are_no_utf8_are_bad_and_many_are_another_encoding(tmp_path: Path, read_log: ReadLog) -> None:
    lines = [f"u{n},i{n},{n}".encode() for n in range(3000)]
    lines[2000] = b"u2000,i\xff,2000"
    (tmp_path / "log.csv").write_bytes(b"who,what,when\n" + b"\n".join(lines))
    log = read_log({"columns": MAPPING}, tmp_path / "log.csv")
    assert [row["problem"] for row in log if row["problem"]] == [
        "not UTF-8, see option encoding: 'u2000,i\ufffd,2000'"
    ] and len(log) == 3000
    lines[1000:1010] = [b"u,caf\xe9,1"] * 10
    (tmp_path / "log.csv").write_bytes(b"who,what,when\n" + b"\n".join(lines))
    with pytest.raises(ValueError, match="11 of 3,001 lines are not UTF-8.*`encoding: cp1252`"):
        read_log({"columns": MAPPING}, tmp_path / "log.csv")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r", "\r\n\n"])
def test_baskets_have_lines_of_any_length(tmp_path: Path, reading: Reading, ends: str) -> None:
    text = f"7 3 9{ends}8 {ends}# none{ends}9 {'4 ' * 2}4"
    (tmp_path / "log.txt").write_text(text, newline="")
    options = {"sequence_per_row": True, "format": "lines", "comment": "#"}
    log = log_tuples(reading("files", options, interactions=tmp_path / "log.txt"))
    assert [row[:2] for row in log if row[1]] == [("7", "3"), ("7", "9"), ("9", "4"), ("9", "4"), ("9", "4")]


@pytest.mark.parametrize(
    ("name", "damage"),
    [(f"log.{suffix}", "cut short") for suffix in ("csv.gz", "csv.zst", "parquet", "jsonl.gz")]
    + [("log.parquet", "something else")],
)
def test_damaged_files_are_refused(tmp_path: Path, reading: Reading, name: str, damage: str) -> None:
    path = tmp_path / name
    copy = duckdb.connect()
    rows_ = "SELECT i AS who, md5(i::VARCHAR) AS what, i AS when FROM range(20000) t(i)"
    copy.execute(f"COPY ({rows_}) TO '{path}'" + (" (FORMAT json, COMPRESSION gzip)" if "jsonl" in name else ""))
    path.write_bytes(path.read_bytes()[:-4000] if damage == "cut short" else b"who,what,when\n1,2,3\n")
    with pytest.raises(ValueError, match=f"cannot read .*{name}.*cut short"):
        reading("files", {"columns": MAPPING}, interactions=path)


@pytest.mark.parametrize("quoting", [csv.QUOTE_ALL, csv.QUOTE_MINIMAL])
@pytest.mark.parametrize("delimiter", [",", "::"])
def test_lines_with_quotes_around_whole_values_are_read_as_by_pythons_csv_and_by_duckdb(
    tmp_path: Path, con: Backend, quoting: int, delimiter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = random.Random(0)
    records = [["".join(draw.choices('ab,:" \u00e9', k=draw.randint(0, 6))) for _ in range(3)] for _ in range(300)]
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter[0], quoting=quoting).writerows([["x", "y", "z"], *records])
    content = text.getvalue()
    if delimiter == "::":
        records = [[value.replace(":", "") for value in record] for record in records]
        quoted = [['"' + value.replace('"', '""') + '"' for value in record] for record in records]
        content = "\n".join(delimiter.join(record) for record in [["x", "y", "z"], *quoted]) + "\n"
    (tmp_path / "log.csv").write_text(content, encoding="utf-8", newline="")
    monkeypatch.setattr(text_files, "_convert", None)  # only DuckDB reads
    source = text_files.delimited_source(con, [str(tmp_path / "log.csv")], dialect=Dialect(delimiter, '"'))
    actual = con.raw_sql(f"SELECT x, y, z FROM {source.sql}").fetchall()
    assert actual == [tuple(value or None for value in record) for record in records]
