"""Fetching from a local server: resume, checksums, paths of files, damaged files, messages without a network."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import http.server
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.conftest import zip_bytes

from recpipe.data.files import fetch as module
from recpipe.data.files.archives import read_verified
from recpipe.data.files.fetch import SourceMissingError, download, fetch
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


def _names(pattern: str, folder: Path) -> list[str]:
    paths = fetch({"files": {"interactions": pattern}}, folder)["files"]["interactions"]
    return [Path(path).relative_to(folder).as_posix() for path in paths]


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"user,item\n{name},1\n")


@pytest.mark.parametrize("name", ["events[1].csv", "[2024] logs/events.csv", "a*/b?.csv", "part-*.csv"])
def test_a_path_that_exists_is_no_pattern(tmp_path: Path, name: str) -> None:
    _write(tmp_path, name, "events1.csv", "2 logs/events.csv", "ab/bc.csv", "part-1.csv")
    assert _names(name, tmp_path) == [name]


def test_brackets_in_a_folder_above_a_pattern_are_literal(tmp_path: Path) -> None:
    _write(tmp_path, "a[12]/e-1.csv", "a[12]/e-2.csv", "a1/e-3.csv", "deep/down/log[1].csv", "deep/down/log1.csv")
    assert _names("a[12]/e-*.csv", tmp_path) == ["a[12]/e-1.csv", "a[12]/e-2.csv"]
    assert _names("log[1].csv", tmp_path) == ["deep/down/log[1].csv"], "in a subfolder too"
    assert _names("e-[13].csv", tmp_path) == ["a1/e-3.csv", "a[12]/e-1.csv"]
    absolute = fetch({"files": {"interactions": str(tmp_path / "a[12]" / "e-*.csv")}}, tmp_path / "a1")["files"]
    assert len(absolute["interactions"]) == 2


def test_a_pattern_leaves_out_what_is_no_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    others = ["._part-0.csv", ".part-0.csv.crc", "_SUCCESS", "part-1.csv.part", "part-1.csv.crc", ".~lock.part-0.csv#"]
    others += ["_temporary/0/part-2.csv", "__MACOSX/part-0.csv", "part-0.csv~"]
    _write(tmp_path, "part-0.csv", "part-1.csv", *others)
    for pattern in ("part-*", "*", "**/*"):
        assert _names(pattern, tmp_path) == ["part-0.csv", "part-1.csv"]
    assert "left out" in caplog.text and "_SUCCESS" in caplog.text
    _write(tmp_path / "only", "_SUCCESS", ".part-0.csv.crc")
    with pytest.raises(SourceMissingError, match="is not there"):
        _names("*", tmp_path / "only")
    assert _names(".part-*", tmp_path / "only") == [".part-0.csv.crc"], "unless the pattern asks for them"


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_file_under_two_names_is_read_once(tmp_path: Path, link: Any, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, "part-1.csv")
    link(tmp_path / "part-1.csv", tmp_path / "part-0.csv")
    expected = "part-1.csv" if link is os.symlink else "part-0.csv"
    assert _names("part-*.csv", tmp_path) == [expected]
    assert "links to one that is read" in caplog.text


def test_copies_among_the_files_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("part-1.csv", "part-1 (copy).csv"):
        (tmp_path / name).write_bytes(LOG)
    assert len(_names("part-*.csv", tmp_path)) == 2
    assert "part-1.csv is a copy of" in caplog.text


def test_only_missing_files_are_named_beside_those_of_the_folder(tmp_path: Path) -> None:
    _write(tmp_path, "part-1.csv", "products.csv")
    with pytest.raises(SourceMissingError, match=r"product\.csv missing\. Put product\.csv into .*has part-1"):
        fetch({"files": {"interactions": "part-*.csv", "items": "product.csv"}}, tmp_path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "log.csv/part-0.csv")
    with pytest.raises(ValueError, match=r"is a folder: name the files in it, such as `log.csv/\*"):
        _names("log.csv", tmp_path)


def test_the_manifest_has_hash_and_size_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "log.csv.gz").write_bytes(gzip.compress(LOG))
    (tmp_path / "items.csv").write_bytes(LOG)
    manifest = fetch({"files": {"interactions": "log.csv.gz", "items": "items.csv"}}, tmp_path)["manifest"]
    assert [(entry["role"], entry["checksums"]) for entry in manifest] == [("interactions", "gzip"), ("items", None)]
    for entry in manifest:
        content = Path(entry["path"]).read_bytes()
        assert (entry["bytes"], f"sha256:{entry['sha256']}") == (len(content), _sha(content))


def test_a_present_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_bytes(LOG)
    reads = []

    def watched(path: Path, *args: Any, **options: Any) -> str | None:
        reads.append(path.name)
        return read_verified(path, *args, **options)

    monkeypatch.setattr(module, "read_verified", watched)
    file = {"name": "log.csv", "url": "http://127.0.0.1:9/log.csv", "checksum": f"md5:{hashlib.md5(LOG).hexdigest()}"}
    fetch({"files": {"interactions": file}}, tmp_path)
    assert reads == ["log.csv"]
