"""Unpacking what somebody else packed: nothing outside the folder, no links, no more than a sane size, all
or nothing.
"""

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

CHUNK = 1 << 20
GROWTH = 100  # times its size that an archive may hold: ratings pack to a fifth, bombs to a thousandth
SMALL = 64 << 20  # bytes that any archive may hold

SUFFIXES = (".zip", ".bz2")


def unpack(archive: Path, folder: Path, *, wanted: Iterable[str]) -> list[Path]:
    """Unpack the wanted members (names or patterns), and any README and licence, of a zip; or the one file
    of a bz2.

    A directory that holds everything in the zip is left out of the paths. ValueError: not a whole archive,
    a member that would land outside the folder, a link, a password, more bytes than `GROWTH` times the
    archive.
    """
    limit = max(SMALL, GROWTH * archive.stat().st_size)
    with TemporaryDirectory(prefix=".unpacking-", dir=folder) as scratch:
        try:
            if archive.suffix == ".bz2":
                paths = [Path(archive.stem)]
                with bz2.open(archive) as packed:
                    _copy(packed, Path(scratch) / archive.stem, limit, label=archive.name)
            else:
                paths = _unzip(archive, Path(scratch), [*wanted, "README*", "LICENSE*", "LICENCE*"], limit)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ValueError(
                f"{archive} is not a whole {archive.suffix[1:]} file ({error}): delete it and fetch it again"
            ) from error
        for path in paths:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(scratch) / path, folder / path)
    return [folder / path for path in paths]


def _unzip(archive: Path, scratch: Path, wanted: list[str], limit: int) -> list[Path]:
    paths = []
    with zipfile.ZipFile(archive) as packed:
        members = [member for member in packed.infolist() if not member.is_dir()]
        targets = {member.filename: _target(member, archive) for member in members}
        roots = {target.parts[0] for target in targets.values() if len(target.parts) > 1}
        single = len(roots) == 1 and all(len(target.parts) > 1 for target in targets.values())
        for member in members:
            target = targets[member.filename]
            inner = PurePosixPath(*target.parts[1:]) if single else target
            if any(fnmatch(inner.name, pattern) or fnmatch(str(inner), pattern) for pattern in wanted):
                (scratch / inner).parent.mkdir(parents=True, exist_ok=True)
                with packed.open(member) as stream:
                    limit -= _copy(stream, scratch / inner, limit, label=inner.name, total=member.file_size)
                paths.append(Path(inner))
    return paths


def _target(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or not path.parts:
        raise ValueError(
            f"{archive} is refused: it holds {member.filename!r}, which would land outside its folder"
        )
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{archive} is refused: it holds a link, {member.filename!r}")
    if member.flag_bits & 1:
        raise ValueError(f"{archive} is locked with a password: unpack it by hand beside it")
    return path


def _copy(stream: IO[bytes] | Any, path: Path, limit: int, *, label: str, total: int | None = None) -> int:
    """Copy counting the bytes that really come, since what a header says of them may be a lie."""
    written = 0
    with (
        path.open("wb") as out,
        progress(total, f"unpack {label}", unit=BYTES) as bar,
    ):
        while chunk := stream.read(CHUNK):
            written += len(chunk)
            if written > limit:
                raise ValueError(
                    f"{label} is refused: more than {limit:,} bytes come out, {GROWTH} times its archive"
                )
            out.write(chunk)
            bar.add(len(chunk))
    return written
