"""Fetching from a local server that supports ranges: resume, checksums, unpacking, messages without a network."""

from __future__ import annotations

import bz2
import hashlib
import http.server
import io
import logging
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from recpipe.data.files import fetch as download
from recpipe.data.files.fetch import SourceMissingError, fetch
from recpipe.progress import Progress, progress

LOG = b"user,item\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 10007) for n in range(40_000))


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; breaks off after `cut` bytes of a body as often as `cuts` says; notes the ranges
    asked for.
    """

    files: dict[str, bytes]
    cut, cuts, etag = 100_000, 0, '"v1"'
    ranges: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        content = self.server.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = (
            int(asked.split("=")[1].rstrip("-"))
            if asked and self.headers.get("If-Range") == self.server.etag
            else 0
        )
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", self.server.etag)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if self.server.cuts:
            self.server.cuts -= 1
            body = body[: self.server.cut]
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server(("127.0.0.1", 0), Handler)
    running.files, running.ranges = (
        {"/log.csv": LOG, "/log.zip": _zip({"set/log.csv": LOG, "set/README.txt": b"r", "set/x.csv": b"x"})},
        [],
    )
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def _zip(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _conf(url: str, **more: Any) -> dict[str, Any]:
    return {"title": "Test set", "url": url, "files": {"interactions": "log.csv"}} | more


def _sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_archive_is_downloaded_checked_unpacked_and_taken_the_next_time(
    tmp_path: Path, server: Server
) -> None:
    conf = _conf(f"{server.url}/log.zip", checksum=_sha(server.files["/log.zip"]))
    first = fetch(conf, tmp_path)
    assert (tmp_path / "log.csv").read_bytes() == LOG and first["bytes"] == len(LOG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.txt", "log.csv", "log.zip"]
    (tmp_path / "log.zip").unlink()
    assert fetch(conf, tmp_path) == first and len(server.ranges) == 1


def test_fingerprint_follows_the_contents(tmp_path: Path) -> None:
    conf = {"files": {"interactions": "log.csv"}}
    (tmp_path / "log.csv").write_bytes(LOG)
    first = fetch(conf, tmp_path)["fingerprint"]
    (tmp_path / "log.csv").write_bytes(LOG.replace(b"39999,", b"39998,"))
    assert fetch(conf, tmp_path)["fingerprint"] != first


@pytest.mark.parametrize("cuts", [1, 3])
def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, server: Server, cuts: int) -> None:
    server.cuts = cuts
    path = download.download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=_sha(LOG))
    assert path.read_bytes() == LOG
    assert server.ranges == [None, *(f"bytes={(n + 1) * server.cut}-" for n in range(cuts))]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_what_arrived_is_kept_for_the_next_run(tmp_path: Path, server: Server) -> None:
    server.cuts, server.cut = 5, 20_000
    conf = {
        "files": {"interactions": {"name": "log.csv", "url": f"{server.url}/log.csv", "checksum": _sha(LOG)}}
    }
    with pytest.raises(SourceMissingError, match="broke off"):
        fetch(conf, tmp_path)
    assert (tmp_path / "log.csv.part").stat().st_size == 100_000 and not (tmp_path / "log.csv").exists()
    fetch(conf, tmp_path)
    assert server.ranges[-1] == "bytes=100000-" and (tmp_path / "log.csv").read_bytes() == LOG


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path, server: Server) -> None:
    (tmp_path / "log.csv.part").write_bytes(b"x" * 1000)
    (tmp_path / "log.csv.part.etag").write_text('"v0"')
    download.download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=_sha(LOG))
    assert (tmp_path / "log.csv").read_bytes() == LOG


@pytest.mark.parametrize("present", [False, True], ids=["downloaded", "present"])
def test_wrong_checksum_names_file_expected_and_found(tmp_path: Path, server: Server, present: bool) -> None:
    if present:
        (tmp_path / "log.zip").write_bytes(server.files["/log.zip"])
    expected, found = "0" * 32, hashlib.md5(server.files["/log.zip"]).hexdigest()
    with pytest.raises(ValueError, match=r"log\.zip") as error:
        fetch(_conf(f"{server.url}/log.zip", checksum=f"md5:{expected}"), tmp_path)
    assert expected in str(error.value) and found in str(error.value)
    assert not (tmp_path / "log.csv").exists()


def test_progress_shows_what_was_there_already(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars: list[Progress] = []

    def watched(*args: Any, **options: Any) -> Progress:
        bars.append(progress(*args, **options))
        return bars[-1]

    skip, skipped = Progress.skip, list[int]()
    monkeypatch.setattr(Progress, "skip", lambda bar, count: skipped.append(count) or skip(bar, count))
    monkeypatch.setattr(download, "progress", watched)
    server.cuts = 1
    download.download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=None)
    assert skipped == [0, server.cut]
    assert [(bar.done, bar.total) for bar in bars] == [(server.cut, len(LOG)), (len(LOG), len(LOG))]


def test_without_a_network_it_says_what_to_put_where(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/set.zip"
    with pytest.raises(SourceMissingError) as error:
        fetch(_conf(url, homepage="https://example.org/set"), tmp_path / "raw" / "set")
    for part in (
        "Test set",
        "set.zip",
        "log.csv",
        str(tmp_path / "raw" / "set"),
        url,
        "https://example.org/set",
    ):
        assert part in str(error.value)


def test_an_address_without_the_file_says_so(tmp_path: Path, server: Server) -> None:
    with pytest.raises(SourceMissingError, match="404"):
        fetch(_conf(f"{server.url}/gone.zip"), tmp_path)


def test_nothing_to_download_from(tmp_path: Path) -> None:
    with pytest.raises(SourceMissingError, match=r"Put log\.csv into"):
        fetch({"title": "Mine", "files": {"interactions": "log.csv"}}, tmp_path)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/log.csv"])
def test_only_http(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="only http and https"):
        fetch({"files": {"interactions": {"name": "x", "url": url}}}, tmp_path)


def test_optional_files_may_be_absent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_bytes(LOG)
    items = {"name": "items.json", "url": "http://127.0.0.1:9/items.json", "optional": True}
    assert list(fetch({"files": {"interactions": "log.csv", "items": items}}, tmp_path)["files"]) == [
        "interactions"
    ]
    assert "going on without items.json" in caplog.text


def test_patterns_nested_folders_and_the_category(tmp_path: Path) -> None:
    for name in ("b/part-2.csv", "a/part-1.csv", ".hidden/part-3.csv", "meta_Games.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    conf = {
        "files": {"interactions": "part-*.csv", "items": "meta_{category}.json"},
        "options": {"category": "Games"},
    }
    files = fetch(conf, tmp_path)["files"]
    assert files["interactions"] == [str(tmp_path / "a/part-1.csv"), str(tmp_path / "b/part-2.csv")]
    assert files["items"] == [str(tmp_path / "meta_Games.json")]
    with pytest.raises(ValueError, match="category"):
        fetch(conf | {"options": {"category": "../../x"}}, tmp_path)
    (tmp_path / "b/part-1.csv").write_text("x")
    with pytest.raises(ValueError, match="several places"):
        fetch({"files": {"interactions": "part-1.csv"}}, tmp_path)


def test_licence_is_shown_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "log.csv").write_bytes(LOG)
    caplog.set_level(logging.INFO)
    conf = {
        "title": "Test set",
        "files": {"interactions": "log.csv"},
        "licence": "CC BY 4.0",
        "citation": "Us",
    }
    fetch(conf, tmp_path)
    fetch(conf, tmp_path)
    assert caplog.text.count("Test set: CC BY 4.0") == 1 and caplog.text.count("Please cite: Us") == 1


def test_a_bz2_of_its_own(tmp_path: Path, server: Server) -> None:
    server.files["/log.csv.bz2"] = packed = bz2.compress(LOG)
    file = {"name": "log.csv", "url": f"{server.url}/log.csv.bz2?download=1", "checksum": _sha(packed)}
    server.files["/log.csv.bz2?download=1"] = packed
    assert fetch({"files": {"interactions": file}}, tmp_path)["bytes"] == len(LOG)
