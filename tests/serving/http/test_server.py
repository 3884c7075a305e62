"""The server on a real socket: slow and wrong clients, limits of connections, signals, settings of the command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn
from tests.conftest import PROJECT
from tests.serving.small_service import IDS, VERSIONS, write_bundle

from recpipe.config import ConfigError, DataPaths
from recpipe.serving.http.protocol import GracefulServer
from recpipe.serving.server import check_access, main, model_finder, model_folders, named_folders
from recpipe.training.bundle_folders import KINDS

CHUNK = b"1000\r\n" + b" " * 4096 + b"\r\n"
LIMITS = "serve.client_timeout=0.5,serve.connections=8,serve.max_body=5000,serve.shutdown_timeout=5.0"


def start(folder: Path, port: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "recpipe.serving.server", str(folder / "sasrec")]
    command += ["--conf", str(PROJECT / "conf"), "--env", "test", "--params", f"{LIMITS},serve.port={port}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(PROJECT / "src")})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, subprocess.Popen]]:
    folder = tmp_path_factory.mktemp("models")
    write_bundle(folder / "sasrec", VERSIONS[0])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start(folder, port)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        try:
            if b" 200 " in exchange(port, b"GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"):
                break
        except OSError:
            pass
        time.sleep(0.1)
    yield port, process
    process.kill()
    process.wait()


def exchange(port: int, *parts: bytes, wait: float = 0.0) -> bytes:
    """Send parts with a pause between them; return all that comes until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for part in parts:
            try:
                connection.sendall(part)
            except OSError:
                break
            time.sleep(wait)
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionError:
            pass
        return answer


def request(body: bytes, *headers: str) -> bytes:
    lines = ["POST /recommend HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def status_and_message(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


def test_a_request_is_answered(server):
    body = json.dumps({"items": IDS[:2], "k": 3}).encode()
    answer = exchange(server[0], request(body, f"Content-Length: {len(body)}"))
    assert answer.startswith(b"HTTP/1.1 200") and len(json.loads(answer.partition(b"\r\n\r\n")[2])["lists"]) == 1


@pytest.mark.parametrize(
    ("parts", "status", "message"),
    [
        ([b"\x16\x03\x01\x02\x00\x01nonsense\r\n\r\n"], 400, "Invalid HTTP"),
        ([b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 70_000], 431, "more than"),
        ([request(b"", "Content-Length: 100000000")], 413, "too long"),
        ([request(b"", "Transfer-Encoding: chunked"), CHUNK, CHUNK], 413, "too long"),
    ],
    ids=["no-http", "long-header", "long-body", "long-chunks"],
)  # fmt: skip
def test_wrong_and_long_requests_are_refused_and_closed(server, parts, status, message):
    answer = exchange(server[0], *parts, wait=0.05)
    assert status_and_message(answer)[0] == status and message in status_and_message(answer)[1]


@pytest.mark.parametrize(
    "parts",
    [[b"POST /recommend HT"], [b"GET /ready HTTP/1.1\r\nHost: local"], [request(b'{"items', "Content-Length: 100")]],
    ids=["request line", "header", "body"],
)
def test_a_client_that_stops_sending_is_closed_after_its_time(server, parts):
    started = time.monotonic()
    assert status_and_message(exchange(server[0], *parts))[0] == 408
    assert 0.3 < time.monotonic() - started < 8


def test_more_connections_than_allowed_are_refused(server):
    port = server[0]
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(8)]
    try:
        time.sleep(0.1)
        assert status_and_message(exchange(port, b""))[0] == 503
    finally:
        for connection in idle:
            connection.close()


def test_sigterm_answers_what_is_in_progress_and_ends_with_0(server):
    port, process = server
    body = json.dumps({"items": IDS[:2]}).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request(body[:5], f"Content-Length: {len(body)}"))
        time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1)
        connection.sendall(body[5:])
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert process.wait(10) == 0


def test_others_are_served_only_with_a_key():
    assert check_access("127.0.0.1", None) is None and check_access("::1", "") is None
    assert check_access("0.0.0.0", "k" * 16) == "k" * 16
    for host in ("0.0.0.0", "::", "192.168.1.5", "shop.example"):
        with pytest.raises(ConfigError, match="RECPIPE_API_KEY"):
            check_access(host, None)
    with pytest.raises(ConfigError, match="at least 16"):
        check_access("127.0.0.1", "short")


def test_settings_that_cannot_be_served_are_one_line_errors(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RECPIPE_API_KEY", raising=False)
    conf = ["--conf", str(PROJECT / "conf"), "--env", "test", "--params"]
    for params, message in {
        f"data={tmp_path}": "has a bundle: train one",
        "serve.host=0.0.0.0": "RECPIPE_API_KEY",
        "serve.prot=1": "serve.prot",
        "serve.port=99999999": "serve.port",
    }.items():
        assert main([*conf, params]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and message in line
    assert main([str(tmp_path / "none"), *conf[:-1]]) == 2
    assert "no bundle in" in capsys.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        write_bundle(tmp_path / "sasrec", VERSIONS[0])
        assert main([str(tmp_path / "sasrec"), *conf, f"serve.port={other.getsockname()[1]}"]) == 2
    assert "choose another port" in capsys.readouterr().err
    assert main([str(tmp_path / "sasrec"), *conf, "serve.port=0,serve.device=tpu"]) == 2
    assert "serve.device is 'tpu'" in capsys.readouterr().err


def test_models_are_found_by_folder_and_by_name(tmp_path):
    for name in ("sasrec", "popular"):
        write_bundle(tmp_path / name, VERSIONS[0], name=name)
    (tmp_path / "unfinished" / "seed_1" / "work").mkdir(parents=True)
    assert model_folders(tmp_path, "all", KINDS).keys() == {"sasrec", "popular"}
    assert model_folders(tmp_path, "popular+unfinished", KINDS).keys() == {"popular"}
    assert model_folders(tmp_path, "all", ("production",)) == {}
    write_bundle(tmp_path / "06_models" / "tiny" / "sasrec", VERSIONS[0])
    paths = DataPaths(str(tmp_path), str(tmp_path), "tiny")
    assert model_finder([], paths, "sasrec", KINDS)().keys() == {"sasrec"}
    with pytest.raises(ConfigError, match="serve.models names tigr, .* bundles of sasrec"):
        model_finder([], paths, "sasrec+tigr", KINDS)
    folders = [str(tmp_path / "sasrec"), f"shop={tmp_path / 'sasrec'}"]
    assert named_folders(folders) == {"sasrec": tmp_path / "sasrec", "shop": tmp_path / "sasrec"}
    with pytest.raises(ConfigError, match="two bundles are called sasrec"):
        named_folders([folders[0], folders[0]])


def test_a_server_in_a_thread_leaves_signals_to_the_main_thread() -> None:
    async def run() -> bool:
        with GracefulServer(uvicorn.Config("unused:app")).capture_signals():
            return True

    before = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: asyncio.run(run())).result()
    assert signal.getsignal(signal.SIGINT) is before
