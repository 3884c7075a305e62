"""Fetching from a local server: resume, checksums, unpacking, damaged archives, messages without a network."""

from __future__ import annotations

import bz2
import hashlib
import http.server
import logging
import os
import stat
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import zip_bytes

from recpipe.data.files import fetch as module
from recpipe.data.files.fetch import SourceMissingError, download, fetch, unpack
from recpipe.progress import Progress, progress

LOG = b"user,item\n" + b"".join(b"%d,%d\n" % (n, n * 7919 % 10007) for n in range(40_000))


class Server(http.server.ThreadingHTTPServer):
    """Server of ``files`` that breaks off the next ``cuts`` bodies after ``cut`` bytes and records requested ranges."""

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
        requested = self.headers.get("Range")
        self.server.ranges.append(requested)
        start = (
            int(requested.split("=")[1].rstrip("-"))
            if requested and self.headers.get("If-Range") == self.server.etag
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
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    running = Server(("127.0.0.1", 0), Handler)
    archive = zip_bytes({"set/log.csv": LOG, "set/README.txt": b"r", "set/x.csv": b"x"})
    running.files, running.ranges = {"/log.csv": LOG, "/log.zip": archive}, []
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def _conf(url: str, **more: Any) -> dict[str, Any]:
    return {"title": "Test set", "url": url, "files": {"interactions": "log.csv"}} | more


def _sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_an_archive_is_downloaded_verified_unpacked_and_reused(tmp_path: Path, server: Server) -> None:
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
def test_a_broken_download_resumes(tmp_path: Path, server: Server, cuts: int) -> None:
    server.cuts = cuts
    path = download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=_sha(LOG))
    assert path.read_bytes() == LOG
    assert server.ranges == [None, *(f"bytes={(n + 1) * server.cut}-" for n in range(cuts))]
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.csv"]


def test_a_part_is_resumed_in_the_next_run(tmp_path: Path, server: Server) -> None:
    server.cuts, server.cut = 5, 20_000
    conf = {"files": {"interactions": {"name": "log.csv", "url": f"{server.url}/log.csv", "checksum": _sha(LOG)}}}
    with pytest.raises(SourceMissingError, match="broke off"):
        fetch(conf, tmp_path)
    assert (tmp_path / "log.csv.part").stat().st_size == 100_000 and not (tmp_path / "log.csv").exists()
    fetch(conf, tmp_path)
    assert server.ranges[-1] == "bytes=100000-" and (tmp_path / "log.csv").read_bytes() == LOG


def test_a_changed_file_is_downloaded_from_the_start(tmp_path: Path, server: Server) -> None:
    (tmp_path / "log.csv.part").write_bytes(b"x" * 1000)
    (tmp_path / "log.csv.part.etag").write_text('"v0"')
    download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=_sha(LOG))
    assert (tmp_path / "log.csv").read_bytes() == LOG


@pytest.mark.parametrize("present", [False, True], ids=["downloaded", "present"])
def test_a_wrong_checksum_is_reported_with_both_values(tmp_path: Path, server: Server, present: bool) -> None:
    if present:
        (tmp_path / "log.zip").write_bytes(server.files["/log.zip"])
    expected, actual = "0" * 32, hashlib.md5(server.files["/log.zip"]).hexdigest()
    with pytest.raises(ValueError, match=r"log\.zip") as error:
        fetch(_conf(f"{server.url}/log.zip", checksum=f"md5:{expected}"), tmp_path)
    assert expected in str(error.value) and actual in str(error.value)
    assert not (tmp_path / "log.csv").exists()


def test_progress_includes_the_resumed_part(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Progress] = []

    def watched(*args: Any, **options: Any) -> Progress:
        bars.append(progress(*args, **options))
        return bars[-1]

    skip, skipped = Progress.skip, list[int]()
    monkeypatch.setattr(Progress, "skip", lambda bar, count: skipped.append(count) or skip(bar, count))
    monkeypatch.setattr(module, "progress", watched)
    server.cuts = 1
    download(f"{server.url}/log.csv", tmp_path / "log.csv", checksum=None)
    assert skipped == [0, server.cut]
    assert [(bar.done, bar.total) for bar in bars] == [(server.cut, len(LOG)), (len(LOG), len(LOG))]


def test_without_a_network_the_error_says_what_to_put_where(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/set.zip"
    with pytest.raises(SourceMissingError) as error:
        fetch(_conf(url, homepage="https://example.org/set"), tmp_path / "raw" / "set")
    for part in ("Test set", "set.zip", "log.csv", str(tmp_path / "raw" / "set"), url, "https://example.org/set"):
        assert part in str(error.value)


def test_a_missing_file_on_the_server_is_reported(tmp_path: Path, server: Server) -> None:
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
    assert list(fetch({"files": {"interactions": "log.csv", "items": items}}, tmp_path)["files"]) == ["interactions"]
    assert "going on without items.json" in caplog.text


def test_patterns_nested_folders_and_the_category(tmp_path: Path) -> None:
    for name in ("b/part-2.csv", "a/part-1.csv", ".hidden/part-3.csv", "meta_Games.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    conf = {"files": {"interactions": "part-*.csv", "items": "meta_{category}.json"}, "options": {"category": "Games"}}
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
    conf = {"title": "Test set", "files": {"interactions": "log.csv"}, "licence": "CC BY 4.0", "citation": "Us"}
    fetch(conf, tmp_path)
    fetch(conf, tmp_path)
    assert caplog.text.count("Test set: CC BY 4.0") == 1 and caplog.text.count("Please cite: Us") == 1


def test_a_bz2_of_a_single_file(tmp_path: Path, server: Server) -> None:
    server.files["/log.csv.bz2"] = archive = bz2.compress(LOG)
    file = {"name": "log.csv", "url": f"{server.url}/log.csv.bz2?download=1", "checksum": _sha(archive)}
    server.files["/log.csv.bz2?download=1"] = archive
    assert fetch({"files": {"interactions": file}}, tmp_path)["bytes"] == len(LOG)


@pytest.mark.parametrize("name", ["../log.csv", "/tmp/log.csv", "a/../../log.csv", "..\\log.csv", "C:\\log.csv"])
def test_nothing_is_unpacked_outside_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "bad.zip").write_bytes(zip_bytes({name: b"x"}))
    folder = tmp_path / "inner"
    folder.mkdir()
    with pytest.raises(ValueError, match="outside its folder"):
        unpack(tmp_path / "bad.zip", folder, patterns=["*"])
    assert list(folder.iterdir()) == []


def test_links_in_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        link = zipfile.ZipInfo("log.csv")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="a link"):
        unpack(tmp_path / "bad.zip", tmp_path, patterns=["log.csv"])


@pytest.mark.parametrize("kind", ["zip", "bz2"])
def test_zip_bombs_are_refused_by_their_unpacked_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(module, "ALLOWED_BYTES", 1 << 20)
    zeros = bytes(5 << 20)
    path = tmp_path / f"log.csv.{kind}"
    path.write_bytes(zip_bytes({"log.csv": zeros}) if kind == "zip" else bz2.compress(zeros))
    with pytest.raises(ValueError, match="is refused"):
        unpack(path, tmp_path, patterns=["log.csv"])
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name], "nothing half-unpacked stays"


@pytest.mark.parametrize("kind", ["zip", "bz2"])
@pytest.mark.parametrize("damage", ["cut short", "something else", "flipped"])
def test_damaged_archives_are_refused(tmp_path: Path, kind: str, damage: str) -> None:
    path = tmp_path / f"log.csv.{kind}"
    whole = zip_bytes({"log.csv": os.urandom(50_000)}) if kind == "zip" else bz2.compress(os.urandom(50_000))
    middle = whole[:20_000] + bytes([whole[20_000] ^ 255]) + whole[20_001:]
    path.write_bytes({"cut short": whole[:-9000], "something else": b"<html>", "flipped": middle}[damage])
    with pytest.raises(ValueError, match="not a whole"):
        unpack(path, tmp_path, patterns=["log.csv"])
    assert not (tmp_path / "log.csv").exists()
