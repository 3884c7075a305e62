"""Atomic writes: files and folders that appear under their final name only when complete, with a digest.

Temporary names hold the process that writes, so that leftovers of dead processes are removed by the next write.
"""

from __future__ import annotations

import ctypes
import errno
import glob
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from recpipe.data.digests import (
    MANIFEST,
    digest_path,
    file_digest,
    folder_files,
    folder_lock,
    read_digests,
    verified,
    write_digests,
)

log = logging.getLogger(__name__)

LATEST = "latest.json"
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
NO_EXCHANGE = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM}
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # of safetensors and polars
TEMPORARY = re.compile(r"^\..+\.(?:(?P<host>[0-9a-f]{6})-(?P<pid>\d+)-(?P<start>\d+)-)?[0-9a-f]{8}\.(?:part|old)$")
ABANDONED = 86_400  # seconds without a change after which a temporary file of another machine is a leftover
DATE = re.compile(r"\d{4}-\d\d-\d\dT")
PERMISSIONS = 0o777


@contextmanager
def atomic_file(path: Path, *, digest: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, which replaces ``path`` if the block raises nothing.

    ``digest``: whether readers check the file (``recpipe.data.digests.verified``). Raises OSError with the name of
    ``path`` where the disk is full or read-only.
    """
    path = Path(path)
    temporary = temporary_path(path, "part")
    try:
        with _named_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            clean_leftovers(path.parent)
            temporary.touch()
            mode = temporary.stat().st_mode & PERMISSIONS  # by the umask; some libraries write 0600
            yield temporary
            temporary.chmod(mode)
            _sync(temporary)
            with folder_lock(path.parent, exclusive=True):
                _replace_file(temporary, path, digest=digest)
    finally:
        with suppress(OSError):  # of a read-only disk, which would hide the error
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Folder version of ``atomic_file``: at every moment the old folder or the new one is complete.

    The block ends with ``recpipe.data.digests.write_manifest``. Where the file system cannot exchange two folders, a
    killed process may leave the old one under a temporary name; ``recover`` restores it at the next read or write.
    """
    path = Path(path)
    temporary, old = temporary_path(path, "part"), temporary_path(path, "old")
    try:
        with _named_disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            recover(path)
            clean_leftovers(path.parent)
            temporary.mkdir()
            yield temporary
            _set_modes(temporary)
            if not path.exists():
                os.replace(temporary, path)
            elif not _exchange(temporary, path):
                os.replace(path, old)
                os.replace(temporary, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file with its digest."""
    path.unlink(missing_ok=True)
    digest_path(path).unlink(missing_ok=True)


def recover(path: Path) -> None:
    """Restore a folder that a killed process had moved away to replace it."""
    if path.exists() or not path.parent.is_dir():
        return
    candidates = [old for old in path.parent.glob(f".{glob.escape(path.name)}.*.old") if _is_leftover(old)]
    if candidates:
        os.replace(max(candidates, key=lambda old: old.stat().st_mtime), path)


@cache
def clean_leftovers(folder: Path) -> int:
    """Delete temporary files and folders of dead processes in ``folder``, once per process; return their number."""
    count = 0
    for entry in [entry for entry in folder.iterdir() if TEMPORARY.match(entry.name)]:
        target = folder / entry.name[1:].rsplit(".", 2)[0]
        if _is_leftover(entry) and (entry.suffix == ".part" or target.exists()):
            log.info("deleting %s, which a killed process left", entry)
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
            count += 1
    return count


def clean_versions(path: Path) -> None:
    """Delete what killed writers left of other versions of ``path``."""
    for folder in (entry for entry in path.glob("*") if entry.is_dir()):
        if clean_leftovers(folder):
            with suppress(OSError):  # not empty
                folder.rmdir()


def record_version(path: Path, version: str) -> None:
    """Record that ``version`` of ``path`` was written last.

    Versions are ``<path>/<version>/<name of path>``, and their names times, as in Kedro.
    """
    others = [name for name in version_names(path) if name != version]
    with atomic_file(path / LATEST) as part:
        part.write_text(json.dumps({"version": version, "others": others}), encoding="utf-8")


def latest_version(path: Path) -> Path | None:
    """Return ``<path>/<version>/<name>`` of the version that was written last, None where there is none.

    A version that came after the record, as by a copy, counts by its name. Clocks may have been wrong: names in the
    future count only where there are no others.
    """
    names = version_names(path)
    if not names:
        return None
    record = path / LATEST
    if record.is_file():
        latest = json.loads(verified(record, "delete it to read the latest by name").read_text(encoding="utf-8"))
        if latest["version"] in names:
            names = [name for name in names if name not in latest["others"]]
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H.%M.%S.%f")
    past = [name for name in names if not (DATE.match(name) and name > now)]
    if past and len(past) < len(names):
        _warn_of_future(path, max(names), max(past))
    return path / max(past or names) / path.name


@cache
def _warn_of_future(path: Path, future: str, past: str) -> None:
    """Log once that a version is named by a time to come; the service looks for versions every few seconds."""
    log.warning("%s has versions of the future, such as %s; %s is read", path, future, past)


def versions_newest_first(path: Path) -> list[Path]:
    """Return ``<path>/<version>/<name>`` of all versions: the latest, see ``latest_version``, then by falling name."""
    latest = latest_version(path)
    others = [path / name / path.name for name in reversed(version_names(path))]
    return [] if latest is None else [latest, *(file for file in others if file != latest)]


def version_names(path: Path) -> list[str]:
    """Return the names of all versions of ``path``, sorted."""
    return sorted(file.parent.name for file in path.glob(f"*/{glob.escape(path.name)}"))


def temporary_path(path: Path, end: str) -> Path:
    """Return a hidden path beside ``path`` whose name holds this process."""
    mark = f"{_host()}-{os.getpid()}-{process_start(os.getpid())}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{mark}.{end}")


def process_start(pid: int) -> int | None:
    """Return the start of a process in clock ticks since boot, 0 where the system does not say, None if it is dead.

    A zombie, which has ended and whose parent has not asked how, is dead.
    """
    with suppress(OSError, IndexError, ValueError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    if os.name != "posix":  # os.kill would end it there
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # of another user
        pass
    return 0


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _is_leftover(path: Path) -> bool:
    """Return whether the process that wrote a temporary file is dead; for those of other machines, its age decides."""
    match = TEMPORARY.match(path.name)
    if match is None:
        return False
    if match["host"] == _host():
        return process_start(int(match["pid"])) != int(match["start"])
    try:
        return time.time() - path.stat().st_mtime > ABANDONED
    except FileNotFoundError:
        return False


def _replace_file(temporary: Path, path: Path, *, digest: bool) -> None:
    """Rename a file; until that is done, its digests are those of the old and of the new content."""
    if not digest:
        digest_path(path).unlink(missing_ok=True)  # first: it would refuse the new content
        os.replace(temporary, path)
        return
    new, old = file_digest(temporary), list[str]()
    if path.is_file():
        digests = read_digests(path)
        old = [file_digest(path)] if digests is None else digests
    part = temporary_path(digest_path(path), "part")
    write_digests(path, [new, *old], part)
    os.replace(temporary, path)
    if old:
        write_digests(path, [new], part)


def _set_modes(folder: Path) -> None:
    """Give all files of a folder the mode of the umask, and sync them: safetensors writes 0600."""
    probe = folder / ".mode"
    probe.touch()
    mode = probe.stat().st_mode & PERMISSIONS
    probe.unlink()
    manifest = [file] if (file := folder / MANIFEST).is_file() else []
    for path in [*folder_files(folder).values(), *manifest]:
        path.chmod(mode)
        _sync(path)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False where kernel or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _named_disk_errors(path: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk, of any library, into an OSError that names ``path``."""
    try:
        yield
    except Exception as error:
        code = error.errno if isinstance(error, OSError) else None
        other = getattr(error, "filename", None)
        if code is None and (match := RUST_ERROR.search(str(error))):
            code = int(match[1])
        if code not in DISK_ERRORS or (other is not None and path.parent not in (Path(other), *Path(other).parents)):
            raise
        raise OSError(code, f"{os.strerror(code)}; nothing was written", str(path)) from error
