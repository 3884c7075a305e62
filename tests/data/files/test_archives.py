"""Unpacking of hostile and damaged archives."""

from __future__ import annotations

import bz2
import os
import stat
import zipfile
from pathlib import Path

import pytest
from tests.data.conftest import zip_bytes

from recpipe.data.files import archives


@pytest.mark.parametrize("name", ["../log.csv", "/tmp/log.csv", "a/../../log.csv", "..\\log.csv", "C:\\log.csv"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.zip").write_bytes(zip_bytes({name: b"x"}))
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(ValueError, match="outside its folder"):
        archives.unpack(tmp_path / "bad.zip", folder, patterns=["*"])
    assert list(folder.iterdir()) == []


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        link = zipfile.ZipInfo("log.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="a link"):
        archives.unpack(tmp_path / "bad.zip", tmp_path, patterns=["log.csv"])


@pytest.mark.parametrize("kind", ["zip", "bz2"])
def test_zip_bombs_are_refused_by_their_unpacked_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(archives, "ALLOWED_BYTES", 1 << 20)
    zeros = bytes(5 << 20)
    path = tmp_path / f"log.csv.{kind}"
    path.write_bytes(zip_bytes({"log.csv": zeros}) if kind == "zip" else bz2.compress(zeros))
    with pytest.raises(ValueError, match="is refused"):
        archives.unpack(path, tmp_path, patterns=["log.csv"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing half-unpacked stays"


@pytest.mark.parametrize("kind", ["zip", "bz2"])
@pytest.mark.parametrize("damage", ["cut short", "something else", "flipped"])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"log.csv.{kind}"
    whole = zip_bytes({"log.csv": os.urandom(50_000)}) if kind == "zip" else bz2.compress(os.urandom(50_000))
    middle = whole[:20_000] + bytes([whole[20_000] ^ 255]) + whole[20_001:]
    path.write_bytes({"cut short": whole[:-9000], "something else": b"<html>", "flipped": middle}[damage])
    with pytest.raises(ValueError, match="not a whole"):
        archives.unpack(path, tmp_path, patterns=["log.csv"])
    assert not (tmp_path / "log.csv").exists()
