"""Safe unpacking of zip and bz2 archives: nothing outside the folder, no links, a size limit, all files or none."""

from __future__ import annotations

import bz2
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

from recpipe.progress import BYTES, progress

SUFFIXES = (".zip", ".bz2")
CHUNK = 1 << 20
MAX_GROWTH = 100  # unpacked size over archive size: ratings have a factor of 5, zip bombs of 1000
ALLOWED_BYTES = 64 << 20  # unpacked size that is allowed for every archive


def unpack(archive: Path, folder: Path, *, patterns: Iterable[str]) -> list[Path]:
    """Unpack the members of a zip that match a name or pattern, and READMEs and licences; or the file of a bz2.

    A folder that contains all members is left out of the paths. Raises ValueError for a damaged archive, a member
    outside the folder, a link, a password, and more bytes than ``MAX_GROWTH`` times the archive's.
    """
    limit = max(ALLOWED_BYTES, MAX_GROWTH * archive.stat().st_size)
    with TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
        try:
            if archive.suffix == ".bz2":
                paths = [Path(archive.stem)]
                with bz2.open(archive) as stream:
                    _copy(stream, Path(temporary) / archive.stem, limit, label=archive.name)
            else:
                patterns = [*patterns, "README*", "LICENSE*", "LICENCE*"]
                paths = _unzip(archive, Path(temporary), patterns, limit)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(
                f"{archive} is not a whole {archive.suffix[1:]} file ({error}): delete it and fetch it again"
            ) from error
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(temporary) / path, folder / path)
    return [folder / path for path in paths]


def _unzip(archive: Path, folder: Path, patterns: list[str], limit: int) -> list[Path]:
    paths = []
    with zipfile.ZipFile(archive) as packed:
        members = [member for member in packed.infolist() if not member.is_dir()]
        targets = {member.filename: _safe_path(member, archive) for member in members}
        roots = {target.parts[0] for target in targets.values() if len(target.parts) > 1}
        has_root = len(roots) == 1 and all(len(target.parts) > 1 for target in targets.values())
        for member in members:
            target = targets[member.filename]
            inner = PurePosixPath(*target.parts[1:]) if has_root else target
            if any(fnmatch(inner.name, pattern) or fnmatch(str(inner), pattern) for pattern in patterns):
                (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as stream:
                    limit -= _copy(stream, folder / inner, limit, label=inner.name, total=member.file_size)
                paths.append(Path(inner))
    return paths


def _safe_path(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or not path.parts:
        raise ValueError(f"{archive} is refused: it holds {member.filename!r}, which would land outside its folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{archive} is refused: it holds a link, {member.filename!r}")
    if member.flag_bits & 1:
        raise ValueError(f"{archive} is locked with a password: unpack it by hand beside it")
    return path


def _copy(stream: IO[bytes] | Any, path: Path, limit: int, *, label: str, total: int | None = None) -> int:
    """Copy a stream and return its size, counted in bytes read: the size in a header may be wrong."""
    size = 0
    with path.open("wb") as out, progress(total, f"unpack {label}", unit=BYTES) as bar:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            if size > limit:
                raise ValueError(
                    f"{label} is refused: more than {limit:,} bytes come out, {MAX_GROWTH} times its archive"
                )
            out.write(chunk)
            bar.add(len(chunk))
    return size
