"""Download of images from a loopback server that misbehaves, and addresses that are never contacted."""

from __future__ import annotations

import ipaddress
import random
import socket
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from urllib3.util import parse_url

from recpipe.content import image_urls
from recpipe.content.image_urls import TransientError, UnreachableHostError, UnusableImageError, fetch, public_addresses

Answer = Callable[[BaseHTTPRequestHandler], None]
get = partial(fetch, max_bytes=1000, timeout=2.0, retries=2, private=True, backoff=0.01)


class Site:
    """A server whose pages are functions; it counts requests per path."""

    def __init__(self) -> None:
        self.pages: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.hosts: set[str] = set()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.requests[self.path] += 1
                site.agents.add(self.headers["User-Agent"])
                site.hosts.add(self.headers["Host"])
                site.pages[self.path](self)

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]

    def url(self, path: str = "/a.jpg", host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=partial(site.server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def respond(body: bytes = b"pixels", status: int = 200, length: bool = True, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        if length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return answer


def in_turn(*answers: Answer) -> Answer:
    left = iter(answers)

    def answer(request: BaseHTTPRequestHandler) -> None:
        next(left)(request)

    return answer


def test_a_body_comes_back_and_we_say_who_asks(site: Site) -> None:
    site.pages["/a.jpg?size=2&x=%C3%BC"] = respond()
    assert get(site.url("/a.jpg?size=2&x=ü")) == b"pixels"
    assert site.agents == {"recpipe"}
    assert site.hosts == {f"127.0.0.1:{site.port}"}


def test_the_second_time_it_comes_from_the_cache(site: Site, tmp_path: Path) -> None:
    site.pages |= {"/a.jpg": respond(b"first"), "/b.jpg": respond(b"second")}
    bodies = [get(site.url(path), cache_folder=tmp_path) for path in ("/a.jpg", "/a.jpg", "/b.jpg")]
    assert bodies == [b"first", b"first", b"second"]
    assert site.requests == {"/a.jpg": 1, "/b.jpg": 1}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 2


def test_a_refused_answer_is_not_kept(site: Site, tmp_path: Path) -> None:
    site.pages["/a.jpg"] = in_turn(respond(b"<html>", Content_Type="text/html; charset=utf-8"), respond())
    with pytest.raises(UnusableImageError, match="text/html"):
        get(site.url(), cache_folder=tmp_path)
    assert get(site.url(), cache_folder=tmp_path) == b"pixels"


@pytest.mark.parametrize("length", [True, False], ids=["announced", "not announced"])
def test_more_bytes_than_allowed(site: Site, length: bool) -> None:
    site.pages |= {"/a.jpg": respond(b"x" * 1001, length=length), "/b.jpg": respond(b"x" * 1000, length=length)}
    with pytest.raises(UnusableImageError, match="more than max_bytes 1,000"):
        get(site.url())
    assert len(get(site.url("/b.jpg"))) == 1000
    assert site.requests["/a.jpg"] == 1


def test_an_endless_answer_is_left_after_max_bytes(site: Site) -> None:
    def endless(request: BaseHTTPRequestHandler) -> None:
        respond(b"", length=False)(request)
        while True:
            request.wfile.write(b"x" * 4096)

    site.pages["/a.jpg"] = endless
    with pytest.raises(UnusableImageError, match="max_bytes"):
        get(site.url(), max_bytes=1 << 20)


@pytest.mark.parametrize("status", [404, 410])
def test_nothing_there_is_a_missing_file_and_is_asked_once(site: Site, status: int) -> None:
    site.pages["/a.jpg"] = respond(status=status)
    with pytest.raises(FileNotFoundError):
        get(site.url())
    assert site.requests["/a.jpg"] == 1


def test_forbidden_is_refused_at_once(site: Site) -> None:
    site.pages["/a.jpg"] = respond(status=403)
    with pytest.raises(UnusableImageError, match="403") as raised:
        get(site.url())
    assert site.requests["/a.jpg"] == 1
    assert not isinstance(raised.value, UnreachableHostError)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_busy_server_is_asked_again(site: Site, status: int) -> None:
    site.pages["/a.jpg"] = in_turn(respond(status=status), respond(status=status), respond())
    assert get(site.url()) == b"pixels"
    assert site.requests["/a.jpg"] == 3


def test_a_server_that_stays_busy_is_unreachable(site: Site) -> None:
    site.pages["/a.jpg"] = respond(status=502)
    with pytest.raises(UnreachableHostError, match=r"502 \(tries: 3\)"):
        get(site.url())
    assert site.requests["/a.jpg"] == 3


def test_retry_after_is_heeded(site: Site) -> None:
    site.pages["/a.jpg"] = in_turn(respond(status=429, Retry_After="1"), respond())
    start = time.perf_counter()
    get(site.url())
    assert 0.9 < time.perf_counter() - start < 3


def test_a_broken_off_answer_is_asked_for_again(site: Site) -> None:
    def broken(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "100")
        request.end_headers()
        request.wfile.write(b"half")

    site.pages["/a.jpg"] = in_turn(broken, respond())
    assert get(site.url()) == b"pixels"


def test_not_http_at_all_and_a_closed_port_are_unreachable(site: Site) -> None:
    site.pages["/a.jpg"] = lambda request: request.wfile.write(b"SSH-2.0\r\n\r\n")
    with pytest.raises(UnreachableHostError):
        get(site.url(), retries=0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(UnreachableHostError, match="refused"):
        get(f"http://127.0.0.1:{port}/a.jpg", retries=0)


def test_silence_runs_into_the_timeout(site: Site) -> None:
    site.pages["/a.jpg"] = lambda request: time.sleep(2)
    start = time.perf_counter()
    with pytest.raises(UnreachableHostError, match="[Tt]imed? ?out"):
        get(site.url(), timeout=0.2, retries=0)
    assert time.perf_counter() - start < 1


@pytest.mark.parametrize("stage", ["headers", "body", "body of no length"])
def test_a_drip_of_bytes_is_cut_off(site: Site, stage: str) -> None:
    def drip(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"HTTP/1.0 200 OK\r\n")
        if stage == "body":
            request.wfile.write(b"Content-Length: 500\r\n\r\n")
        elif stage == "body of no length":
            request.wfile.write(b"\r\n")
        for _ in range(100):
            request.wfile.write(b"x")
            time.sleep(0.05)

    site.pages["/a.jpg"] = drip
    start = time.perf_counter()
    with pytest.raises(UnreachableHostError):
        get(site.url(), timeout=0.1, retries=0)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site: Site, status: int) -> None:
    site.pages |= {"/a.jpg": respond(status=status, Location="deeper/b.jpg"), "/deeper/b.jpg": respond()}
    assert get(site.url()) == b"pixels"


def test_at_most_five_redirects(site: Site) -> None:
    for hop in range(7):
        site.pages[f"/{hop}"] = respond(status=302, Location=f"/{hop + 1}")
    site.pages |= {"/5": respond(), "/round": respond(status=302, Location="/round")}
    assert get(site.url("/0")) == b"pixels"
    with pytest.raises(UnusableImageError, match="more than 5 redirects"):
        get(site.url("/round"))
    assert site.requests["/round"] == 6


def test_every_hop_is_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first hop passes as public; the redirect to the machine's own address does not."""
    monkeypatch.setattr(image_urls, "is_public", lambda address: address == "127.0.0.1")
    site.pages |= {
        "/a.jpg": respond(status=302, Location="http://169.254.169.254/latest/meta-data"),
        "/b.jpg": respond(status=302, Location="file:///etc/passwd"),
    }
    with pytest.raises(UnusableImageError, match=r"169\.254\.169\.254, which is not public"):
        get(site.url(), private=False)
    with pytest.raises(UnusableImageError, match="scheme 'file'"):
        get(site.url("/b.jpg"), private=False)


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to another address the second time (DNS rebinding) is resolved only once."""
    answers = [[(2, 1, 6, "", ("127.0.0.1", site.port))], [(2, 1, 6, "", ("192.0.2.1", site.port))]]
    getaddrinfo = image_urls.socket.getaddrinfo

    def rebound(host: str, *args: object, **options: object) -> list:
        return answers.pop(0) if host == "pictures.example" else getaddrinfo(host, *args, **options)

    monkeypatch.setattr(image_urls.socket, "getaddrinfo", rebound)
    monkeypatch.setattr(image_urls, "is_public", lambda address: address == "127.0.0.1")
    site.pages["/a.jpg"] = respond()
    assert get(site.url(host="pictures.example"), private=False) == b"pixels"
    assert site.hosts == {f"pictures.example:{site.port}"}
    assert len(answers) == 1


def test_one_address_among_several_that_is_not_public_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = [(2, 1, 6, "", ("93.184.216.34", 80)), (2, 1, 6, "", ("10.0.0.7", 80))]
    monkeypatch.setattr(image_urls.socket, "getaddrinfo", lambda *_, **__: addresses)
    with pytest.raises(UnusableImageError, match=r"10\.0\.0\.7"):
        public_addresses(parse_url("http://shop.example/a.jpg"))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "0.0.0.0",
        "localhost",
        "LOCALHOST",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:a00:1]",
        "[64:ff9b::a00:1]",
        "[2002:a00:1::]",
        "[fc00::1]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
    ],
)
def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    try:
        addresses = public_addresses(parse_url(f"http://{host}/a.jpg"))
    except UnusableImageError as error:
        assert "not public" in str(error)
    except TransientError:
        pytest.skip(f"this machine's resolver does not know {host}")  # so nothing would be fetched either
    else:
        pytest.fail(f"{host} was taken for public: {addresses}")


PRIVATE_IPV4 = ["127.0.0.1", "10.0.0.7", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
IPV4_IN_IPV6: dict[str, Callable[[int], int]] = {
    "mapped": lambda ip: 0xFFFF << 32 | ip,
    "compatible": lambda ip: ip,
    "translated": lambda ip: 0xFFFF << 48 | ip,
    "NAT64": lambda ip: 0x0064FF9B << 96 | ip,
    "local NAT64": lambda ip: 0x0064FF9B0001 << 80 | ip,
    "local NAT64, prefix of 48 bits": lambda ip: 0x0064FF9B0001 << 80 | (ip >> 16) << 64 | (ip & 0xFFFF) << 40,
    "6to4": lambda ip: 0x2002 << 112 | ip << 80 | 1,
    "Teredo client": lambda ip: 0x20010000 << 96 | 0x08080808 << 64 | (ip ^ 0xFFFFFFFF),
    "Teredo server": lambda ip: 0x20010000 << 96 | ip << 64 | (0x08080808 ^ 0xFFFFFFFF),
    "ISATAP": lambda ip: 0x26064700 << 96 | 0x5EFE << 32 | ip,
    "ISATAP, of a public interface": lambda ip: 0x26064700 << 96 | 0x02005EFE << 32 | ip,
}


@pytest.mark.parametrize("form", IPV4_IN_IPV6)
@pytest.mark.parametrize("address", PRIVATE_IPV4)
def test_a_private_address_in_an_ipv6_one_is_refused(monkeypatch: pytest.MonkeyPatch, form: str, address: str) -> None:
    text = str(ipaddress.IPv6Address(IPV4_IN_IPV6[form](int(ipaddress.IPv4Address(address)))))
    monkeypatch.setattr(image_urls.socket, "getaddrinfo", lambda *_, **__: [(10, 1, 6, "", (text, 80, 0, 0))])
    with pytest.raises(UnusableImageError, match="not public"):
        public_addresses(parse_url("http://shop.example/a.jpg"))


@pytest.mark.parametrize("form", ["mapped", "NAT64", "6to4", "ISATAP"])
def test_a_public_address_in_an_ipv6_one_is_taken(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    text = str(ipaddress.IPv6Address(IPV4_IN_IPV6[form](int(ipaddress.IPv4Address("8.8.8.8")))))
    monkeypatch.setattr(image_urls.socket, "getaddrinfo", lambda *_, **__: [(10, 1, 6, "", (text, 80, 0, 0))])
    assert public_addresses(parse_url("http://shop.example/a.jpg")) == [text]


def test_whatever_the_standard_library_calls_private_is_refused() -> None:
    numbers = random.Random(3)
    v4 = [ipaddress.IPv4Address(numbers.getrandbits(32)) for _ in range(5_000)]
    v6 = [ipaddress.IPv6Address(numbers.getrandbits(128)) for _ in range(5_000)]
    for address in [*v4, *v6]:
        if not address.is_global or address.is_multicast or (address.version == 6 and address.is_reserved):
            assert not image_urls.is_public(str(address)), address
    assert sum(image_urls.is_public(str(address)) for address in v4) > 4_000


@pytest.mark.parametrize("host", ["8.8.8.8", "[2606:4700::1111]", "[64:ff9b::808:808]", "134744072"])
def test_public_addresses_are_taken(host: str) -> None:
    assert public_addresses(parse_url(f"http://{host}/a.jpg"))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.com/a.jpg", "scheme 'ftp'"),
        ("file:///etc/passwd", "scheme 'file'"),
        ("gopher://example.com/", "scheme 'gopher'"),
        ("http:///a.jpg", "without a host"),
        ("http://user:secret@example.com/a.jpg", "user name"),
        ("http://example.com:99999/a.jpg", "not a web address"),
        ("http://[::1/a.jpg", "not a web address"),
    ],
)
def test_addresses_that_are_no_web_pages(url: str, reason: str) -> None:
    with pytest.raises(UnusableImageError, match=reason):
        fetch(url, max_bytes=1000)


def test_packed_answers_are_refused(site: Site) -> None:
    site.pages["/a.jpg"] = respond(Content_Encoding="gzip")
    with pytest.raises(UnusableImageError, match="gzip"):
        get(site.url())


@pytest.fixture
def secure(site: Site, tmp_path: Path) -> Path:
    """The site behind TLS, with a certificate for shop.example only."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-keyout", str(key), "-out", str(certificate), "-days", "1", "-subj", "/CN=shop.example"]
    try:
        subprocess.run([*command, "-addext", "subjectAltName=DNS:shop.example"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the openssl command to make a certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    return certificate


def test_tls_is_checked_against_the_name_not_the_address(
    site: Site, secure: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loopback = [(2, 1, 6, "", ("127.0.0.1", site.port))]
    monkeypatch.setattr(image_urls.socket, "getaddrinfo", lambda *_, **__: loopback)
    site.pages["/a.jpg"] = respond()
    with pytest.raises(UnusableImageError, match="certificate"):  # nobody vouches for it
        get(f"https://shop.example:{site.port}/a.jpg")
    monkeypatch.setattr(image_urls, "_ssl_context", lambda: ssl.create_default_context(cafile=str(secure)))
    assert get(f"https://shop.example:{site.port}/a.jpg") == b"pixels"
    with pytest.raises(UnusableImageError, match="certificate"):
        get(f"https://other.example:{site.port}/a.jpg")
