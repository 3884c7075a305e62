"""Atomic writes: the old or the new content is whole at every moment, whoever is killed; leftovers are cleaned."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.artefacts import names

from recpipe.data import atomic
from recpipe.data.atomic import (
    atomic_file,
    atomic_folder,
    clean_leftovers,
    clean_versions,
    latest_version,
    process_start,
    record_version,
    recover,
    temporary_path,
)
from recpipe.data.digests import verify_folder, write_manifest


@pytest.fixture(autouse=True)
def other_process() -> Iterator[None]:
    """What a process does once, it does in each test."""
    clean_leftovers.cache_clear()
    yield
    clean_leftovers.cache_clear()


def write(folder: Path, content: str) -> None:
    with atomic_folder(folder) as part:
        (part / "a").write_text(content)
        write_manifest(part)


def content(folder: Path) -> str:
    assert verify_folder(folder)
    return (folder / "a").read_text()


def test_a_process_that_has_ended_and_is_not_waited_for_is_dead():
    process = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    assert process_start(process.pid) is not None
    deadline = time.monotonic() + 20
    while process_start(process.pid) is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process_start(process.pid) is None  # before `wait`
    process.wait()


def dead_name(path: Path, end: str) -> Path:
    """A temporary name of a process that does not live any more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    start = process_start(os.getpid())
    name = temporary_path(path, end).name.replace(f"-{os.getpid()}-{start}-", f"-{process.pid}-{start}-")
    return path.with_name(name)


@pytest.fixture(params=["exchange", "two renames"])
def rename(request, monkeypatch) -> str:
    """Both ways to replace a folder."""
    if request.param == "two renames":
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    return request.param


def test_a_folder_is_replaced_and_leaves_nothing_else(tmp_path, rename) -> None:
    for text in ("old", "new"):
        write(tmp_path / "b", text)
        assert content(tmp_path / "b") == text and names(tmp_path) == ["b"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", [1, 2])
def test_a_rename_that_fails_or_is_interrupted_leaves_the_old_folder(tmp_path, monkeypatch, error, moment) -> None:
    write(tmp_path / "b", "old")
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            calls.append(source)
            if len(calls) == moment:
                raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        write(tmp_path / "b", "new")
    assert content(tmp_path / "b") == "old" and names(tmp_path) == ["b"]


def test_a_process_killed_between_two_renames_leaves_the_old_folder_for_the_next_read(tmp_path) -> None:
    write(tmp_path / "b", "old")
    os.replace(tmp_path / "b", dead_name(tmp_path / "b", "old"))
    dead_name(tmp_path / "b", "part").mkdir()
    recover(tmp_path / "b")
    assert content(tmp_path / "b") == "old"
    clean_leftovers.cache_clear()
    write(tmp_path / "b", "new")
    assert content(tmp_path / "b") == "new" and names(tmp_path) == ["b"]


def test_the_next_write_restores_the_old_folder_before_it_begins(tmp_path) -> None:
    write(tmp_path / "b", "old")
    os.replace(tmp_path / "b", dead_name(tmp_path / "b", "old"))
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "b"):
        raise RuntimeError
    assert content(tmp_path / "b") == "old" and names(tmp_path) == ["b"]


def test_leftovers_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path) -> None:
    dead, live = dead_name(tmp_path / "x.json", "part"), temporary_path(tmp_path / "x.json", "part")
    legacy = [tmp_path / f".x.json.{n * 8}.part" for n in "12"]  # of earlier versions, without a process
    other_file, old = tmp_path / ".note.part", dead_name(tmp_path / "lost", "old")
    for file in (dead, live, *legacy, other_file):
        file.touch()
    old.mkdir()
    os.utime(legacy[0], (time.time() - 10**6,) * 2)
    with atomic_file(tmp_path / "y.json") as part:
        part.touch()
    assert names(tmp_path) == sorted(["y.json", live.name, legacy[1].name, other_file.name, old.name])


def test_a_process_with_the_id_of_a_dead_one_is_another(tmp_path) -> None:
    start = process_start(os.getpid())
    mine = temporary_path(tmp_path / "x", "part")
    earlier = mine.with_name(mine.name.replace(f"-{start}-", f"-{(start or 0) + 1}-"))
    for file in (mine, earlier):
        file.touch()
    clean_leftovers(tmp_path)
    assert names(tmp_path) == [mine.name]


def test_files_and_folders_have_the_mode_of_the_umask(tmp_path) -> None:
    """safetensors writes 0600."""
    tensors = {"t": np.zeros(3)}
    umask = os.umask(0o027)
    try:
        with atomic_file(tmp_path / "f.safetensors") as part:
            save_file(tensors, part)
        with atomic_folder(tmp_path / "folder") as part:
            save_file(tensors, part / "g.safetensors")
            write_manifest(part)
    finally:
        os.umask(umask)
    files = [tmp_path / "f.safetensors", *(tmp_path / "folder").iterdir()]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o640}
    assert names(tmp_path / "folder") == ["g.safetensors"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_named_with_the_file_and_changes_nothing(tmp_path, error) -> None:
    path = tmp_path / "f"
    with atomic_file(path) as part:
        part.write_text("old")
    with pytest.raises(OSError, match=f"No space left on device; nothing was written: '{path}'"), atomic_file(path):
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["f"]


def test_a_read_only_disk_is_named_with_the_file(tmp_path, monkeypatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for method in ("touch", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    message = f"Read-only file system; nothing was written: '{tmp_path / 'f'}'"
    with pytest.raises(OSError, match=message), atomic_file(tmp_path / "f"):
        pass


def test_an_error_of_another_file_keeps_its_name(tmp_path) -> None:
    with pytest.raises(PermissionError, match="/raw/log.csv"), atomic_file(tmp_path / "f"):
        raise PermissionError(errno.EACCES, "Permission denied", "/raw/log.csv")


def versions(tmp_path: Path, *labels: str) -> Path:
    for label in labels:
        (tmp_path / "bundle" / label / "bundle").mkdir(parents=True)
    return tmp_path / "bundle"


def moment(**shift: float) -> str:
    return (datetime.now(UTC) + timedelta(**shift)).strftime("%Y-%m-%dT%H.%M.%S.%f")[:-3] + "Z"


def latest(path: Path) -> str | None:
    file = latest_version(path)
    return None if file is None else file.parent.name


def test_the_latest_version_is_the_one_that_was_written_last_whatever_the_clock_said(tmp_path) -> None:
    earlier, later = moment(days=-2), moment(days=-1)
    path = versions(tmp_path, earlier, later, "2999-01-01T00.00.00.000Z")
    record_version(path, earlier)
    assert latest(path) == earlier


def test_a_version_that_was_copied_there_later_counts_by_its_name(tmp_path) -> None:
    first, second, third, future = (moment(days=days) for days in (-3, -2, -1, 1))
    path = versions(tmp_path, first, second)
    record_version(path, second)
    versions(tmp_path, third)
    assert latest(path) == third
    versions(tmp_path, future)
    assert latest(path) == third
    (path / second / "bundle").rmdir()
    assert latest(path) == third


def test_without_a_record_versions_of_the_future_count_only_alone(tmp_path) -> None:
    assert latest(tmp_path / "bundle") is None
    future = moment(hours=1)
    path = versions(tmp_path, future)
    assert latest(path) == future
    past = moment(hours=-1)
    versions(tmp_path, past)
    assert latest(path) == past


def test_a_killed_version_is_cleaned_before_the_next_is_written(tmp_path) -> None:
    path = versions(tmp_path, "v2")
    (path / "v1").mkdir()
    dead_name(path / "v1" / "bundle", "part").mkdir()
    clean_versions(path)
    assert names(path) == ["v2"]
