"""Bytes and text of raw files: decompressed by content, decoded, as paths that DuckDB can read.

Compression is gzip, bz2, zstd, or a zip of one file. Encodings are those of Python's ``codecs``.
"""

from __future__ import annotations

import codecs
import re
import shutil
import weakref
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import IO, cast

import ibis

from recpipe.data.files.archives import ALLOWED_BYTES, CHUNK, DAMAGE_ERRORS, MAX_GROWTH, compression, decompressed
from recpipe.progress import BYTES, progress

NO_TEXT = {
    b"PAR1": "a Parquet file", b"\xd0\xcf\x11\xe0": "an Excel file", b"SQLite format 3": "a SQLite database",
    b"\xfd7zXZ\0": "an xz file", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a rar archive",
    b"\x04\x22\x4d\x18": "an lz4 file",
}  # fmt: skip
PACKED = (b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"BZh91AY")
C1_CONTROL = re.compile("[\x80-\x9f]")
DUCKDB_SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}  # by which DuckDB knows a compressed file


def readable_paths(con: ibis.BaseBackend, paths: Sequence[str], *, encoding: str = "utf-8") -> list[str]:
    """Return paths that DuckDB can read as UTF-8: a file itself, or a converted temporary copy deleted with ``con``.

    Raises ValueError for an unknown encoding, a file that is not in it, a damaged or nested archive, a zip of several
    files, and more bytes than ``MAX_GROWTH`` times the file's.
    """
    codec = _codec(encoding)
    folder: Path | None = None
    readable = []
    for number, path in enumerate(paths):
        kind = compression(path)
        named = next((name for name, suffix in DUCKDB_SUFFIXES.items() if path.lower().endswith(suffix)), None)
        if codec == "utf-8" and kind == named:
            readable.append(path)
            continue
        if folder is None:
            folder = temporary_folder(con)
        copy = folder / f"{number}.txt"
        with copy.open("wb") as out:
            chunks = byte_chunks(path) if codec == "utf-8" else (text.encode() for text in text_chunks(path, encoding))
            with progress(None, f"unpack and decode {PurePosixPath(path).name}", unit=BYTES) as bar:
                for chunk in chunks:
                    out.write(chunk)
                    bar.add(len(chunk))
        readable.append(str(copy))
    return readable


def temporary_folder(con: ibis.BaseBackend) -> Path:
    """Create a folder below the engine's spill folder that is deleted with ``con``."""
    spill = con.raw_sql("SELECT current_setting('temp_directory')").fetchall()[0][0]
    parent = Path(spill) if spill and spill != ".tmp" else None  # DuckDB's default, relative to the working directory
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix="recpipe-", dir=parent)).absolute()
    weakref.finalize(con, shutil.rmtree, folder, ignore_errors=True)
    return folder


def byte_chunks(path: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in chunks of 1 MiB.

    Raises ValueError for a damaged or nested archive, a zip of several files, a file that is no text, and more bytes
    than ``MAX_GROWTH`` times the file's.
    """
    kind, total = compression(path), 0
    limit = max(ALLOWED_BYTES, MAX_GROWTH * Path(path).stat().st_size)
    with _damage_errors(path), _opened(path, kind) as stream:
        while chunk := stream.read(CHUNK):
            if not total:
                _check_text(path, chunk, is_unpacked=kind is not None)
            total += len(chunk)
            if kind and total > limit:
                raise ValueError(f"{path} is refused: more than {limit:,} bytes come out, {MAX_GROWTH} times its size")
            yield chunk


def text_chunks(path: str, encoding: str) -> Iterator[str]:
    """Yield the decompressed and decoded text of a file. Raises ValueError with line and byte for another encoding."""
    codec = _codec(encoding)
    decoder = codecs.getincrementaldecoder(codec)(errors="strict")
    size, line = 0, 1
    for chunk in chain(byte_chunks(path), [b""]):
        size += len(chunk)
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            line += error.object[: error.start].decode(codec, "ignore").count("\n")
            place = f"line {line}, byte {size - len(error.object) + error.start}"
            bad = error.object[max(error.start - 20, 0) : error.end + 20]
            raise ValueError(f"cannot read {path} as {encoding}: {place}: {bad!r}. {encoding_hint(bad)}") from error
        if codec == "iso8859-1" and (control := C1_CONTROL.search(text)):
            line += text.count("\n", 0, control.start())
            raise ValueError(
                f"cannot read {path} as {encoding}: line {line} has the byte 0x{ord(control[0]):02x}, "
                "which is a sign in Windows-1252 only. Set `encoding: cp1252` in the options of the data set"
            )
        line += text.count("\n")
        yield text


def encoding_hint(sample: bytes) -> str:
    """Compose advice for bytes that are no UTF-8: encodings in which they can be read."""
    if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        candidates = ["utf-16"]
    elif b"\0" in sample:
        candidates = ["utf-16-le", "utf-16-be"]
    else:
        candidates = [codec for codec in ("cp1252", "gbk", "shift_jis") if _is_readable(sample, codec)]
    names = " or ".join(f"`encoding: {name}`" for name in candidates or ["big5"])
    return f"Say how the file is encoded, in the options of the data set: {names}, or another name that Python knows"


def _is_readable(sample: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(sample)  # the end may be half a letter
    except UnicodeDecodeError:
        return False
    return True


def _codec(encoding: str) -> str:
    """Return the codec's name; every subset of UTF-8 is utf-8. Raises ValueError for what is no text encoding."""
    try:
        "a".encode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, TypeError, UnicodeError) as error:
        raise ValueError(
            f"unknown encoding {encoding!r}: utf-8, cp1252, latin-1, gbk, utf-16, or another name that Python knows. "
            "Change `encoding` in the options of the data set"
        ) from error
    return "utf-8" if name in ("utf-8", "utf-8-sig", "ascii") else name


def _check_text(path: str, beginning: bytes, *, is_unpacked: bool) -> None:
    if is_unpacked and beginning.startswith(PACKED):
        raise ValueError(f"{path} is compressed twice: unpack it once, and name the result in `files`")
    kind = next((kind for magic, kind in NO_TEXT.items() if beginning.startswith(magic)), None)
    if beginning[257:262] == b"ustar":
        kind = "a tar archive"
    if kind:
        raise ValueError(
            f"cannot read {path}: it is {kind}, no text. Unpack or convert it, and name the result in `files`"
        )


@contextmanager
def _opened(path: str, kind: str | None) -> Iterator[IO[bytes]]:
    """Open a file's decompressed bytes."""
    if kind == "zip":
        with _zip_member(path) as member:
            yield member
        return
    with open(path, "rb") as file:
        yield cast(IO[bytes], decompressed(file, kind)) if kind in ("gzip", "bzip2", "zstd") else file


@contextmanager
def _zip_member(path: str) -> Iterator[IO[bytes]]:
    """Open the one file of a zip; hidden files and those that macOS adds do not count."""
    with zipfile.ZipFile(path) as archive:
        members = [
            member for member in archive.infolist()
            if not member.is_dir() and not member.filename.startswith("__MACOSX/")
            and not PurePosixPath(member.filename).name.startswith(".")
        ]  # fmt: skip
        names = ", ".join(member.filename for member in members[:5])
        if len(members) != 1:
            problem = f"{len(members)} files ({names}{', …' if len(members) > 5 else ''})" if members else "no file"
            raise ValueError(f"{path} contains {problem} in place of one: unpack it, and name the log in `files`")
        if members[0].flag_bits & 1:
            raise ValueError(f"{path} is locked with a password: unpack it, and name {names} in `files`")
        with archive.open(members[0]) as stream:
            yield stream


@contextmanager
def _damage_errors(path: str) -> Iterator[None]:
    """Convert errors of damaged archives to a ValueError with the path."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error
