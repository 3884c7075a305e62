"""Downloads that go on where they stopped: what has arrived lies in `<name>.part` until the whole file is
there.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from urllib3.exceptions import HTTPError

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
