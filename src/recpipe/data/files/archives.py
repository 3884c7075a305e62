"""Compressed files and archives: recognition by content, verification of their checksums, safe unpacking.

DuckDB does not verify checksums and takes other rows from a damaged file: ``read_verified`` comes before it. Archives
unpack safely: nothing outside the folder, no links, a size limit, all files or none.
"""

from __future__ import annotations

import codecs
import io
import os
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from recpipe.data.files.tables import errors_with_file, file_list
from recpipe.progress import BYTES, Progress, progress

CHUNK = 1 << 20
MAX_LINE_BYTES = 16 << 20  # of a line of text, far above any review or product
BATCH_ROWS = 1 << 16
MAX_GROWTH = 100  # unpacked size over archive size: ratings have a factor of 5, zip bombs of 1000
ALLOWED_BYTES = 64 << 20  # unpacked size that is allowed for every archive
STREAMS = {"gzip": "gzip", "bzip2": "bz2", "zstd": "zstd"}  # kind to pyarrow's name of its codec
SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".zst": "zstd", ".zip": "zip"}
SKIPPABLE = b"\x2a\x4d\x18"  # a zstd frame without data, after a first byte of 0x50 to 0x5f
# What libraries raise for a damaged archive; an OSError with an errno is a fault of the disk
DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, pa.ArrowException)
PAGE_CRC = 4  # field of Parquet's PageHeader, after three integers


class HashedFile(io.RawIOBase):
    """Binary stream that updates digests and a progress bar with what is read from a file."""

    def __init__(self, file: IO[bytes], digests: Iterable[Any], bar: Progress) -> None:
        self._file, self._digests, self._bar = file, list(digests), bar

    def readable(self) -> bool:
        """Support ``io.BufferedReader``."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes of the file."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        for digest in self._digests:
            digest.update(data)
        self._bar.add(len(data))
        return len(data)


def compression(path: str | Path) -> str | None:
    """Recognise gzip, bzip2, zstd, zip and parquet by the first bytes of a file; None for anything else."""
    with open(path, "rb") as file:
        head = file.read(10)
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if head[:3] == b"BZh" and head[4:10] in (b"\x31\x41\x59\x26\x53\x59", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == SKIPPABLE and head[0] >> 4 == 5):
        return "zstd"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return "zip"
    return "parquet" if head[:4] == b"PAR1" else None


def decompressed(file: IO[bytes], kind: str) -> pa.NativeFile:
    """Open the content of gzip, bzip2 or zstd, all members; reading to the end raises OSError for damage."""
    return pa.CompressedInputStream(pa.PythonFile(file, mode="r"), STREAMS[kind])


def read_verified(path: Path, digests: Iterable[Any], *, contents: bool = True) -> str | None:
    """Read a file once, update ``digests`` with its bytes and, with ``contents``, verify the checksums inside it.

    These are of gzip, bzip2 and zip, and of zstd and Parquet pages where the writer set some. Returns the kind, None
    where there are no checksums. Raises ValueError for a damaged file.
    """
    kind = compression(path) if contents else None
    size = path.stat().st_size
    with path.open("rb") as raw, progress(size, f"check {path.name}", unit=BYTES) as bar, _damage_errors(path, kind):
        file: Any = io.BufferedReader(HashedFile(raw, digests, bar), CHUNK)
        if kind in STREAMS:
            file = decompressed(file, str(kind))
        while file.read(CHUNK):
            pass
    with _damage_errors(path, kind):
        if kind == "zstd":
            return kind if _has_content_checksum(path) else None
        if kind == "parquet":
            return kind if _verify_pages(path) else None
        if kind == "zip":
            _verify_zip(path)
    if contents and kind is None and path.suffix.lower() in SUFFIXES:
        _check_text(path)
    return kind


@contextmanager
def _damage_errors(path: Path, kind: str | None) -> Iterator[None]:
    """Convert errors of decompression to a ValueError that names the file."""
    try:
        yield
    except DAMAGE_ERRORS as error:
        if (isinstance(error, OSError) and error.errno is not None) or kind is None:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is damaged or cut short: {kind} reports {reason!r}. Copy or download it again; to use what can "
            "still be read of it, unpack it by hand and name the unpacked file"
        ) from error


def _check_text(path: Path) -> None:
    """Raise ValueError for a file whose name says compressed and whose content says neither so nor text."""
    with path.open("rb") as file:
        head = file.read(4096)
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(
            f"{path} is damaged, or not what its name says: it is neither {SUFFIXES[path.suffix.lower()]} nor UTF-8 "
            f"text. Copy or download it again; if it is plain text, take {path.suffix} off its name"
        )


def _has_content_checksum(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(32)
    return head[1:4] == SKIPPABLE or bool(zstandard.get_frame_parameters(head).has_checksum)


def _verify_zip(path: Path) -> None:
    """Read all members, which verifies their CRC."""
    limit = _size_limit(path)
    with zipfile.ZipFile(path) as packed, progress(None, f"check members of {path.name}", unit=BYTES) as bar:
        for member in packed.infolist():
            if member.flag_bits & 1:
                continue  # refused for its password by the reader
            with packed.open(member) as stream:
                while chunk := stream.read(CHUNK):
                    limit -= len(chunk)
                    _check_limit(limit, path)
                    bar.add(len(chunk))


def _has_page_checksums(path: Path) -> bool:
    """Whether the first page of any column chunk has a checksum: the fourth field of its Thrift header.

    DuckDB reads the offsets: pyarrow ends the process at some damaged footers.
    """
    offset = "coalesce(nullif(dictionary_page_offset, 0), data_page_offset)"
    query = f"SELECT {offset} FROM parquet_metadata({file_list([str(path)])})"
    with errors_with_file(str(path)), duckdb.connect() as con:
        offsets = con.execute(query).fetchall()
    with path.open("rb") as file:
        for (offset,) in offsets:
            file.seek(max(offset, 0))
            if _has_crc(file.read(32)):
                return True
    return False


def _has_crc(header: bytes) -> bool:
    """Whether a PageHeader in Thrift's compact protocol goes on with field 4 after the integers 1, 2 and 3."""
    place = 0
    for _ in range(PAGE_CRC):
        if header[place : place + 1] != b"\x15":  # the next field, a 32-bit integer
            return False
        place += 1
        while header[place : place + 1] > b"\x7f":
            place += 1
        place += 1
    return True


def _verify_pages(path: Path) -> bool:
    """Read all pages of a Parquet file that has page checksums; return whether it has."""
    if not _has_page_checksums(path):
        return False
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        rows = file.metadata.num_rows
        with progress(rows, f"check pages of {path.name}", unit="rows") as bar:
            for batch in file.iter_batches(BATCH_ROWS):
                bar.add(batch.num_rows)
    return True


# Unpacking ---------------------------------------------------------------------------------------------------------


def unpack(archive: Path, folder: Path, *, patterns: Iterable[str]) -> list[Path]:
    """Unpack the members of a zip that match a name or pattern, and READMEs and licences; or the file of a bz2.

    A folder that contains all members is left out of the paths. Raises ValueError for a damaged archive, a member
    outside the folder, a link, a password, a name twice, and more bytes than ``MAX_GROWTH`` times the archive's.
    """
    limit = _size_limit(archive)
    with TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
        try:
            if archive.suffix.lower() == ".bz2":
                paths = [Path(archive.stem)]
                with archive.open("rb") as file, decompressed(file, "bzip2") as stream:
                    _copy(stream, Path(temporary) / archive.stem, limit, label=archive.name)
            else:
                patterns = [*patterns, "README*", "LICENSE*", "LICENCE*"]
                paths = _unzip(archive, Path(temporary), patterns, limit)
        except DAMAGE_ERRORS as error:
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
    with zipfile.ZipFile(archive) as packed:
        members = [(_safe_path(member, archive), member) for member in packed.infolist() if not member.is_dir()]
        has_root = len({path.parts[0] for path, _ in members}) == 1 and all(len(path.parts) > 1 for path, _ in members)
        members = [(PurePosixPath(*path.parts[has_root:]), member) for path, member in members]
        targets = _unique(
            (path, member)
            for path, member in members
            if any(fnmatch(path.name, pattern) or fnmatch(str(path), pattern) for pattern in patterns)
        )
        for path, member in targets.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with packed.open(member) as stream:
                limit -= _copy(stream, folder / path, limit, label=path.name, total=member.file_size)
    return [Path(path) for path in targets]


def _unique(members: Iterable[tuple[PurePosixPath, zipfile.ZipInfo]]) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return members by path, a repeated one once.

    Raises ValueError for different members under one path, also where paths differ only by case or one is the folder
    of another.
    """
    targets: dict[PurePosixPath, zipfile.ZipInfo] = {}
    for path, member in members:
        first = targets.setdefault(path, member)
        if (first.CRC, first.file_size) != (member.CRC, member.file_size):
            raise ValueError(f"the archive holds {path} twice, with different contents: unpack it by hand, keep one")
    folders = {parent for path in targets for parent in path.parents}
    names = Counter(str(path).casefold() for path in {*targets, *folders})
    if clashes := {name for name, count in names.items() if count > 1} or {str(p) for p in folders & targets.keys()}:
        raise ValueError(
            f"the archive holds {min(clashes)} twice, by upper and lower case or as a file and a folder: "
            "unpack it by hand, keep one"
        )
    return targets


def _safe_path(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in member.filename or not path.parts:
        raise ValueError(f"{archive} is refused: it holds {member.filename!r}, which would land outside its folder")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ValueError(f"{archive} is refused: it holds a link, {member.filename!r}")
    if member.flag_bits & 1:
        raise ValueError(f"{archive} is locked with a password: unpack it by hand beside it")
    return path


def _size_limit(archive: Path) -> int:
    """Return the number of bytes that may come out of an archive."""
    return max(ALLOWED_BYTES, MAX_GROWTH * archive.stat().st_size)


def _check_limit(remaining: int, archive: Path | str) -> None:
    if remaining < 0:
        raise ValueError(f"{archive} is refused: more than {MAX_GROWTH} times its bytes come out of the archive")


def _copy(stream: IO[bytes] | Any, path: Path, limit: int, *, label: str, total: int | None = None) -> int:
    """Copy a stream and return its size, counted in bytes read: the size in a header may be wrong."""
    size = 0
    with path.open("wb") as out, progress(total, f"unpack {label}", unit=BYTES) as bar:
        while chunk := stream.read(CHUNK):
            size += len(chunk)
            _check_limit(limit - size, label)
            out.write(chunk)
            bar.add(len(chunk))
    return size
