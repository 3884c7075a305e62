"""Digests: every flipped bit is refused, of files and of folders; files without a digest are read with a warning."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from tests.artefacts import flip_bit, forget_digest

from recpipe.data import digests
from recpipe.data.atomic import atomic_file, atomic_folder, remove, temporary_path
from recpipe.data.digests import (
    MANIFEST,
    DigestError,
    digest_path,
    file_digest,
    read_digests,
    verified,
    verify_folder,
    write_digests,
    write_manifest,
)

CONTENT = b"user,item\na,1\n" * 40


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with atomic_file(tmp_path / "log.csv") as part:
        part.write_bytes(CONTENT)
    return tmp_path / "log.csv"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "bundle") as part:
        (part / "weights").write_bytes(CONTENT)
        (part / "config.json").write_text("{}")
        write_manifest(part)
    return tmp_path / "bundle"


@pytest.mark.parametrize("seed", range(30))
def test_a_flipped_bit_of_a_file_is_refused_with_its_path_and_what_to_do(file, seed) -> None:
    assert verified(file) == file
    flip_bit(file, seed)
    with pytest.raises(
        DigestError, match=r"log.csv is damaged .*\.log.csv.sha256; run the pipeline .*delete that file"
    ):
        verified(file)


@pytest.mark.parametrize("seed", range(10))
def test_a_flipped_bit_of_the_digest_is_no_other_content(file, seed) -> None:
    flip_bit(digest_path(file), seed)
    with suppress(DigestError):
        assert verified(file).read_bytes() == CONTENT


def test_the_digest_is_the_one_of_other_programs(file) -> None:
    assert file_digest(file) == hashlib.sha256(CONTENT).hexdigest()
    check = subprocess.run(
        ["sha256sum", "-c", digest_path(file).name], cwd=file.parent, capture_output=True, check=False
    )
    assert check.returncode == 0


def test_an_empty_digest_file_is_no_digest_of_anything(file) -> None:
    digest_path(file).write_text("")
    with pytest.raises(DigestError, match="damaged"):
        verified(file)


def test_files_without_a_digest_are_read_with_one_warning(file, caplog, monkeypatch) -> None:
    forget_digest(file)
    other = file.with_name("other.csv")
    other.touch()
    monkeypatch.setattr(digests, "_unchecked", set())
    with caplog.at_level(logging.WARNING):
        assert [verified(path) for path in (file, file, other)] == [file, file, other]
    assert [record.message.split(",")[0] for record in caplog.records] == [f"{file} has no digest"]


def test_a_missing_file_is_left_to_its_reader(tmp_path) -> None:
    assert verified(tmp_path / "nothing") == tmp_path / "nothing"


def test_a_change_within_the_resolution_of_file_times_is_seen(file) -> None:
    before = file.stat()
    verified(file)
    flip_bit(file, 1)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DigestError):
        verified(file)


def test_a_settled_file_is_hashed_once(file, monkeypatch) -> None:
    monkeypatch.setattr(digests, "RECENT", -(10**18))
    verified(file)
    count = digests._sha256.cache_info().misses
    verified(file)
    assert digests._sha256.cache_info().misses == count


@pytest.mark.parametrize("is_renamed", [False, True])
def test_a_writer_that_is_killed_between_digest_and_rename_leaves_a_readable_file(file, is_renamed) -> None:
    """The two moments of a kill: both digests are written, and the file is the old or the new one."""
    new = b"other"
    both = [hashlib.sha256(new).hexdigest(), *(read_digests(file) or [])]
    write_digests(file, both, temporary_path(file, "part"))
    if is_renamed:
        file.write_bytes(new)
    assert verified(file).read_bytes() == (new if is_renamed else CONTENT)
    with atomic_file(file) as part:
        part.write_bytes(b"third")
    assert verified(file).read_bytes() == b"third"
    assert read_digests(file) == [hashlib.sha256(b"third").hexdigest()]


def test_the_digest_goes_with_its_file(file) -> None:
    remove(file)
    assert list(file.parent.iterdir()) == []


def test_a_file_that_people_edit_has_no_digest(file) -> None:
    with atomic_file(file, digest=False) as part:
        part.write_text("new")
    assert not digest_path(file).exists() and file.read_text() == "new"


def test_a_digest_goes_before_the_new_content_comes(file, monkeypatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"), atomic_file(file, digest=False) as part:
        part.write_text("new")
    assert verified(file).read_text() != "new"


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["weights", "config.json", MANIFEST])
def test_a_flipped_bit_in_any_file_of_a_folder_is_refused(folder, name, seed) -> None:
    assert verify_folder(folder)
    flip_bit(folder / name, seed)
    with pytest.raises(DigestError, match=name):
        verify_folder(folder)


def test_missing_and_foreign_files_of_a_folder_are_refused(folder) -> None:
    shutil.copy(folder / "weights", folder / "weights.bak")
    with pytest.raises(DigestError, match="weights.bak is not in manifest.json"):
        verify_folder(folder)
    (folder / "weights.bak").unlink()
    (folder / ".DS_Store").touch()
    assert verify_folder(folder)
    (folder / "weights").unlink()
    with pytest.raises(DigestError, match="weights is missing"):
        verify_folder(folder)


def test_a_manifest_of_a_later_version_is_refused(folder) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, "format": 2}))
    with pytest.raises(DigestError, match="its format is 2, this version reads 1"):
        verify_folder(folder)


def test_a_folder_without_a_manifest_says_so(folder) -> None:
    forget_digest(folder)
    assert not verify_folder(folder)
