"""Fetching of a data set's raw files: use those in its folder, download, verify and unpack the others.

Downloads resume: incomplete files wait as ``<name>.part`` beside their ETag. Why this is ours: docs/decisions/0035.
Archives unpack safely: nothing outside the folder, no links, a size limit, all files or none.
"""

from __future__ import annotations

import bz2
import hashlib
import logging
import os
import stat
import time
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError

from recpipe.progress import BYTES, progress

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, seconds between two chunks
ATTEMPTS = 5
FULL_HASH_BYTES = 1 << 30  # fingerprints of larger files hash only both ends
END_BYTES = 64 << 20
ARCHIVES = (".zip", ".bz2")
MAX_GROWTH = 100  # unpacked size over archive size: ratings have a factor of 5, zip bombs of 1000
ALLOWED_BYTES = 64 << 20  # unpacked size that is allowed for every archive


class SourceMissingError(ValueError):
    """Files that are neither in the folder nor available for download; the message says which to put where."""


class DatasetFile(NamedTuple):
    """File of a data set: name or pattern in its folder, and its own address if it is not in the common archive."""

    pattern: str
    url: str
    checksum: str | None
    optional: bool

    @classmethod
    def of(cls, entry: str | Mapping[str, Any], conf: Mapping[str, Any]) -> DatasetFile:
        """Create from an entry of ``files``, with the category filled in."""
        fields = {"name": entry} if isinstance(entry, str) else entry
        pattern, url = _fill_category(fields["name"], conf), _fill_category(fields.get("url"), conf)
        return cls(pattern, url, fields.get("checksum"), bool(fields.get("optional")))

    def find(self, folder: Path) -> list[Path]:
        """Find files, if need be in subfolders; raise ValueError for a name in several and for a wrong checksum."""
        pattern = Path(self.pattern)
        root = Path(pattern.anchor) if pattern.is_absolute() else folder
        files = sorted(path for path in root.glob(str(pattern.relative_to(pattern.anchor))) if path.is_file())
        if not files and not pattern.is_absolute():
            files = sorted(path for path in folder.rglob(self.pattern) if path.is_file())
            files = [path for path in files if "/." not in f"/{path.relative_to(folder).as_posix()}"]
        if len(files) > 1 and not any(sign in self.pattern for sign in "*?["):
            raise ValueError(f"{self.pattern} lies in several places: {', '.join(map(str, files))}. Keep one of them")
        is_archive_checksum = self.url and files and _name(self.url) != files[0].name
        if len(files) == 1 and not is_archive_checksum:
            _verify(files[0], self.checksum)
        return files


def fetch(conf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Locate or download the files of a data set, and log its licence once.

    conf: block of the data set with ``files``, role to name, pattern or {name, url, checksum, optional}; ``url`` and
    ``checksum`` of an archive of all files. ``{category}`` in them is replaced by the option of that name. Returns
    {"files": {role: paths}, "bytes": total size, "fingerprint": sha256 of names and contents}. Raises
    SourceMissingError for files that cannot be downloaded, ValueError for a wrong checksum or archive.
    """
    folder = Path(folder)
    files = {role: DatasetFile.of(entry, conf) for role, entry in (conf.get("files") or {}).items()}
    if "interactions" not in files:
        raise ValueError("a data set's `files` must name its log: `files: {interactions: <name or pattern>}`")
    url = _fill_category(conf.get("url"), conf)
    dataset_folder = _DatasetFolder(folder, conf, files, url)
    paths = {role: file.find(folder) for role, file in files.items()}
    if url and any(not paths[role] and not file.optional for role, file in files.items()):
        dataset_folder.obtain(url, conf.get("checksum"))
    for role, file in files.items():
        paths[role] = file.find(folder)
        if not paths[role] and file.url:
            try:
                dataset_folder.obtain(file.url, file.checksum)
            except SourceMissingError as error:
                if not file.optional:
                    raise
                logger.warning("going on without %s: %s", file.pattern, error)
            paths[role] = file.find(folder)
    if any(not paths[role] and not file.optional for role, file in files.items()):
        reason = "not in its archive" if url else "nothing to download it from"
        raise SourceMissingError(dataset_folder.missing_message(reason))
    _show_licence(conf, folder)
    return _manifest({role: paths[role] for role in paths if paths[role]})


def download(url: str, path: Path, *, checksum: str | None) -> Path:
    """Download a file over http(s) and verify it. checksum: ``md5:...`` or ``sha256:...``, None if unknown.

    Raises ValueError for another scheme or a wrong checksum; OSError (the base of requests' errors) if the server
    cannot be reached, has no such file, or breaks off too often. Then the part stays for the next run.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} cannot be downloaded: only http and https addresses can")
    part = path.with_name(path.name + ".part")

    def resume(url: str, output_file: str, _: object) -> None:
        _download_part(url, part, name=path.name)
        os.replace(part, output_file)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=resume)
    except ValueError as error:
        raise ValueError(f"{path.name} from {url} is not the file expected: {error}") from error
    finally:
        if not part.exists():
            _etag_file(part).unlink(missing_ok=True)
    return path


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


def _download_part(url: str, part: Path, *, name: str) -> None:
    """Complete a part, with a new request where the connection breaks off."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _request_rest(url, part, name=name)
        except HTTPError as error:  # urllib3 also raises it for fewer bytes than announced
            logger.warning("%s: the connection broke off (%s)", name, error)
        time.sleep(min(attempt, 3) if attempt < ATTEMPTS else 0)
    raise requests.exceptions.ConnectionError(
        f"broke off {ATTEMPTS} times; {part} is kept, and the next run goes on from it"
    )


def _request_rest(url: str, part: Path, *, name: str) -> None:
    """Request the missing bytes of a part; the server sends the whole file if its ETag has changed."""
    size = part.stat().st_size if part.exists() else 0
    etag = _etag_file(part).read_text() if _etag_file(part).exists() else ""
    headers = {"Accept-Encoding": "identity"}
    if size and etag:
        headers |= {"Range": f"bytes={size}-", "If-Range": etag}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416:  # no bytes after the part: it is complete, or the file has changed
            if content_range == f"bytes */{size}":
                return
            part.unlink()
            raise HTTPError("the file has changed on the server")
        response.raise_for_status()
        start = size if response.status_code == 206 and content_range.startswith(f"bytes {size}-") else 0
        _etag_file(part).write_text(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with part.open("ab" if start else "wb") as out, progress(total, f"download {name}", unit=BYTES) as bar:
            bar.skip(start)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                out.write(chunk)
                bar.add(len(chunk))


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


@dataclass(frozen=True)
class _DatasetFolder:
    """Folder of a data set that files are downloaded to."""

    path: Path
    conf: Mapping[str, Any]
    files: Mapping[str, DatasetFile]
    url: str  # of an archive of all files

    def obtain(self, url: str, checksum: str | None) -> None:
        """Take the file of an address from the folder or download it, verify it, and unpack it if it is an archive."""
        path = self.path / _name(url)
        if path.exists():
            _verify(path, checksum)
        else:
            try:
                download(url, path, checksum=checksum)
            except OSError as error:
                if error.errno is not None and not isinstance(error, ConnectionError):
                    raise  # such as a full disk
                raise SourceMissingError(self.missing_message(f"{url} cannot be downloaded ({error})")) from error
        if path.suffix in ARCHIVES:
            unpack(path, self.path, patterns=[file.pattern for file in self.files.values()])

    def missing_message(self, reason: str) -> str:
        """Compose an error message with the files to put into the folder and their addresses."""
        names = ", ".join(file.pattern for file in self.files.values() if not file.optional)
        needed = f"{_name(self.url)}, or {names} out of it," if self.url else names
        addresses = [self.url, *(file.url for file in self.files.values()), self.conf.get("homepage")]
        unique = dict.fromkeys(filter(None, addresses))
        where = f" It comes from {' , '.join(unique)}" if unique else ""
        title = self.conf.get("title", "the data set")
        return f"{title} is not there: {reason}. Put {needed} into {self.path}.{where}"


def _fill_category(template: str | None, conf: Mapping[str, Any]) -> str:
    """Replace ``{category}`` in a name or address; None becomes empty."""
    if not template or "{category}" not in template:
        return template or ""
    category = str((conf.get("options") or {}).get("category", ""))
    if not category or not all(sign.isalnum() or sign in "_-" for sign in category):
        raise ValueError(f"category {category!r} must be a name such as Video_Games: set `options: {{category: ...}}`")
    return template.replace("{category}", category)


def _name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not name or name.startswith("."):
        raise ValueError(f"{url} does not end in the name of a file")
    return name


def _verify(path: Path, checksum: str | None) -> None:
    if not checksum:
        return
    algorithm, _, expected = checksum.rpartition(":")
    algorithm, expected = algorithm or "sha256", expected.lower()
    if algorithm not in ("md5", "sha1", "sha256", "sha512"):
        raise ValueError(f"unknown checksum {algorithm!r}: write `md5:...`, `sha1:...`, `sha256:...` or `sha512:...`")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream, progress(path.stat().st_size, f"check {path.name}", unit=BYTES) as bar:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            bar.add(len(chunk))
    if digest.hexdigest() != expected:
        raise ValueError(
            f"{path} is not the file expected: its {algorithm} is {digest.hexdigest()}, not {expected}. "
            "Delete it to have it downloaded again; to use a copy that you trust, unpack it there, "
            "or set `checksum: null` for the data set"
        )


def _show_licence(conf: Mapping[str, Any], folder: Path) -> None:
    marker = folder / ".licence-shown"
    if not conf.get("licence") or marker.exists():
        return
    logger.info("%s: %s", conf.get("title", folder.name), " ".join(str(conf["licence"]).split()))
    if conf.get("citation"):
        logger.info("Please cite: %s", " ".join(str(conf["citation"]).split()))
    try:
        marker.write_text(str(conf["licence"]))
    except OSError as error:
        logger.debug("%s not written: %s", marker, error)


def _manifest(paths: Mapping[str, list[Path]]) -> dict[str, Any]:
    """Return paths by role, their total size and a fingerprint of names and contents."""
    digest = hashlib.sha256()
    size = 0
    for role, files in sorted(paths.items()):
        for path in files:
            length = path.stat().st_size
            size += length
            digest.update(f"{role}/{path.name}/{length}/".encode())
            with path.open("rb") as stream:
                if length > FULL_HASH_BYTES:
                    digest.update(stream.read(END_BYTES))
                    stream.seek(-END_BYTES, 2)
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
    return {
        "files": {role: [str(path) for path in files] for role, files in paths.items()},
        "bytes": size,
        "fingerprint": digest.hexdigest(),
    }


def _unzip(archive: Path, folder: Path, patterns: list[str], limit: int) -> list[Path]:
    paths = []
    with zipfile.ZipFile(archive) as packed:
        targets = {member: _safe_path(member, archive) for member in packed.infolist() if not member.is_dir()}
        has_root = all(len(path.parts) > 1 for path in targets.values())
        has_root &= len({path.parts[0] for path in targets.values()}) == 1
        for member, target in targets.items():
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
