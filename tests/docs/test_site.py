"""The built documentation site: strict, offline, without dead links, readable on a phone, searchable."""

from __future__ import annotations

import functools
import json
import logging
import re
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from tests.docs import built_site
from tests.docs.built_site import HtmlPage
from tests.serving.chromium import Tab, browser_tab

log = logging.getLogger(__name__)
PHONE = 390
SEARCHES = {
    "early stopping": "glossary.html",
    "learning rate": "configuration/train.html",
    "batch size": "configuration/train.html",
    "leave one out": "glossary.html",
    "beam size": "glossary.html",
    "cold start": "tutorials/side-information.html",
    "export onnx": "tutorials/serving.html",
    "diversity": "configuration/use.html",
    "popularity bias": "glossary.html",
    "negative sampling": "configuration/train.html",
    "custom model": "tutorials/extending.html",
    "resume training": "configuration/train.html",
    "sasrec": "models/sasrec.html",
    "train.patience": "configuration/train.html",
    "BeamState": "api/decoding.html",
}  # what an engineer types, and a page that answers it


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The site, and what its build printed."""
    folder = tmp_path_factory.mktemp("site") / "site"
    started = time.monotonic()
    process = built_site.build(folder)
    output = process.stdout + process.stderr
    assert process.returncode == 0, output[-5000:]
    log.info("the site is built in %.0f s", time.monotonic() - started)
    return folder, output


@pytest.fixture(scope="module")
def site(built) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def pages(site) -> dict[str, HtmlPage]:
    return built_site.read_pages(site)


@pytest.mark.slow
class TestSite:
    def test_is_built_without_a_network_and_without_warnings(self, built):
        assert not re.findall(r"^(?:WARNING|ERROR|CRITICAL).*", built[1], re.MULTILINE)

    def test_links_and_anchors_lead_somewhere(self, site, pages):
        assert built_site.dead_links(site, pages) == []

    def test_loads_nothing_from_another_host(self, site, pages):
        assert built_site.loads_from_other_hosts(site, pages) == []

    def test_navigation_leads_to_every_page(self, pages):
        own = {path for path in pages if not path.startswith("files/")}
        assert own - built_site.reachable(pages) == set()

    def test_every_page_has_one_title(self, site, pages):
        titles = {path: len(re.findall("<h1[ >]", (site / path).read_text(encoding="utf-8"))) for path in pages}
        assert {path: count for path, count in titles.items() if count != 1} == {}

    def test_formulas_are_drawn_without_scripts(self, site, pages):
        protocols = (site / "protocols.html").read_text(encoding="utf-8")
        assert protocols.count("<math") > 10
        assert not [path for path in pages if "arithmatex" in (site / path).read_text(encoding="utf-8")]

    def test_generators_are_not_published(self, site):
        assert not list(site.rglob("*.py"))


@pytest.fixture(scope="module")
def tab(tmp_path_factory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(site) -> Iterator[str]:
    """Address of a plain file server of the site."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()


def open_in(tab: Tab, address: str) -> None:
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=address)
    tab.until(f"location.href === {json.dumps(address)} && document.readyState === 'complete'", seconds=60)


def hits(tab: Tab, text: str) -> list[str]:
    """Type into the search field; return the paths of the pages with hits, best first."""
    tab.run("document.querySelector('.md-search__input').focus()")
    tab.type(text)
    tab.until("document.querySelector('.md-search-result__item a')", seconds=60)
    links = "document.querySelectorAll('.md-search-result__item > a')"
    return list(dict.fromkeys(tab.run(f"[...{links}].map((link) => new URL(link.href).pathname)")))


def edge_contrast(tab: Tab, element: str, path: Path) -> int:
    """Difference of brightness (0 to 255) between the right edge of an element and 40 pixels left of it."""
    x, y = tab.run(f"(({{right, top}}) => [right, top])({element}.getBoundingClientRect())")
    tab.screenshot(path, whole=False)
    with Image.open(path) as image:
        grey = image.convert("L")
        inside, edge = (grey.getpixel((round(x) - offset, round(y) + 4)) for offset in (40, 1))
    return abs(inside - edge)


@pytest.mark.slow
@pytest.mark.browser
class TestInTheBrowser:
    @staticmethod
    def long_pages(site: Path, pages: dict[str, HtmlPage]) -> list[str]:
        """The longest pages of each folder, and all tutorials."""
        folders: dict[str, list[str]] = {}
        for path in sorted(pages, key=lambda path: -(site / path).stat().st_size):
            folders.setdefault(path.rpartition("/")[0], []).append(path)
        return [path for folder, paths in folders.items() for path in paths[: 20 if folder == "tutorials" else 5]]

    def test_no_page_scrolls_sideways_on_a_phone(self, site, pages, tab):
        tab.screen(PHONE, 800)
        wide = {}
        for path in self.long_pages(site, pages):
            open_in(tab, (site / path).as_uri())
            if (width := tab.run("document.documentElement.scrollWidth")) > PHONE:
                wide[path] = width
        assert wide == {}

    @pytest.mark.parametrize("protocol", ["http", "file"])
    def test_search_finds_the_tutorial_first(self, site, server, tab, protocol):
        tab.screen(1280, 900)
        open_in(tab, f"{server}/index.html" if protocol == "http" else (site / "index.html").as_uri())
        assert any(hit.endswith("/tutorials/semantic-ids.html") for hit in hits(tab, "semantic ids")[:3])

    def test_search_finds_the_words_of_the_field(self, server, tab):
        tab.screen(1280, 900)
        misses = {}
        for text, page in SEARCHES.items():
            open_in(tab, f"{server}/index.html")
            if f"/{page}" not in (first := hits(tab, text)[:3]):
                misses[text] = first
        assert misses == {}

    def test_what_scrolls_sideways_is_shaded_until_its_end(self, site, tab, tmp_path):
        """Pixels of the right edge of the first wide table and of the first wide code block, in both colours."""
        for dark in (False, True):
            tab.screen(PHONE, 800, dark=dark)
            for path, selector in [("protocols.html", ".md-typeset__scrollwrap"), ("index.html", "pre > code")]:
                open_in(tab, (site / path).as_uri())
                wide = f"[...document.querySelectorAll('{selector}')].find((e) => e.scrollWidth > e.clientWidth + 40)"
                tab.run(f"{wide}.scrollIntoView({{block: 'center'}})")
                start = edge_contrast(tab, wide, tmp_path / "start.png")
                tab.run(f"{wide}.scrollLeft = 1e5")
                end = edge_contrast(tab, wide, tmp_path / "end.png")
                assert start > 25 and end < 5, (path, dark, start, end)

    def test_dark_pages_show_the_dark_pictures_only(self, site, tab):
        address = (site / "index.html").as_uri()
        for dark, hidden in [(False, "dark"), (True, "light")]:
            tab.screen(1280, 900, dark=dark)
            open_in(tab, address)
            assert tab.run(f"[...document.querySelectorAll('img[src$=\"#only-{hidden}\"]')].length") > 0
            assert tab.run(
                f"[...document.querySelectorAll('img[src$=\"#only-{hidden}\"]')].every((i) => i.offsetWidth === 0)"
            )

    def test_pages_have_no_errors_in_the_console(self, site, server, tab):
        tab.complaints.clear()
        for path in ["index.html", "api/index.html", "results/index.html", "glossary.html"]:
            open_in(tab, f"{server}/{path}")
            open_in(tab, (site / path).as_uri())
        assert tab.complaints == []
