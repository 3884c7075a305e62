"""Download of images from untrusted web addresses, with limits on bytes, redirects, seconds and retries.

Only public addresses are fetched (protection against server-side request forgery), and the connection goes to an
address that was checked, so that a second DNS answer cannot redirect it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urljoin

import certifi
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

from recpipe.data.atomic import atomic_file

log = logging.getLogger(__name__)

CHUNK = 1 << 16  # bytes
MAX_REDIRECTS = 5
TOTAL_TIMEOUTS = 6  # the whole response may take this many times `timeout`
MAX_RETRY_AFTER = 30.0  # seconds
REDIRECTS = (301, 302, 303, 307, 308)
HEADERS = {"User-Agent": "recpipe", "Accept": "image/*", "Accept-Encoding": "identity"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052, with an IPv4 address at its end
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # beyond: local NAT64 (64:ff9b:1::/48), IPv4-compatible ::10.0.0.1
SPECIAL = [  # not public, which Python knows from 3.11.9 on
    ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20")
]


class UnusableImageError(Exception):
    """An image cannot be used; the message is the reason that the quarantine table shows."""


class UnreachableHostError(UnusableImageError):
    """The server did not answer; the image itself may be fine."""


class TransientError(Exception):
    """A failure that a retry may cure; ``wait`` is the Retry-After of the server in seconds."""

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
    offline: bool = False,
    backoff: float = 0.5,
) -> bytes:
    """Return the body of ``url``, from ``cache_folder`` where it was fetched before; ``offline``: only from there.

    ``timeout`` in seconds limits the connection and the pause between two packets; the whole response may take
    ``TOTAL_TIMEOUTS`` times as long. ``private`` allows addresses that are not public. Proxies of the environment are
    not used. Raises FileNotFoundError for status 404 and 410 and for what is not cached if ``offline``,
    UnreachableHostError for a server that does not answer, UnusableImageError with the reason for all else.
    """
    name = hashlib.sha256(url.encode()).hexdigest()
    cached = cache_folder / name[:2] / name if cache_folder else None
    if cached and cached.is_file() and cached.stat().st_size <= max_bytes:
        return cached.read_bytes()
    if offline:
        raise FileNotFoundError(f"{url} has not been fetched before")
    for attempt in range(retries + 1):
        try:
            body = _follow_redirects(url, max_bytes, timeout, private)
            break
        except TransientError as failure:
            if attempt == retries:
                raise UnreachableHostError(f"{failure} (tries: {retries + 1})") from failure
            wait = max(backoff * 2**attempt, min(failure.wait, MAX_RETRY_AFTER))
            log.debug("%s: %s; retry in %.1f s", url, failure, wait)
            time.sleep(wait)
    if cached:
        with atomic_file(cached, digest=False) as temporary:
            temporary.write_bytes(body)
    return body


def _follow_redirects(url: str, max_bytes: int, timeout: float, private: bool) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        target = _parse(url)
        with _response(target, public_addresses(target, private=private), timeout) as response:
            if response.status not in REDIRECTS:
                return _read_body(response, max_bytes)
            location = response.headers.get("Location")
        if not location:
            raise UnusableImageError("a redirect that leads nowhere")
        url = urljoin(url, location)
    raise UnusableImageError(f"more than {MAX_REDIRECTS} redirects")


def _parse(url: str) -> Url:
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
    """Resolve the host of ``target`` to its addresses.

    Raises UnusableImageError if an address is not public, unless ``private`` allows it, and TransientError for a host
    that is not known.
    """
    host = _hostname(target)
    try:
        entries = socket.getaddrinfo(host, _port(target), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise TransientError(f"host {host} is not known ({error})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not private and (hidden := [address for address in addresses if not is_public(address)]):
        raise UnusableImageError(f"host {host} has the address {hidden[0]}, which is not public")
    return addresses


def is_public(text: str) -> bool:
    """Return whether an address, and every IPv4 address embedded in an IPv6 one, is public."""
    address = ipaddress.ip_address(text.partition("%")[0])
    targets: list[ipaddress.IPv4Address | ipaddress.IPv6Address | None] = [address]
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address in NAT64 or address.ipv4_mapped is not None:
            targets = [last]
        elif address.sixtofour is not None:  # some versions of Python count all of them as private
            targets = [address.sixtofour]
        elif address not in GLOBAL_UNICAST:
            return False
        else:
            is_isatap = (int(address) >> 32) & 0xFDFFFFFF == 0x5EFE  # RFC 5214
            targets += [*(address.teredo or ()), last if is_isatap else None]
    return all(
        target.is_global and not target.is_multicast and not any(target in network for network in SPECIAL)
        for target in targets
        if target is not None
    )


@contextmanager
def _response(target: Url, addresses: list[str], timeout: float) -> Iterator[BaseHTTPResponse]:
    """Yield the response of the first address that accepts a connection; a timer shuts the socket down."""
    connection = _connect(target, addresses, timeout)
    sock, is_late = connection.sock, threading.Event()

    def shut_down() -> None:
        is_late.set()
        with suppress(OSError):
            # close() would not wake a thread that waits for bytes; the method of an SSL socket would wait as well
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(TOTAL_TIMEOUTS * timeout, shut_down)
    timer.daemon = True
    timer.start()
    try:
        headers = {**HEADERS, "Host": target.netloc or ""}
        connection.request("GET", target.request_uri, headers=headers, preload_content=False)
        yield connection.getresponse()
    except FileNotFoundError:
        raise
    except (HTTPError, HTTPException, OSError) as error:
        raise TransientError(_describe(error)) from error
    finally:
        timer.cancel()
        connection.close()
    if is_late.is_set():
        raise TransientError(f"still coming after {TOTAL_TIMEOUTS * timeout:.0f} s")


def _connect(target: Url, addresses: list[str], timeout: float) -> HTTPConnection:
    connect: Callable[..., HTTPConnection] = HTTPConnection
    if target.scheme == "https":
        connect = partial(HTTPSConnection, server_hostname=_hostname(target), ssl_context=_ssl_context())
    errors = []
    for address in addresses:
        connection = connect(address, _port(target), timeout=timeout)
        try:
            connection.connect()
            return connection
        except (HTTPError, OSError) as error:
            connection.close()
            if isinstance(error, ssl.SSLCertVerificationError):
                raise UnusableImageError(f"its certificate is not good for {target.host}: {error}") from error
            errors.append(_describe(error))
    raise TransientError("; ".join(errors))


@cache
def _ssl_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _read_body(response: BaseHTTPResponse, max_bytes: int) -> bytes:
    if response.status in (404, 410):
        raise FileNotFoundError(f"the server answers {response.status}")
    if response.status == 429 or response.status >= 500:
        wait = response.headers.get("Retry-After", "")
        raise TransientError(f"the server answers {response.status}", float(wait) if wait.isdecimal() else 0.0)
    if response.status != 200:
        raise UnusableImageError(f"the server answers {response.status}")
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type.startswith("text/"):
        raise UnusableImageError(f"the server sends {media_type}, not an image")
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise UnusableImageError(f"the server sends it packed ({encoding})")
    length = response.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise UnusableImageError(f"{int(length):,} bytes, more than max_bytes {max_bytes:,}")
    body = bytearray()
    for chunk in response.stream(CHUNK, decode_content=False):
        body += chunk
        if len(body) > max_bytes:
            raise UnusableImageError(f"more than max_bytes {max_bytes:,}")
    return bytes(body)


def _hostname(target: Url) -> str:
    return (target.host or "").strip("[]")


def _port(target: Url) -> int:
    return target.port or (443 if target.scheme == "https" else 80)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
