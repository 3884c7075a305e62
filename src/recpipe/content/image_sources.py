"""Where the images of a data set lie and how one is read: a folder, a zip that stays packed, a column of
paths or web addresses. Nothing is read that lies outside, hides behind a link or is larger than agreed.
"""

from __future__ import annotations

import lzma
import os
import stat
import string
import threading
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from recpipe.config import check_known

MAX_BYTES = 20 << 20
GIVE_UP = 20  # images in a row that a host did not answer for, after which it is asked no more
# What zipfile and its decompressors raise; RuntimeError also for a method that this Python lacks.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
KEYS = ("from", "name", "column", "private", "timeout", "retries")


class UnusableImageError(Exception):
    """An image that is not taken; its text is the reason that goes into the quarantine."""


class Unreachable(UnusableImageError):
    """The server did not answer: the image may be fine."""


class Opener(Protocol):
    """The bytes of one reference. Raises FileNotFoundError: there is no image; UnusableImageError: it is not taken."""

    def __call__(self, reference: str, *, max_bytes: int = ...) -> bytes: ...


@dataclass(frozen=True)
class ImageSourceConfig:
    """A data set's ``content.image`` block, where ``source`` is written ``from``.

    ``source``: folder or zip inside the raw folder, else the raw folder itself. An item's image is called
    as the template ``name`` says (``images/{item_id}.jpg``), or as its ``column`` does: a path in
    ``source``, or an address to fetch with ``timeout`` seconds and ``retries``; ``private`` allows
    addresses that are not public.
    """

    source: str | None = None
    name: str | None = None
    column: str | None = None
    private: bool = False
    timeout: float = 10.0
    retries: int = 3

    def __post_init__(self) -> None:
        if (self.name is None) == (self.column is None):
            raise ValueError(
                f"content.image needs either `name` or `column`, not {'both' if self.name else 'none of them'}: "
                "{from: posters.zip, name: 'images/{item_id}.jpg'} or {column: image}"
            )
        if self.timeout <= 0 or self.retries < 0:
            raise ValueError(
                f"content.image: timeout {self.timeout} must be above 0, retries {self.retries} at least 0"
            )

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> ImageSourceConfig:
        """From the conf's block. Raises ValueError that names unknown keys and the known ones."""
        for key in block:
            check_known(key, KEYS, what="key of content.image")
        return cls(**{"source" if key == "from" else key: value for key, value in block.items()})


def references(items: pa.Table, conf: ImageSourceConfig | Mapping[str, Any]) -> list[str | None]:
    """Per item what its image is called; None where the columns say nothing."""
    conf = conf if isinstance(conf, ImageSourceConfig) else ImageSourceConfig.from_block(conf)
    if conf.column is not None:
        return [_first(value) for value in _column(items, conf.column).to_pylist()]
    pieces: list[Any] = []
    for text, field in _parts(conf.name or ""):
        pieces.append(pa.scalar(text))
        if field is not None:
            values = pc.cast(_column(items, field), pa.string())
            pieces.append(pc.if_else(pc.equal(values, ""), None, values))
    return pc.binary_join_element_wise(*pieces, "").to_pylist()


def opener(
    conf: ImageSourceConfig | Mapping[str, Any], raw_folder: Path, cache_folder: Path | None = None
) -> Opener:
    """Reads the bytes of one reference; safe to call from many threads. Web images are kept in
    ``cache_folder``. ValueError: ``source`` is not there or neither folder nor zip.
    """
    conf = conf if isinstance(conf, ImageSourceConfig) else ImageSourceConfig.from_block(conf)
    source = Path(raw_folder) / (conf.source or "")
    if source.is_dir():
        local = _folder_opener(source)
    elif source.is_file() and zipfile.is_zipfile(source):
        local = _zip_opener(source)
    elif source.exists():
        raise ValueError(f"content.image: {source} is neither a folder nor a whole zip file; fetch it again")
    else:
        raise ValueError(
            f"content.image: {source} is missing; put the folder or zip of images there (`from` in the conf)"
        )
    web = _web_opener(conf, cache_folder)

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        return (web if "://" in reference else local)(reference, max_bytes=max_bytes)

    return read


def _folder_opener(folder: Path) -> Opener:
    root = folder.resolve()

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        try:
            path = (root / _inside(reference)).resolve(strict=True)
            if not path.is_relative_to(root):
                raise UnusableImageError("a link that leaves the folder")
            return _read_file(path, max_bytes)
        except FileNotFoundError:
            raise
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise UnusableImageError(
                f"cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from error

    return read


def _read_file(path: Path, max_bytes: int) -> bytes:
    # the path is resolved: a link there now was put there since; and opening a pipe must not wait
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnusableImageError("not a file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return _limited(file, status.st_size, max_bytes)
    finally:
        os.close(descriptor)


def _zip_opener(archive: Path) -> Opener:
    try:
        packed = zipfile.ZipFile(archive)  # stays open for as long as the opener lives
    except DAMAGED as error:
        raise ValueError(
            f"content.image: {archive} is not a whole zip file ({error}); fetch it again"
        ) from error

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        try:
            entry = packed.getinfo(str(_inside(reference)))
        except KeyError:
            raise FileNotFoundError(f"{archive.name} holds no {reference}") from None
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnusableImageError("a link in the zip")
        if entry.flag_bits & 1:
            raise UnusableImageError("locked with a password in the zip")
        try:
            with packed.open(entry) as stream:
                return _limited(stream, entry.file_size, max_bytes)
        except DAMAGED as error:
            raise UnusableImageError(f"not whole in the zip: {error}") from error

    return read


def _inside(reference: str) -> PurePosixPath:
    path = PurePosixPath(reference.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in reference or path.as_posix()[1:2] == ":":
        raise UnusableImageError("a path that leaves the folder")
    if not path.parts:
        raise FileNotFoundError("no name")
    return path


def _limited(stream: IO[bytes], size: int, max_bytes: int) -> bytes:
    if size > max_bytes:
        raise UnusableImageError(f"{size:,} bytes, more than max_bytes {max_bytes:,}")
    data = stream.read(max_bytes + 1)  # the size in a header may be a lie
    if len(data) > max_bytes:
        raise UnusableImageError(f"more than max_bytes {max_bytes:,}")
    return data


def _web_opener(conf: ImageSourceConfig, cache_folder: Path | None) -> Opener:
    silent: Counter[str] = Counter()
    lock = threading.Lock()

    def read(reference: str, *, max_bytes: int = MAX_BYTES) -> bytes:
        from recpipe.content import image_urls  # urllib3 is needed by those alone who have addresses

        host = reference.split("://", 1)[1].split("/", 1)[0].lower()
        retries = 0 if silent[host] else conf.retries  # a host that is down is tried hard once, not per image
        if silent[host] >= GIVE_UP:
            raise Unreachable(f"{host} did not answer for {GIVE_UP} images in a row: not asked")
        try:
            data = image_urls.fetch(
                reference,
                max_bytes=max_bytes,
                timeout=conf.timeout,
                retries=retries,
                cache_folder=cache_folder,
                private=conf.private,
            )
        except Unreachable:
            with lock:
                silent[host] += 1
            raise
        except (UnusableImageError, FileNotFoundError):
            silent[host] = 0  # it did answer
            raise
        silent[host] = 0
        return data

    return read


def _parts(template: str) -> list[tuple[str, str | None]]:
    parts = list(string.Formatter().parse(template))
    for _, field, spec, conversion in parts:
        if field is not None and (not field.isidentifier() or spec or conversion):
            raise ValueError(
                f"content.image: name {template!r} may hold plain fields like {{item_id}}, not {field!r}"
            )
    if not any(field for _, field, _, _ in parts):
        raise ValueError(
            f"content.image: name {template!r} is the same for all items; write {{item_id}} in it"
        )
    return [(text, field) for text, field, _, _ in parts]


def _column(items: pa.Table, name: str) -> pa.ChunkedArray:
    if name not in items.column_names:
        raise ValueError(
            f"content.image: there is no column {name!r}; there are {', '.join(items.column_names)}"
        )
    return items[name]


def _first(value: Any) -> str | None:
    """A column may hold several pictures per item: the first counts."""
    while isinstance(value, list):
        value = next((entry for entry in value if entry), None)
    text = "" if value is None else str(value).strip()
    return text or None
