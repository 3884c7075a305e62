"""Digests of artefacts: a damaged or foreign file is refused when it is read.

A file has its SHA-256 digest in a hidden file beside it, ``.<name>.sha256``, which ``sha256sum -c`` reads too. A folder
has ``manifest.json``, with size and digest of each of its files. ``recpipe.data.atomic`` writes the digests of files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
HINT = "run the pipeline that writes it again"
RECENT = 2 * 10**9  # nanoseconds in which a file can change without a new time of change
_unchecked: set[Path] = set()  # files without a digest that this process read


class DigestError(ValueError):
    """A file or folder differs from what was written."""


def verified(path: Path, hint: str = HINT) -> Path:
    """Return ``path`` after a check of its digest. Raises DigestError, with ``hint``, for a damaged file.

    A file without a digest, of an earlier version or made by hand, is accepted, with one warning per process. A missing
    file is left to the reader.
    """
    path = Path(path)
    if not path.is_file():
        return path
    with folder_lock(path.parent, exclusive=False):
        digests = read_digests(path)
        is_intact = digests is not None and file_digest(path) in digests
    if digests is None:
        _warn_unchecked(path)
    elif not is_intact:
        raise DigestError(
            f"{path} is damaged or was changed by hand: its content differs from the digest in "
            f"{digest_path(path).name}; {hint}, or delete that file to read it as it is"
        )
    return path


def _warn_unchecked(path: Path) -> None:
    reason = "has no digest, as of an earlier version or made by hand: read without a check for damage"
    if not _unchecked:
        log.warning("%s %s; so may be other files", path, reason)
    elif path not in _unchecked:
        log.debug("%s %s", path, reason)
    _unchecked.add(path)


def manifest(files: Mapping[str, Path]) -> str:
    """Return the text of a manifest: size and digest of each file by name."""
    entries = {name: {"size": file.stat().st_size, "sha256": file_digest(file)} for name, file in files.items()}
    return json.dumps({"format": 1, "files": entries}, indent=1)


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files of ``folder``; call it after all other writes."""
    (folder / MANIFEST).write_text(manifest(folder_files(folder)), encoding="utf-8")


def verify_folder(folder: Path, hint: str = HINT, *, allow_others: bool = False) -> bool:
    """Check a folder by its manifest; return whether it has one.

    Raises DigestError, with ``hint``, for files that are damaged, missing or, without ``allow_others``, not in the
    manifest.
    """
    if not (folder / MANIFEST).is_file():
        return False
    if allow_others:
        hint = f"{hint}, or delete {MANIFEST} to read all files as they are"
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != 1:
            raise ValueError(f"its format is {content['format']!r}, this version reads 1")
        entries = {str(name): (int(entry["size"]), entry["sha256"]) for name, entry in content["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DigestError(f"{folder / MANIFEST} is damaged ({error}); {hint}") from error
    files = {name: folder / name for name in entries if (folder / name).is_file()}
    if not allow_others:
        files |= folder_files(folder)
    for name in sorted(entries.keys() | files.keys()):
        if name not in files:
            raise DigestError(f"{folder / name} is missing, which {MANIFEST} names; {hint}")
        if name not in entries:
            raise DigestError(f"{folder / name} is not in {MANIFEST}: delete it, or {hint}")
        size, digest = entries[name]
        if files[name].stat().st_size != size or file_digest(files[name]) != digest:
            raise DigestError(
                f"{folder / name} is damaged or was changed by hand: its content differs from {MANIFEST}; {hint}"
            )
    return True


def folder_files(folder: Path) -> dict[str, Path]:
    """Return the files of a folder by name, without the manifest and hidden ones."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {name: path for path in paths if (name := path.relative_to(folder).as_posix()) != MANIFEST}


def file_digest(path: Path) -> str:
    """Return the SHA-256 digest in hex, computed once per process while the file does not change."""
    stat = path.stat()
    key = (str(path.absolute()), stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    is_recent = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) < RECENT
    return _sha256.__wrapped__(*key) if is_recent else _sha256(*key)


@lru_cache(maxsize=4096)
def _sha256(path: str, *state: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_path(path: Path) -> Path:
    """Return the file that holds the digest of a file."""
    return path.with_name(f".{path.name}.sha256")


def read_digests(path: Path) -> list[str] | None:
    """Return the digests of a file: one, or more where a writer was killed; None without any."""
    try:
        lines = digest_path(path).read_bytes().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return None
    return [line.partition(" ")[0] for line in lines]


def write_digests(path: Path, digests: list[str], temporary: Path) -> None:
    """Replace the digests of a file by way of the file ``temporary``."""
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.writelines(f"{digest}  {path.name}\n" for digest in digests)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, digest_path(path))
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def folder_lock(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Lock a folder while a file and its digest change together; no lock where the file system has none."""
    descriptor = None
    try:
        if fcntl is not None:
            with suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY)
                fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for a child process that was forked meanwhile
            os.close(descriptor)
