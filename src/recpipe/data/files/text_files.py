"""Text files as sources: delimited text and baskets.

Compression is detected by content: gzip, bz2, zstd, and a zip of one file. Encodings are those of Python's ``codecs``.
"""

from __future__ import annotations

import codecs
import csv
import re
import shutil
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import IO, cast

import ibis
import pyarrow as pa
from ibis.util import gen_name

from recpipe.data.files.archives import ALLOWED_BYTES, MAX_GROWTH
from recpipe.data.files.tables import Source, file_list, identifier, literal, path_summary
from recpipe.progress import BYTES, progress

CHUNK = 1 << 20
MAX_HEADER_BYTES = 1 << 20
COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
}
NO_TEXT = {
    b"\xfd7zXZ\x00": "an xz file", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"Rar!": "a rar archive",
    b"PAR1": "a Parquet file", b"\xd0\xcf\x11\xe0": "an Excel file", b"\x04\x22\x4d\x18": "an lz4 file",
    b"SQLite format 3": "a SQLite database",
}  # fmt: skip
C1_CONTROL = re.compile("[\x80-\x9f]")
COMPRESSION_SUFFIXES = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".zip")
DUCKDB_SUFFIXES = {"gzip": ".gz", "zstd": ".zst"}  # by which DuckDB knows a compressed file


def delimited_source(
    con: ibis.BaseBackend,
    paths: Sequence[str],
    *,
    delimiter: str,
    columns: Sequence[str] = (),
    encoding: str = "utf-8",
    quote: str = '"',
) -> Source:
    """Create a source of text columns. columns: names in files without a header.

    Lines with another number of columns go to the source's table of rejects. Raises ValueError for an empty file, a
    header that cannot be decoded or has only one column, and files with different headers.
    """
    if not 1 <= len(delimiter.encode()) <= 4:
        raise ValueError(f"delimiter {delimiter!r} must have one to four characters")
    where = path_summary(paths)
    readable = readable_paths(con, paths, encoding=encoding)
    if columns:
        _first_line(paths[0], readable[0])
    names = list(columns) if columns else _header(paths, readable, delimiter, quote=quote)
    rejects = gen_name("rejects")
    types = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    sql = (
        f"read_csv({file_list(readable)}, auto_detect = false, hive_partitioning = false, "
        f"header = {'false' if columns else 'true'}, delim = {literal(delimiter)}, "
        f"quote = {literal(quote)}, escape = {literal(quote)}, "
        f"columns = {{{types}}}, store_rejects = true, "
        f"rejects_table = {literal(rejects)}, rejects_scan = {literal(rejects + '_scan')})"
    )
    return Source(sql, dict.fromkeys(names, "VARCHAR"), where, rejects=identifier(rejects), files=paths)


def basket_source(con: ibis.BaseBackend, paths: Sequence[str], *, delimiter: str, encoding: str = "utf-8") -> Source:
    """Create a source of lines with a user and a varying number of items: text columns user_id and items."""
    readable = readable_paths(con, paths, encoding=encoding)
    _first_line(paths[0], readable[0])
    lines = (
        f"read_csv({file_list(readable)}, auto_detect = false, hive_partitioning = false, header = false, "
        f"delim = {literal(chr(31) + chr(30))}, quote = '', escape = '', columns = {{'line': 'VARCHAR'}})"
    )
    user = f"split_part(line, {literal(delimiter)}, 1)"
    items = f"substr(line, length({user}) + {len(delimiter) + 1})"
    sql = f"(SELECT {user} AS user_id, {items} AS items, file_index FROM {lines})"
    return Source(sql, {"user_id": "VARCHAR", "items": "VARCHAR"}, path_summary(paths), files=paths)


def _header(paths: Sequence[str], readable: Sequence[str], delimiter: str, *, quote: str) -> list[str]:
    lines = [_first_line(path, copy) for path, copy in zip(paths, readable, strict=True)]
    if len(delimiter) > 1 or not quote:
        headers = [line.split(delimiter) for line in lines]
    else:
        headers = [next(csv.reader([line], delimiter=delimiter, quotechar=quote)) for line in lines]
    for path, header in zip(paths, headers, strict=True):
        if header != headers[0]:
            raise ValueError(f"{path} has the columns {', '.join(header)}, but {paths[0]} has {', '.join(headers[0])}")
    names = [name or f"column{place}" for place, name in enumerate(headers[0])]
    if len(names) == 1:
        raise ValueError(
            f"{paths[0]} has one column, {names[0][:80]!r}, when split at {delimiter!r}: "
            "set `delimiter` in the options of the data set to the one the file uses"
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{paths[0]} names a column twice: {', '.join(names)}")
    return names


def _first_line(path: str, readable: str) -> str:
    """Read the first line of a readable path, without line end and byte order mark. path: the file, for messages."""
    head = next(byte_chunks(readable), b"")[:MAX_HEADER_BYTES]
    if not head:
        raise ValueError(f"{path} is empty")
    line = head.splitlines()[0]
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"cannot read {path} as utf-8: {error}. {encoding_hint(line)}") from error


# Bytes and encodings -------------------------------------------------------------------------------------------------


def readable_paths(con: ibis.BaseBackend, paths: Sequence[str], *, encoding: str = "utf-8") -> list[str]:
    """Return paths that DuckDB can read as UTF-8: a file itself, or a converted temporary copy deleted with ``con``.

    Raises ValueError for an unknown encoding, a file that is not in it, a damaged or nested archive, a zip of several
    files, and more bytes than ``MAX_GROWTH`` times the file's.
    """
    codec = _codec(encoding)
    folder: Path | None = None
    readable = []
    for number, path in enumerate(paths):
        compression = compression_of(path)
        named = next((kind for kind, suffix in DUCKDB_SUFFIXES.items() if path.lower().endswith(suffix)), None)
        if codec == "utf-8" and compression == named:
            readable.append(path)
            continue
        if folder is None:
            folder = temporary_folder(con)
        keys = [part for part in PurePosixPath(path).parent.parts if "=" in part]  # may become columns
        copy = folder.joinpath(str(number), *keys, "decoded.txt")
        copy.parent.mkdir(parents=True)
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


def compression_of(path: str) -> str | None:
    """Return the compression of a file by its first bytes: gzip, bz2, zstd, zip or None."""
    with open(path, "rb") as stream:
        return _by_first_bytes(stream.read(16), COMPRESSIONS)


def byte_chunks(path: str) -> Iterator[bytes]:
    """Yield the decompressed bytes of a file in chunks of 1 MiB.

    Raises ValueError for a damaged or nested archive, a zip of several files, a file that is no text, and more bytes
    than ``MAX_GROWTH`` times the file's.
    """
    compression, total = compression_of(path), 0
    limit = max(ALLOWED_BYTES, MAX_GROWTH * Path(path).stat().st_size)
    with _damage_errors(path), _open(path, compression) as stream:
        while chunk := stream.read(CHUNK):
            if not total:
                _check_text(path, chunk, is_unpacked=compression is not None)
            total += len(chunk)
            if compression and total > limit:
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
    candidates = ["utf-16"] if sample.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else []
    for codec in () if candidates else ("cp1252", "gbk", "shift_jis", "utf-16"):
        try:
            sample.decode(codec)
        except UnicodeDecodeError:
            continue
        candidates.append(codec)
    names = " or ".join(f"`encoding: {name}`" for name in candidates or ["latin-1"])
    return f"Say how the file is encoded, in the options of the data set: {names}, or another name that Python knows"


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
    kind = _by_first_bytes(beginning, NO_TEXT)
    if is_unpacked and _by_first_bytes(beginning, COMPRESSIONS):
        raise ValueError(f"{path} is compressed twice: unpack it once, and name the result in `files`")
    if beginning[257:262] == b"ustar":
        kind = "a tar archive"
    if kind:
        raise ValueError(
            f"cannot read {path}: it is {kind}, no text. Unpack or convert it, and name the result in `files`"
        )


def _by_first_bytes(beginning: bytes, kinds: Mapping[bytes, str]) -> str | None:
    return next((kind for magic, kind in kinds.items() if beginning.startswith(magic)), None)


def _open(path: str, compression: str | None) -> AbstractContextManager[IO[bytes]]:
    if compression == "zip":
        return _zip_member(path)
    stream = pa.input_stream(path, compression=compression)
    return cast(AbstractContextManager[IO[bytes]], stream)


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
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile, pa.ArrowException, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"cannot read {path}: {error}. It is cut short or is not what its name says") from error
