"""Sources of item images: a folder, a zip archive, or a column of paths or web addresses.

A reader refuses paths and links that leave the source, and files that are larger than ``max_bytes``.
"""

from __future__ import annotations

import json
import lzma
import os
import re
import stat
import string
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from recpipe.config import check_known
from recpipe.content import image_urls
from recpipe.content.image_urls import UnreachableHostError, UnusableImageError

MAX_BYTES = 20 << 20
MAX_SILENT = 20  # consecutive images without an answer, after which a host is not contacted again
# Errors of zipfile and its decompressors; RuntimeError also for a method that this Python lacks.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
KEYS = ("from", "name", "column", "of_list", "private", "timeout", "retries")
QUOTED = re.compile(r"""'([^']*)'|"([^"]*)\"""")


class ImageReader(Protocol):
    """Function that reads an image's bytes. Raises FileNotFoundError or UnusableImageError."""

    def __call__(self, reference: str, *, max_bytes: int = ...) -> bytes:
        """Return the bytes of the image ``reference``, at most ``max_bytes``."""


@dataclass(frozen=True)
class ImageSourceConfig:
    """A data set's block ``content.image``.

    source: folder or zip inside the raw folder (``from`` in the conf), by default the raw folder.
    name: template of a path in the source, such as ``images/{item_id}.jpg``.
    column: instead of ``name``, the column of items with a path in the source, or a web address.
    of_list: the entry of a list of images that counts, ``first`` or ``last``; a list may be text, ``["a.jpg", "b"]``.
    private: allow web addresses that are not public.
    timeout: seconds per web address; retries: further attempts after a failure that may pass.
    """

    source: str | None = None
    name: str | None = None
    column: str | None = None
    of_list: Literal["first", "last"] = "first"
    private: bool = False
    timeout: float = 10.0
    retries: int = 3

    def __post_init__(self) -> None:
        if (self.name is None) == (self.column is None):
            raise ValueError(
                f"content.image needs either `name` or `column`, not {'both' if self.name else 'none of them'}: "
                "{from: posters.zip, name: 'images/{item_id}.jpg'} or {column: image}"
            )
        check_known(self.of_list, ("first", "last"), what="of_list of content.image")
        if self.timeout <= 0 or self.retries < 0:
            raise ValueError(
                f"content.image: timeout {self.timeout} must be above 0, retries {self.retries} at least 0"
            )

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> ImageSourceConfig:
        """Build from the block of the conf. Raises ValueError for an unknown key, with the allowed ones."""
        for key in block:
            check_known(key, KEYS, what="key of content.image")
        return cls(**{"source" if key == "from" else key: value for key, value in block.items()})


def image_references(items: pa.Table, config: ImageSourceConfig) -> list[str | None]:
    """Return the path or address of each item's image, None where a column of it is null or empty."""

    def column(name: str) -> pa.ChunkedArray:
        if name not in items.column_names:
            raise ValueError(f"content.image: there is no column {name!r}; there are {', '.join(items.column_names)}")
        return items[name]

    if config.column is not None:
        return [_entry(value, config.of_list) for value in column(config.column).to_pylist()]
    parts: list[pa.Scalar | pa.ChunkedArray] = []
    for text, field in _template_parts(config.name or ""):
        parts.append(pa.scalar(text))
        if field is not None:
            parts.append(pa.chunked_array([_texts(column(field), config.of_list)], pa.string()))
    return pc.binary_join_element_wise(*parts, "").to_pylist()


def image_reader(
    config: ImageSourceConfig, raw_folder: Path, cache_folder: Path | None = None, *, offline: bool = False
) -> ImageReader:
    """Return a thread-safe reader; images from the web are cached in ``cache_folder``, ``offline``: only from there.

    Raises ValueError if ``config.source`` does not exist or is neither a folder nor a zip archive.
    """
    source = Path(raw_folder) / (config.source or "")
    if not source.exists():
        raise ValueError(f"content.image: {source} is missing; put the folder or zip of images there, or change `from`")
    if not source.is_dir() and not (source.is_file() and zipfile.is_zipfile(source)):
        raise ValueError(f"content.image: {source} is neither a folder nor a complete zip file; download it again")
    read_local = _folder_reader(source) if source.is_dir() else _zip_reader(source)
    read_web = _web_reader(config, cache_folder, offline)

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        return (read_web if "://" in reference else read_local)(reference, max_bytes=max_bytes)

    return read


def _folder_reader(folder: Path) -> ImageReader:
    root = folder.resolve()

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        try:
            path = (root / _inner_path(reference)).resolve(strict=True)
            if not path.is_relative_to(root):
                raise UnusableImageError("a link that leaves the folder")
            return _read_file(path, max_bytes)
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: a cycle of links
            raise UnusableImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error

    return read


def _read_file(path: Path, max_bytes: int) -> bytes:
    # A link at a resolved path was put there afterwards; and opening a pipe must not block.
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableImageError("not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _read_limited(file, status.st_size, max_bytes)
    finally:
        os.close(descriptor)


def _zip_reader(archive: Path) -> ImageReader:
    try:
        packed = zipfile.ZipFile(archive)  # stays open for as long as the reader lives
    except ZIP_ERRORS as error:
        raise ValueError(f"content.image: {archive} is not a complete zip file ({error}); download it again") from error

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        try:
            entry = packed.getinfo(str(_inner_path(reference)))
        except KeyError:
            raise FileNotFoundError(f"{archive.name} holds no {reference}") from None
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnusableImageError("a link in the zip")
        if entry.flag_bits & 1:
            raise UnusableImageError("locked with a password in the zip")
        try:
            with packed.open(entry) as stream:
                return _read_limited(stream, entry.file_size, max_bytes)
        except ZIP_ERRORS as error:
            raise UnusableImageError(f"not whole in the zip: {error}") from error

    return read


def _inner_path(reference: str) -> PurePosixPath:
    path = PurePosixPath(reference.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in reference or path.as_posix()[1:2] == ":":
        raise UnusableImageError("a path that leaves the folder")
    if not path.parts:
        raise FileNotFoundError("no name")
    return path


def _read_limited(stream: IO[bytes], size: int, max_bytes: int) -> bytes:
    if size > max_bytes:
        raise UnusableImageError(f"{size:,} bytes, more than max_bytes {max_bytes:,}")
    data = stream.read(max_bytes + 1)  # a zip header may state a smaller size
    if len(data) > max_bytes:
        raise UnusableImageError(f"more than max_bytes {max_bytes:,}")
    return data


def _web_reader(config: ImageSourceConfig, cache_folder: Path | None, offline: bool) -> ImageReader:
    silent: Counter[str] = Counter()  # consecutive images without an answer, by host
    lock = threading.Lock()
    fetch = partial(
        image_urls.fetch, timeout=config.timeout, private=config.private, cache_folder=cache_folder, offline=offline
    )

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        host = reference.split("://", 1)[1].split("/", 1)[0].lower()
        if silent[host] >= MAX_SILENT:
            raise UnreachableHostError(f"{host} did not answer for {MAX_SILENT} images in a row: not asked")
        try:
            data = fetch(reference, max_bytes=max_bytes, retries=0 if silent[host] else config.retries)
        except UnreachableHostError:
            with lock:
                silent[host] += 1
            raise
        except (UnusableImageError, FileNotFoundError):
            silent[host] = 0
            raise
        silent[host] = 0
        return data

    return read


def _template_parts(template: str) -> list[tuple[str, str | None]]:
    parts = list(string.Formatter().parse(template))
    for _, field, spec, conversion in parts:
        if field is not None and (not field.isidentifier() or spec or conversion):
            raise ValueError(f"content.image: name {template!r} may hold plain fields like {{item_id}}, not {field!r}")
    if not any(field for _, field, _, _ in parts):
        raise ValueError(f"content.image: name {template!r} is the same for all items; write {{item_id}} in it")
    return [(text, field) for text, field, _, _ in parts]


def _texts(column: pa.ChunkedArray, of_list: str) -> pa.Array:
    """Convert a column to text, null where it is empty; of a list one entry counts."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pa.array([_entry(value, of_list) for value in column.to_pylist()], pa.string())
    values = pc.cast(column, pa.string()).combine_chunks()
    return pc.if_else(pc.equal(values, ""), None, values)


def _entry(value: object, of_list: str) -> str | None:
    """Return the first or last non-empty entry of nested lists, or of a text that is a list, as text."""
    if isinstance(value, list):
        entries = (_entry(entry, of_list) for entry in (value if of_list == "first" else reversed(value)))
        return next((entry for entry in entries if entry), None)
    text = "" if value is None else str(value).strip()
    if text.startswith("[") and text.endswith("]"):
        return _entry(_text_list(text), of_list)
    return text or None


def _text_list(text: str) -> list[str]:
    """Split the text of a list: JSON, with single quotation marks as Python writes it, or without any."""
    try:
        values = json.loads(text)
        return [value for value in values if isinstance(value, str) and value[:1] != "["]
    except (ValueError, RecursionError):
        quoted = ["".join(pair) for pair in QUOTED.findall(text)]
        return quoted or text.strip("[] ").split(",")
