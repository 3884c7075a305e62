"""The documentation site: built without a network, its pages read back, links and anchors resolved."""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

PROJECT = Path(__file__).parents[2]
BUILD_OFFLINE = """
import socket

def refuse(*_, **__):
    raise OSError("the documentation site is built without a network")

socket.socket.connect = socket.socket.connect_ex = refuse
socket.getaddrinfo = socket.create_connection = refuse

from mkdocs.__main__ import cli
cli()
"""
CSS_ADDRESS = re.compile(r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)""")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site into ``folder`` as ``make docs`` does, with sockets that connect to nothing."""
    command = [sys.executable, "-c", BUILD_OFFLINE, "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@dataclass
class HtmlPage(HTMLParser):
    """What a page links to and loads: addresses as they stand there, and ids that links may name."""

    path: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    navigation: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._navigation_depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "nav" and (self._navigation_depth or "md-nav--primary" in values.get("class", "")):
            self._navigation_depth += 1
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if self._navigation_depth:
                self.navigation.append(values["href"])
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "alternate"):
            self.loads.append(values["href"])
        if tag in ("img", "script", "iframe", "source", "video", "audio", "embed") and "src" in values:
            self.loads.append(values["src"])
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        if tag == "object" and "data" in values:
            self.loads.append(values["data"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "nav" and self._navigation_depth:
            self._navigation_depth -= 1

    def target(self, address: str) -> str:
        """Return the path in the site that an address of this page leads to."""
        path = unquote(urlsplit(address).path)
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.path), path)) if path else self.path


def read_pages(site: Path) -> dict[str, HtmlPage]:
    """Return all pages by path. The page of error 404 is left out: servers show it under any address."""
    pages = {}
    for file in sorted(site.rglob("*.html")):
        path = file.relative_to(site).as_posix()
        if path != "404.html":
            pages[path] = HtmlPage(path)
            pages[path].feed(file.read_text(encoding="utf-8"))
    return pages


def is_external(address: str) -> bool:
    """Tell whether an address names a host or a scheme."""
    parts = urlsplit(address)
    return bool(parts.scheme or parts.netloc)


def dead_links(site: Path, pages: dict[str, HtmlPage]) -> list[str]:
    """Return links and loaded files that are missing, and fragments that their page lacks."""
    dead = []
    for page in pages.values():
        for address in dict.fromkeys(page.links + page.loads):
            if is_external(address):
                continue
            target = page.target(address)
            fragment = unquote(urlsplit(address).fragment)
            if target.startswith("..") or not (site / target).is_file():
                dead.append(f"{page.path}: {address}")
            elif fragment and target in pages and address in page.links and fragment not in pages[target].ids:
                dead.append(f"{page.path}: {address} (no such anchor)")
    return dead


def loads_from_other_hosts(site: Path, pages: dict[str, HtmlPage]) -> list[str]:
    """Return what pages and style sheets load from elsewhere."""
    loads = [
        f"{page.path}: {address}"
        for page in pages.values()
        for address in page.loads
        if is_external(address) and not address.startswith("data:")
    ]
    for sheet in site.rglob("*.css"):
        for match in CSS_ADDRESS.finditer(sheet.read_text(encoding="utf-8")):
            address = match[1] or match[2]
            if is_external(address) and not address.startswith("data:"):
                loads.append(f"{sheet.relative_to(site)}: {address}")
    return loads


def reachable(pages: dict[str, HtmlPage], start: str = "index.html") -> set[str]:
    """Return the pages that one gets to from the first page by the navigation alone."""
    seen, waiting = {start}, [start]
    while waiting:
        page = pages[waiting.pop()]
        new = {page.target(address) for address in page.navigation if not is_external(address)} - seen
        seen |= new
        waiting += [path for path in new if path in pages]
    return seen
