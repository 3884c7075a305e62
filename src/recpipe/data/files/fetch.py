"""Fetching of a data set's raw files: use those in its folder, download, verify and unpack the others.

Downloads resume: incomplete files wait as ``<name>.part`` beside their ETag. Why this is ours: docs/decisions/0035.
All files are hashed and verified before they are read, see `archives`.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError

from recpipe.data.files.archives import CHUNK, read_verified, unpack
from recpipe.progress import BYTES, progress

logger = logging.getLogger(__name__)

TIMEOUT = (10, 60)  # seconds to connect, seconds between two chunks
ATTEMPTS = 5
ARCHIVES = (".zip", ".bz2")
NO_DATA = re.compile(  # paths that a pattern leaves out: hidden ones, those of Spark and macOS, unfinished downloads
    r"/\.|/_SUCCESS$|/_(common_)?metadata$|/_(committed|started)_|/(_temporary|_delta_log|__MACOSX)/"
    r"|\.(part|partial|crdownload|tmp|etag|crc)$|~$"
)


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
        """Find files, if need be in subfolders; raise ValueError for a name in several places.

        A path that exists is taken literally, whatever brackets it contains. A pattern leaves out hidden files and
        those that programs put beside data, and takes a file once under all its links.
        """
        root, rest = folder, list(Path(self.pattern).parts)
        while rest and (root / rest[0]).exists():
            root /= rest.pop(0)
        if not rest:
            if root.is_dir():
                raise ValueError(f"{root} is a folder: name the files in it, such as `{self.pattern}/*.csv`")
            return [root] if root.is_file() else []
        pattern = str(Path(*rest))
        if Path(pattern).is_absolute():
            return []
        files = list(root.glob(pattern))
        if not files and not Path(self.pattern).is_absolute():
            root = folder
            files = list(root.rglob(glob.escape(self.pattern))) or list(root.rglob(self.pattern))
        files = self._unique([path for path in sorted(files) if path.is_file()], root)
        if len(files) > 1 and not glob.has_magic(self.pattern):
            raise ValueError(f"{self.pattern} lies in several places: {', '.join(map(str, files))}. Keep one of them")
        return files

    def _unique(self, paths: list[Path], root: Path) -> list[Path]:
        """Leave out files that are no data, and second names of a file, with a line in the log."""
        wants_hidden = "/." in f"/{self.pattern}"
        data = [path for path in paths if wants_hidden or not NO_DATA.search(f"/{path.relative_to(root).as_posix()}")]
        files: dict[tuple[int, int], Path] = {}
        for path in sorted(data, key=Path.is_symlink):
            status = path.stat()
            files.setdefault((status.st_dev, status.st_ino), path)
        unique = sorted(files.values())
        if others := [path for path in paths if path not in unique]:
            logger.warning(
                "%s: %d files left out, no data (hidden, of a marker or unfinished) or links to one that is read: %s",
                self.pattern,
                len(others),
                ", ".join(str(path.relative_to(root)) for path in others[:5]) + (", …" if others[5:] else ""),
            )
        return unique


def fetch(conf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Locate or download the files of a data set, and log its licence once.

    conf: block of the data set with ``files``, role to name, pattern or {name, url, checksum, optional}; ``url`` and
    ``checksum`` of an archive of all files. ``{category}`` in them is replaced by the option of that name. Returns
    {"files": {role: paths}, "manifest": [{role, path, bytes, sha256, checksums}], "bytes": total size, "fingerprint":
    sha256 of names and contents}; checksums: the kind of those verified inside the file, or null. Raises
    SourceMissingError for files that cannot be downloaded, ValueError for a wrong checksum and a damaged file.
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
        paths[role] = paths[role] or file.find(folder)
        if not paths[role] and file.url:
            try:
                dataset_folder.obtain(file.url, file.checksum)
            except SourceMissingError as error:
                if not file.optional:
                    raise
                logger.warning("going on without %s: %s", file.pattern, error)
            paths[role] = file.find(folder)
    if missing := [file.pattern for role, file in files.items() if not paths[role] and not file.optional]:
        reason = f"{', '.join(missing)} {'not in its archive' if url else 'missing'}"
        raise SourceMissingError(dataset_folder.missing_message(reason, missing))
    _show_licence(conf, folder)
    return _manifest({role: paths[role] for role in paths if paths[role]}, files)


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
            if checksum:
                _verify(path, checksum, contents=False)
        else:
            try:
                download(url, path, checksum=checksum)
            except OSError as error:
                if error.errno is not None and not isinstance(error, ConnectionError):
                    raise  # such as a full disk
                raise SourceMissingError(self.missing_message(f"{url} cannot be downloaded ({error})")) from error
        patterns = [file.pattern for file in self.files.values()]
        if path.suffix.lower() in ARCHIVES and path.name not in patterns:
            unpack(path, self.path, patterns=patterns)

    def missing_message(self, reason: str, missing: Sequence[str] = ()) -> str:
        """Compose an error message with the files to put into the folder, what it has, and their addresses.

        missing: patterns without a file; by default all of the data set.
        """
        names = ", ".join(missing or (file.pattern for file in self.files.values() if not file.optional))
        needed = f"{_name(self.url)}, or {names} out of it," if self.url else names
        addresses = [self.url, *(file.url for file in self.files.values()), self.conf.get("homepage")]
        unique = dict.fromkeys(filter(None, addresses))
        where = f" It comes from {' , '.join(unique)}" if unique else ""
        title = self.conf.get("title", "the data set")
        present = sorted(path.name for path in self.path.iterdir()) if missing and self.path.is_dir() else []
        has = f", which has {', '.join(present[:9])}{', …' if present[9:] else ''}" if present else ""
        return f"{title} is not there: {reason}. Put {needed} into {self.path}{has}.{where}"


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


def _checksum(checksum: str) -> tuple[str, str]:
    """Split ``md5:...`` into algorithm and digest; SHA-256 without one."""
    algorithm, _, expected = checksum.rpartition(":")
    algorithm = algorithm or "sha256"
    if algorithm not in ("md5", "sha1", "sha256", "sha512"):
        raise ValueError(f"unknown checksum {algorithm!r}: write `md5:...`, `sha1:...`, `sha256:...` or `sha512:...`")
    return algorithm, expected.lower()


def _verify(path: Path, checksum: str | None, *, contents: bool = True) -> dict[str, Any]:
    """Verify a file's checksum and, with ``contents``, those inside it; return its entry in the manifest."""
    algorithm, expected = _checksum(checksum) if checksum else ("sha256", "")
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in {"sha256", algorithm}}
    verified = read_verified(path, digests.values(), contents=contents)
    digest = digests[algorithm].hexdigest()
    if expected and digest != expected:
        raise ValueError(
            f"{path} is not the file expected: its {algorithm} is {digest}, not {expected}. "
            "Delete it to have it downloaded again; to use a copy that you trust, unpack it there, "
            "or set `checksum: null` for the data set"
        )
    sha256 = digests["sha256"].hexdigest()
    return {"path": str(path), "bytes": path.stat().st_size, "sha256": sha256, "checksums": verified}


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


def _manifest(paths: Mapping[str, list[Path]], files: Mapping[str, DatasetFile]) -> dict[str, Any]:
    """Read and verify all files; return paths by role, an entry per file, total size and fingerprint."""
    entries = []
    for role, role_paths in sorted(paths.items()):
        for path in role_paths:
            is_archive_checksum = files[role].url and _name(files[role].url) != path.name
            checksum = None if len(role_paths) > 1 or is_archive_checksum else files[role].checksum
            entries.append({"role": role, **_verify(path, checksum)})
    _warn_of_copies(entries)
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(f"{entry['role']}/{Path(entry['path']).name}/{entry['sha256']}/".encode())
    return {
        "files": {role: [str(path) for path in role_paths] for role, role_paths in paths.items()},
        "manifest": entries,
        "bytes": sum(entry["bytes"] for entry in entries),
        "fingerprint": digest.hexdigest(),
    }


def _warn_of_copies(entries: list[dict[str, Any]]) -> None:
    """Log the files of a role that have the content of another one: their rows count twice."""
    first: dict[tuple[str, str], str] = {}
    for entry in entries:
        original = first.setdefault((entry["role"], entry["sha256"]), entry["path"])
        if original != entry["path"] and entry["bytes"]:
            logger.warning("%s is a copy of %s, and its rows count again: delete one", entry["path"], original)
