"""Compressed files and archives: kinds, damage, and archives that are refused."""

from __future__ import annotations

import bz2
import gzip
import io
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from tests.data.conftest import zip_bytes

from recpipe.data.files import archives as module
from recpipe.data.files.archives import compression, read_verified, unpack

LOG = b"user,item\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 10007) for n in range(5_000))


def parquet_bytes(**options: Any) -> bytes:
    out = io.BytesIO()
    table = pa.table({"user": [f"u{n % 700}" for n in range(5_000)], "item": list(range(5_000))})
    pq.write_table(table, out, row_group_size=2_000, **options)
    return out.getvalue()


KINDS = {
    "gzip": gzip.compress(LOG),
    "bzip2": bz2.compress(LOG),
    "zstd": zstandard.ZstdCompressor(write_checksum=True).compress(LOG),
    "zip": zip_bytes({"log.csv": LOG}),
    "parquet": parquet_bytes(write_page_checksum=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_of_a_file_is_told_by_its_content(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(KINDS[kind])
    assert compression(path) == read_verified(path, []) == kind


def test_files_without_checksums_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for content in (LOG, zstandard.ZstdCompressor(write_checksum=False).compress(LOG), parquet_bytes()):
        path.write_bytes(content)
        assert read_verified(path, []) is None


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "zstd"])
@pytest.mark.parametrize("end", ["cut in the first member", "cut in the second", "cut between", "followed by text"])
def test_all_members_are_verified(tmp_path: Path, kind: str, end: str) -> None:
    one = KINDS[kind]
    lengths = {"cut in the first member": len(one) - 9, "cut in the second": 2 * len(one) - 1, "cut between": len(one)}
    whole = one + one
    path = tmp_path / "log.csv.gz"
    path.write_bytes(whole)
    assert read_verified(path, []) == kind
    path.write_bytes(whole[: lengths[end]] if end in lengths else whole + b"1,2\n")
    if end == "cut between":
        assert read_verified(path, []) == kind, "as good as a file of one member"
    else:
        with pytest.raises(ValueError, match=rf"log\.csv\.gz is damaged or cut short: {kind} reports"):
            read_verified(path, [])


@pytest.mark.parametrize("name", ["log.csv.gz", "log.csv.bz2", "LOG.CSV.ZST", "log.zip"])
def test_a_compressed_name_without_compressed_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(LOG)
    assert read_verified(path, []) is None, "as servers send that unpack on their own"
    path.write_bytes(b"\x1e" + KINDS["gzip"][1:])
    with pytest.raises(ValueError, match="neither (gzip|bzip2|zstd|zip) nor UTF-8 text"):
        read_verified(path, [])


def test_the_output_of_a_bomb_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "log.csv.bz2"
    path.write_bytes(bz2.compress(bytes(200 << 20)))
    before = pa.total_allocated_bytes()
    assert path.stat().st_size < 1000 and read_verified(path, []) == "bzip2"
    assert pa.total_allocated_bytes() - before < 8 << 20


@pytest.mark.parametrize(
    "members",
    [
        {"set/log.csv": b"a", "set/LOG.csv": b"b"},
        {"log.csv": b"a", "log.csv/log.csv": b"b"},
        {"a/log.csv": b"a", "A/other.csv": b"b", "x.csv": b"c"},
    ],
)
def test_names_that_clash_on_some_disks_are_refused(tmp_path: Path, members: dict[str, bytes]) -> None:
    (tmp_path / "bad.zip").write_bytes(zip_bytes(members))
    with pytest.raises(ValueError, match="twice, by upper and lower case or as a file and a folder"):
        unpack(tmp_path / "bad.zip", tmp_path, patterns=["*.csv"])
    assert unpack(tmp_path / "bad.zip", tmp_path, patterns=["x.csv"]) in ([], [tmp_path / "x.csv"])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused_where_the_contents_differ(tmp_path: Path) -> None:
    for second, is_refused in ((LOG, False), (LOG[::-1], True)):
        with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
            archive.writestr("log.csv", LOG)
            archive.writestr("log.csv", second)
        if is_refused:
            with pytest.raises(ValueError, match=r"log\.csv twice, with different contents: unpack it by hand"):
                unpack(tmp_path / "log.zip", tmp_path, patterns=["log.csv"])
        else:
            assert unpack(tmp_path / "log.zip", tmp_path, patterns=["log.csv"])[0].read_bytes() == LOG


@pytest.mark.parametrize("name", ["../log.csv", "/log.csv", "a/../../log.csv", "..\\log.csv", "C:\\log.csv"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.zip").write_bytes(zip_bytes({name: b"x"}))
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(ValueError, match="outside its folder"):
        unpack(tmp_path / "bad.zip", folder, patterns=["*"])
    assert list(folder.iterdir()) == []


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        link = zipfile.ZipInfo("log.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="a link"):
        unpack(tmp_path / "bad.zip", tmp_path, patterns=["log.csv"])


@pytest.mark.parametrize("kind", ["zip", "bz2"])
def test_zip_bombs_are_refused_by_their_unpacked_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "ALLOWED_BYTES", 1 << 20)
    zeros = bytes(5 << 20)
    path = tmp_path / f"log.csv.{kind}"
    path.write_bytes(zip_bytes({"log.csv": zeros}) if kind == "zip" else bz2.compress(zeros))
    with pytest.raises(ValueError, match="is refused"):
        unpack(path, tmp_path, patterns=["log.csv"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing half-unpacked stays"


@pytest.mark.parametrize("kind", ["zip", "bz2"])
@pytest.mark.parametrize("damage", ["cut short", "something else", "flipped"])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"log.csv.{kind}"
    whole = zip_bytes({"log.csv": os.urandom(50_000)}) if kind == "zip" else bz2.compress(os.urandom(50_000))
    middle = whole[:20_000] + bytes([whole[20_000] ^ 255]) + whole[20_001:]
    path.write_bytes({"cut short": whole[:-9000], "something else": b"<html>", "flipped": middle}[damage])
    with pytest.raises(ValueError, match="not a whole"):
        unpack(path, tmp_path, patterns=["log.csv"])
    assert not (tmp_path / "log.csv").exists()
