"""Images from the web: only public addresses, and never more bytes, hops, seconds or tries than agreed."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urljoin

import certifi
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from recpipe.content.image_sources import Unreachable, UnusableImageError
from recpipe.data.atomic import atomic_file

logger = logging.getLogger(__name__)

CHUNK = 1 << 16
HOPS = 5  # redirects followed
WHOLE = 6  # times `timeout` that one answer may take from connecting to its last byte
PATIENCE = 30.0  # seconds waited at most because a server asks for it
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "recpipe", "Accept": "image/*", "Accept-Encoding": "identity"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class _Again(Exception):
    """A failure that may pass; `wait` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(
    url: str,
    *,
    max_bytes: int,
    timeout: float = 10.0,
    retries: int = 3,
    cache_folder: Path | None = None,
    private: bool = False,
    backoff: float = 0.5,
) -> bytes:
    """The body of ``url``, from ``cache_folder`` if it is there.

    ``timeout`` counts for connecting and between two packets, six times as much for the whole answer. Every
    hop's host is resolved once, all its addresses must be public unless ``private``, and the connection goes
    to an address that was checked. Proxies of the environment are not used. Raises FileNotFoundError where
    the server says that there is nothing (404, 410) and UnusableImageError with the reason for all else.
    """
    kept = (
        cache_folder / (name := hashlib.sha256(url.encode()).hexdigest())[:2] / name if cache_folder else None
    )
    if kept and kept.is_file() and kept.stat().st_size <= max_bytes:
        return kept.read_bytes()
    body = _patiently(url, max_bytes, timeout, retries, private, backoff)
    if kept:
        with atomic_file(kept) as temporary:
            temporary.write_bytes(body)
    return body


def _patiently(
    url: str, max_bytes: int, timeout: float, retries: int, private: bool, backoff: float
) -> bytes:
    for attempt in range(retries + 1):
        try:
            return _follow(url, max_bytes, timeout, private)
        except _Again as failure:
            if attempt == retries:
                raise Unreachable(f"{failure} (tries: {retries + 1})") from failure
            wait = max(backoff * 2**attempt, min(failure.wait, PATIENCE))
            logger.debug("%s: %s; again in %.1f s", url, failure, wait)
            time.sleep(wait)
    raise ValueError(f"retries is {retries}; allowed: 0 and more")


def _follow(url: str, max_bytes: int, timeout: float, private: bool) -> bytes:
    for _ in range(HOPS + 1):
        target = _parsed(url)
        with _answer(target, public_addresses(target, private=private), timeout) as response:
            if response.status not in REDIRECTS:
                return _body(response, max_bytes)
            location = response.headers.get("Location")
        if not location:
            raise UnusableImageError("a redirect that leads nowhere")
        url = urljoin(url, location)
    raise UnusableImageError(f"more than {HOPS} redirects")


def _parsed(url: str) -> Url:
    try:
        target = parse_url(url)
    except (LocationParseError, UnicodeError) as error:
        raise UnusableImageError("not a web address") from error
    if target.scheme not in ("http", "https"):
        raise UnusableImageError(f"scheme {target.scheme!r}: only http and https addresses are fetched")
    if not target.host:
        raise UnusableImageError("an address without a host")
    if target.auth:
        raise UnusableImageError("an address with a user name in it")
    return target


def public_addresses(target: Url, *, private: bool = False) -> list[str]:
    """The addresses of the host. Raises UnusableImageError if one of them is not public and ``private`` is False."""
    host = (target.host or "").strip("[]")
    try:
        found = socket.getaddrinfo(host, _port(target), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Again(f"host {host} is not known ({error})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    hidden = [address for address in addresses if not _is_public(address)]
    if hidden and not private:
        raise UnusableImageError(f"host {host} has the address {hidden[0]}, which is not public")
    return addresses


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    for inner in (address, *_embedded(address)):
        if not inner.is_global or inner.is_multicast or getattr(inner, "is_site_local", False):
            return False
    return True


def _embedded(address: Address) -> list[Address]:
    """The IPv4 addresses that packets to an IPv6 address may end up at."""
    if not isinstance(address, ipaddress.IPv6Address):
        return []
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in NAT64:
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return [inner for inner in found if inner is not None]


@contextmanager
def _answer(target: Url, addresses: list[str], timeout: float) -> Iterator[BaseHTTPResponse]:
    """The answer of the first address that takes the connection; the socket is shut when time is up."""
    connection = _connected(target, addresses, timeout)
    late = threading.Event()
    watch = threading.Timer(WHOLE * timeout, _hang_up, (connection.sock, late))
    watch.daemon = True
    watch.start()
    try:
        host = target.netloc or ""
        connection.request(
            "GET", target.request_uri, headers={**HEADERS, "Host": host}, preload_content=False
        )
        yield connection.getresponse()
    except FileNotFoundError:
        raise
    except (HTTPError, HTTPException, OSError) as error:
        raise _Again(_said(error)) from error
    finally:
        watch.cancel()
        connection.close()
    if late.is_set():
        raise _Again(f"still coming after {WHOLE * timeout:.0f} s")


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        # close() would not wake the thread that waits for bytes, nor may TLS say goodbye first
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _connected(target: Url, addresses: list[str], timeout: float) -> HTTPConnection:
    errors = []
    for address in addresses:
        connection: HTTPConnection
        if target.scheme == "https":
            name = (target.host or "").strip("[]")
            connection = HTTPSConnection(
                address,
                _port(target),
                timeout=timeout,
                server_hostname=name,
                ssl_context=_trust(),
            )
        else:
            connection = HTTPConnection(address, _port(target), timeout=timeout)
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as error:
            connection.close()
            raise UnusableImageError(f"its certificate is not good for {target.host}: {error}") from error
        except (HTTPError, OSError) as error:
            connection.close()
            errors.append(_said(error))
        else:
            return connection
    raise _Again("; ".join(errors))


@cache
def _trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    if response.status in (404, 410):
        raise FileNotFoundError(f"the server answers {response.status}")
    if response.status == 429 or response.status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise _Again(f"the server answers {response.status}", float(wait) if wait.isdecimal() else 0.0)
    if response.status != 200:
        raise UnusableImageError(f"the server answers {response.status}")
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind.startswith("text/"):
        raise UnusableImageError(f"the server sends {kind}, not an image")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise UnusableImageError(f"the server sends it packed ({response.headers['Content-Encoding']})")
    return _limited(response, max_bytes)


def _limited(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    announced = response.headers.get("Content-Length", "")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise UnusableImageError(f"{int(announced):,} bytes, more than max_bytes {max_bytes:,}")
    parts, size = [], 0
    for chunk in response.stream(CHUNK, decode_content=False):
        parts.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise UnusableImageError(f"more than max_bytes {max_bytes:,}")
    return b"".join(parts)


def _port(target: Url) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
