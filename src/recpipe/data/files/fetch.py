"""Downloads that go on where they stopped: what has arrived lies in `<name>.part` until the whole file is
there.

Putting the files of a data set in its folder: those that lie there are taken, the others downloaded,
checked, unpacked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError

from recpipe.data.files.archives import SUFFIXES, unpack
from recpipe.progress import BYTES, progress

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
TIMEOUT = (10, 60)  # seconds to connect, seconds between two chunks
ATTEMPTS = 5


def download(url: str, path: Path, *, checksum: str | None) -> Path:
    """Get a file over http(s) and check it. checksum: `md5:...` or `sha256:...`, or none where none is
    known.

    ValueError: another scheme, a checksum that does not match. OSError (of which requests' errors are): no
    connection, no such file, broken off more often than is tried again; what has arrived stays for the next
    run.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"{url} cannot be downloaded: only http and https addresses can")
    part = path.with_name(path.name + ".part")

    def resuming(url: str, output_file: Any, _: object) -> None:
        _fetch_into(part, url, name=path.name)
        os.replace(part, output_file)

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pooch.retrieve(url, checksum, fname=path.name, path=path.parent, downloader=resuming)
    except ValueError as error:
        raise ValueError(f"{path.name} from {url} is not the file expected: {error}") from error
    finally:
        if not part.exists():
            _validator(part).unlink(missing_ok=True)
    return path


def _fetch_into(part: Path, url: str, *, name: str) -> None:
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if _append(part, url, name=name):
                return
            logger.warning("%s: the connection closed early", name)
        except (HTTPError, requests.exceptions.ChunkedEncodingError) as error:
            logger.warning("%s: the connection broke off (%s)", name, error)
        time.sleep(min(attempt, 3) if attempt < ATTEMPTS else 0)
    raise requests.exceptions.ConnectionError(
        f"broke off {ATTEMPTS} times; {part} is kept, and the next run goes on from it"
    )


def _append(part: Path, url: str, *, name: str) -> bool:
    """One request for what is missing. False: fewer bytes came than the server had announced."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    tag = _validator(part).read_text() if _validator(part).exists() else ""
    if have and tag:
        headers |= {
            "Range": f"bytes={have}-",
            "If-Range": tag,
        }  # the server starts over if the file has changed
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if (
            response.status_code == 416
        ):  # nothing follows: it was whole already, or it is not the same file any more
            if response.headers.get("Content-Range") == f"bytes */{have}":
                return True
            part.unlink()
            return False
        response.raise_for_status()
        resumed = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        start = have if resumed else 0
        _validator(part).write_text(
            response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        )
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        with (
            part.open("ab" if resumed else "wb") as out,
            progress(total, f"download {name}", unit=BYTES) as bar,
        ):
            bar.skip(start)
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                out.write(chunk)
                bar.add(len(chunk))
    return total is None or part.stat().st_size == total


def _validator(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


LICENCE_SHOWN = ".licence-shown"
WHOLLY_HASHED = 1 << 30  # bytes; of a larger file the fingerprint takes both ends
END = 64 << 20


class SourceMissingError(ValueError):
    """Files that are neither in the folder nor to be had; the message says which to put where."""


class Wanted(NamedTuple):
    """A file of a data set: a name or pattern in its folder, and where it comes from, if not from the
    archive of all.
    """

    pattern: str
    url: str | None
    checksum: str | None
    optional: bool


def fetch(conf: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Find or get the files of a data set, and show its licence once.

    conf: the block of the data set, with `files`: role to name, pattern or {name, url, checksum, optional};
    `url` and `checksum` of an archive that holds them all. `{category}` in them stands for the option of
    that name. Returns {"files": {role: paths}, "bytes": their size, "fingerprint": sha256 of names and
    contents}.
    """
    folder = Path(folder)
    wanted = {role: _wanted(entry, conf) for role, entry in (conf.get("files") or {}).items()}
    if "interactions" not in wanted:
        raise ValueError("a data set's `files` must name its log: `files: {interactions: <name or pattern>}`")
    found = {role: _find(folder, file) for role, file in wanted.items()}
    url = _filled(conf.get("url"), conf)
    if url and any(not found[role] and not file.optional for role, file in wanted.items()):
        _obtain(url, conf.get("checksum"), folder, conf, wanted)
    for role, file in wanted.items():
        found[role] = _find(folder, file) or _from_its_own_address(file, folder, conf, wanted)
    absent = [role for role, file in wanted.items() if not found[role] and not file.optional]
    if absent:
        raise SourceMissingError(
            _what_to_do(
                conf, folder, wanted, "nothing to download it from" if not url else "not in its archive"
            )
        )
    _show_licence(conf, folder)
    return _manifest({role: paths for role, paths in found.items() if paths})


def _wanted(entry: str | Mapping[str, Any], conf: Mapping[str, Any]) -> Wanted:
    given = {"name": entry} if isinstance(entry, str) else entry
    pattern = _filled(given["name"], conf)
    assert pattern is not None
    return Wanted(
        pattern, _filled(given.get("url"), conf), given.get("checksum"), bool(given.get("optional"))
    )


def _filled(template: str | None, conf: Mapping[str, Any]) -> str | None:
    """A name or address with the category in place of its mark."""
    if template is None or "{category}" not in template:
        return template
    category = str((conf.get("options") or {}).get("category", ""))
    if not category or not all(sign.isalnum() or sign in "_-" for sign in category):
        raise ValueError(
            f"category {category!r} must be a name such as Video_Games: set `options: {{category: ...}}`"
        )
    return template.replace("{category}", category)


def _find(folder: Path, file: Wanted) -> list[Path]:
    """Files of a name or pattern, sorted; a plain name may also lie one or more folders deeper, as archives
    leave it.
    """
    pattern = Path(file.pattern)
    base, inner = (
        (Path(pattern.anchor), str(pattern.relative_to(pattern.anchor)))
        if pattern.is_absolute()
        else (folder, file.pattern)
    )
    found = sorted(path for path in base.glob(inner) if path.is_file())
    if not found and not pattern.is_absolute() and folder.is_dir():
        deeper = (path for path in folder.rglob(inner) if path.is_file())
        found = sorted(
            path
            for path in deeper
            if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    if len(found) > 1 and not any(sign in file.pattern for sign in "*?["):
        raise ValueError(
            f"{file.pattern} lies in several places: {', '.join(map(str, found))}. Keep one of them"
        )
    if file.checksum and len(found) == 1 and not (file.url and _packed(file.url, found[0].name)):
        _verify(found[0], file.checksum)
    return found


def _from_its_own_address(
    file: Wanted, folder: Path, conf: Mapping[str, Any], wanted: Mapping[str, Wanted]
) -> list[Path]:
    if not file.url:
        return []
    try:
        _obtain(file.url, file.checksum, folder, conf, wanted)
    except SourceMissingError as error:
        if not file.optional:
            raise
        logger.warning("going on without %s: %s", file.pattern, error)
    return _find(folder, file)


def _obtain(
    url: str, checksum: str | None, folder: Path, conf: Mapping[str, Any], wanted: Mapping[str, Wanted]
) -> None:
    """Take the file of an address from the folder or from the net, check it, unpack it if it is packed."""
    path = folder / _name(url)
    if path.exists():
        _verify(path, checksum)
    else:
        try:
            download(url, path, checksum=checksum)
        except OSError as error:
            if error.errno is not None and not isinstance(error, ConnectionError):
                raise
            raise SourceMissingError(
                _what_to_do(conf, folder, wanted, f"{url} cannot be had ({error})")
            ) from error
    if path.suffix in SUFFIXES:
        unpack(path, folder, wanted=[file.pattern for file in wanted.values()])


def _name(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    if not name or name.startswith("."):
        raise ValueError(f"{url} does not end in the name of a file")
    return name


def _packed(url: str, name: str) -> bool:
    """Whether an address gives an archive of the file rather than the file."""
    return _name(url) != name


def _verify(path: Path, checksum: str | None) -> None:
    if not checksum:
        return
    algorithm, _, expected = checksum.rpartition(":")
    found = _digest(path, algorithm or "sha256")
    if found != expected.lower():
        raise ValueError(
            f"{path} is not the file expected: its {algorithm or 'sha256'} is {found}, not "
            f"{expected.lower()}. Delete it to have it downloaded again; "
            "to use a copy that you trust, unpack it there, or set `checksum: null` for the data set"
        )


def _digest(path: Path, algorithm: str) -> str:
    if algorithm not in ("md5", "sha1", "sha256", "sha512"):
        raise ValueError(
            f"unknown checksum {algorithm!r}: write `md5:...`, `sha1:...`, `sha256:...` or `sha512:...`"
        )
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream, progress(path.stat().st_size, f"check {path.name}", unit=BYTES) as bar:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
            bar.add(len(chunk))
    return digest.hexdigest()


def _what_to_do(conf: Mapping[str, Any], folder: Path, wanted: Mapping[str, Wanted], reason: str) -> str:
    names = ", ".join(file.pattern for file in wanted.values() if not file.optional)
    url = _filled(conf.get("url"), conf)
    packed = f"{_name(url)}, or {names} out of it," if url else names
    addresses = [
        address for address in (url, *(file.url for file in wanted.values()), conf.get("homepage")) if address
    ]
    where = f" It comes from {' , '.join(dict.fromkeys(addresses))}" if addresses else ""
    return f"{conf.get('title', 'the data set')} is not there: {reason}. Put {packed} into {folder}.{where}"


def _show_licence(conf: Mapping[str, Any], folder: Path) -> None:
    marker = folder / LICENCE_SHOWN
    if not conf.get("licence") or marker.exists():
        return
    logger.info("%s: %s", conf.get("title", folder.name), " ".join(str(conf["licence"]).split()))
    if conf.get("citation"):
        logger.info("Please cite: %s", " ".join(str(conf["citation"]).split()))
    try:
        marker.write_text(str(conf["licence"]))
    except OSError as error:
        logger.debug("%s not written: %s", marker, error)


def _manifest(found: Mapping[str, list[Path]]) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    for role, paths in sorted(found.items()):
        for path in paths:
            length = path.stat().st_size
            size += length
            digest.update(f"{role}/{path.name}/{length}/".encode())
            with path.open("rb") as stream:
                if length > WHOLLY_HASHED:
                    digest.update(stream.read(END))
                    stream.seek(-END, 2)
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
    return {
        "files": {role: [str(path) for path in paths] for role, paths in found.items()},
        "bytes": size,
        "fingerprint": digest.hexdigest(),
    }
