"""Compression and encodings, open quotation marks, damaged files, overlong lines."""

from __future__ import annotations

import bz2
import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest
import zstandard
from ibis.backends.duckdb import Backend
from tests.data.conftest import MAPPING, Reading, log_tuples, rows, zip_bytes

from recpipe.data.engines import connect
from recpipe.data.files.text_files import readable_paths

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


def test_an_open_quotation_mark_is_an_error(tmp_path: Path, reading: Reading) -> None:
    mark = {500: '"'}
    text = "who,what,when\n" + "".join(f"u{n},{mark.get(n, '')}i{n},{n}\n" for n in range(1000))
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(ValueError, match=r"not closed.*`quote: ''`"):
        reading("files", {"columns": MAPPING}, interactions=tmp_path / "log.csv")
    tables = reading("files", {"columns": MAPPING, "quote": ""}, interactions=tmp_path / "log.csv")
    log = rows(tables.interactions)
    assert len(log) == 1000 and log[500]["item_id"] == '"i500'


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
