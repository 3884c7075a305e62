"""The explorer page in a browser: keyboard, screens, hostile titles, states of its address, failures of the service."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs
from urllib.request import Request, urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.serving.chromium import Tab, browser_tab
from tests.serving.explorer_service import HOSTILE, TITLES, service, serving
from tests.synthetic import write_log

FIRST = ".list:first-child .items li"
CONTROLS = (
    """[...document.querySelectorAll("button, input, select, a[href], summary")].filter((e) => e.checkVisibility())"""
)
SMALL = f"""{CONTROLS}.filter((e) => !e.closest("label, p") && Math.min(e.offsetWidth, e.offsetHeight) < 24)
    .map((e) => e.outerHTML)"""  # WCAG 2.2, target size, minimum
UNNAMED = (
    f"""{CONTROLS}.filter((e) => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"""
)
REPEATED_IDS = (
    """[...document.querySelectorAll("[id]")].map((e) => e.id).filter((id, n, all) => all.indexOf(id) !== n)"""
)
# WCAG 2 contrast of every visible text with the opaque colour behind it
CONTRAST = """(() => {
  const channel = (c) => (c / 255 <= 0.03928 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const colour = (text) => text.match(/[\\d.]+/g).map(Number);
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!isText || !element.checkVisibility() || element.closest(":disabled, .hidden, .skip, noscript")) continue;
    let behind = element;
    while (behind && (colour(getComputedStyle(behind).backgroundColor)[3] ?? 1) === 0) behind = behind.parentElement;
    const colours = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor];
    const values = colours.map((c) => light(colour(c)));
    const ratio = (Math.max(...values) + 0.05) / (Math.min(...values) + 0.05);
    if (ratio < 4.5) poor.push([element.textContent.slice(0, 40), ratio]);
  }
  return poor;
})()"""


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ingested log of two users."""
    folder = tmp_path_factory.mktemp("log")
    write_log(
        folder / "interactions.parquet", [("ann/1", "22423", 200), ("bob", "47566", 100), ("ann/1", "21754", 100)]
    )
    items = {"item_id": list(TITLES), "title": list(TITLES.values())}
    pq.write_table(pa.table(items), folder / "items.parquet")
    pq.write_table(pa.table({"user_id": ["ann/1", "bob"]}), folder / "users.parquet")
    return folder


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def page(tab: Tab, log_folder: Path) -> Iterator[tuple[Tab, str, list]]:
    """A tab of 1280 pixels, the address of the service and the POST requests that it got."""
    app = service(log_folder)
    tab.screen(1280, 900)
    tab.complaints.clear()
    with serving(app) as address:
        yield tab, address, app.state.requests
        tab.call("Page.navigate", url="about:blank")


def history(tab: Tab) -> list[str]:
    """Titles of the events, latest first."""
    return tab.texts(".events .title")


def state(tab: Tab) -> dict[str, list[str]]:
    return parse_qs(tab.run("location.hash.slice(1)"))


def sent(requests: list) -> dict:
    """The last body of POST /recommend."""
    return [body for path, body in requests if path == "/recommend"][-1]


def rules_become(requests: list, expected: dict | None) -> None:
    """Wait until a request with these rules has come."""
    limit = time.monotonic() + 20
    while sent(requests).get("rules") != expected:
        assert time.monotonic() < limit, sent(requests)
        time.sleep(0.02)


def set_value(tab: Tab, selector: str, value: str) -> None:
    """Change a field as its user does."""
    element = f"document.querySelector({json.dumps(selector)})"
    tab.run(f"{element}.value = {json.dumps(value)}, {element}.dispatchEvent(new Event('change'))")
    tab.run("new Promise((done) => setTimeout(done, 20))")


def tab_to(tab: Tab, label: str, *, shift: bool = False) -> None:
    """Press Tab until the focus is on the element with the label that begins so."""
    for _ in range(120):
        if tab.focus().startswith(label):
            return
        tab.press("Tab", shift=shift)
    raise AssertionError(f"the focus never came to {label!r}; it is on {tab.focus()!r}")


@pytest.mark.browser
def test_a_history_is_built_and_explained_with_the_keyboard_alone(page):
    tab, address, requests = page
    tab.open(address)
    assert tab.texts(".fallback strong") == ["Fallback. "] * 3
    tab.press("/")
    tab.type("bunting")
    tab.press("Enter")  # before the suggestions have come
    tab.until("document.querySelectorAll('.events li').length === 1")
    tab.press("ArrowDown")
    tab.press("Enter")
    assert history(tab) == ["SPOTTY BUNTING", "PARTY BUNTING"]
    tab.press("Escape")
    assert tab.run("document.querySelector('#search-list').hidden")
    tab_to(tab, "Move earlier: SPOTTY BUNTING")
    tab.press("Enter")
    assert history(tab) == ["PARTY BUNTING", "SPOTTY BUNTING"]
    tab_to(tab, "Remove: PARTY BUNTING", shift=True)
    tab.press(" ")
    assert history(tab) == ["SPOTTY BUNTING"] and tab.focus() == "Remove: SPOTTY BUNTING"
    tab.until("!document.querySelector('.fallback')")
    tab_to(tab, "Add to the history: REGENCY")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.events li').length === 2")
    tab_to(tab, "Why: HOME BUILDING")
    tab.press("Enter")
    tab.until("document.querySelector('.because li')")
    assert tab.texts(".because .title") == ["SPOTTY BUNTING", "REGENCY CAKESTAND 3 TIER"]
    tab.until("document.querySelectorAll('.events .effect .track').length === 2")  # of the item with the focus
    assert tab.texts(".events .effect") == ["\u22120.40", "+2.50"]
    tab_to(tab, "Exclude")
    tab.press("Enter")
    tab.until(f"![...document.querySelectorAll('{FIRST} .title')].some((e) => e.textContent.startsWith('HOME'))")
    rules_become(requests, {"exclude": ["21754"]})
    assert tab.complaints == []


@pytest.mark.browser
def test_titles_are_text_and_never_markup(page):
    tab, address, _ = page
    tab.open(f"{address}/#h=a%2Cb%26c%3Dd%23e&h={'x' * 30}%3Cb%3E&seen=allow&where=%3Cimg%20src%3Dx%3E")
    tab.until("document.querySelectorAll('.list').length === 3 && document.querySelector('.items .title')")
    assert HOSTILE in history(tab) and f"{'x' * 30}<b>" in history(tab)
    assert HOSTILE in tab.texts(f"{FIRST} button.title")
    tab.point("[aria-label^='Nearest items']", click=True)
    tab.until("document.querySelectorAll('#similar .items li').length > 3")
    assert tab.run("document.querySelectorAll('img, script:not([src]), b b').length") == 0
    assert tab.run("document.title") == "Explorer: recommendations" and tab.complaints == []


@pytest.mark.browser
def test_the_browser_refuses_scripts_that_the_page_did_not_bring(page):
    tab, address, _ = page
    tab.open(address)
    tab.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.broken = 1\">')")
    tab.until("performance.now() > 300")
    assert tab.run("window.broken") is None
    assert any("Content Security Policy" in complaint for complaint in tab.complaints)


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 768, 1280])
def test_the_page_fits_every_screen_and_can_be_read(page, width, dark):
    tab, address, _ = page
    tab.screen(width, 844, dark=dark)
    events = "h=21754&h=long&h=a%2Cb%26c%3Dd%23e&h=unknown&t=1&t=2&t=3&t=4"
    tab.open(f"{address}/#{events}&not=long&where=nothing&m=tiger&m=item_knn")
    tab.until("document.querySelector('.error-text')")
    set_value(tab, "#where", "")
    tab.until("document.querySelectorAll('.items li').length >= 10")
    tab.run("[...document.querySelectorAll('.why')].slice(0, 3).forEach((button) => button.click())")
    tab.until("document.querySelector('.because li')")
    assert tab.run("document.documentElement.scrollWidth") == width
    for check in (CONTRAST, SMALL, UNNAMED, REPEATED_IDS):
        assert tab.run(check) == []
    assert tab.complaints == []


@pytest.mark.browser
def test_the_address_holds_the_state_and_restores_it(page):
    tab, address, requests = page
    rules = "seen=7&diversity=0.3&max_per_category=2&category=country&new_items=0.2&only=47566&only=23298&not=23298"
    tab.open(f"{address}/#h=21754&h=22423&t=864000&t=1728000&now=1728000&m=tiger&k=5&{rules}")
    expected = {
        "seen": 7, "diversity": 0.3, "max_per_category": 2, "category": "country", "new_items": {"share": 0.2},
        "candidates": ["47566", "23298"], "exclude": ["23298"],
    }  # fmt: skip
    body = sent(requests)
    assert body["rules"] == expected and body["model"] == "tiger" and body["k"] == 5 and body["now"] == 1728000
    assert body["users"][0]["items"] == ["21754", "22423"] and body["users"][0]["timestamps"] == [864000, 1728000]
    assert history(tab) == ["REGENCY CAKESTAND 3 TIER", "HOME BUILDING BLOCK WORD"]
    assert tab.run("[...document.querySelectorAll('.days input')].map((e) => e.value)") == ["0", "10"]
    before = state(tab)
    tab.point("[aria-label^='Remove: REGENCY']", click=True)
    tab.until("document.querySelectorAll('.events li').length === 1")
    assert state(tab) == before | {"h": ["21754"], "t": ["864000"]}
    changed = tab.run("location.href")
    tab.open(changed)
    assert state(tab) == before | {"h": ["21754"], "t": ["864000"]} and tab.complaints == []


@pytest.mark.browser
def test_an_address_with_nonsense_opens_with_the_defaults(page):
    tab, address, requests = page
    tab.open(
        f"{address}/#k=9999&seen=-3&diversity=NaN&max_per_category=1e99&new_items=7&m=nothing&t=1&t=2&%E0%A4%A&where="
    )
    assert sent(requests)["k"] == 10 and "rules" not in sent(requests)
    assert tab.texts(".list h3") == ["sasrec", "tiger", "item_knn"] and tab.complaints == []


@pytest.mark.browser
def test_a_refused_condition_is_said_beside_its_field_until_it_is_corrected(page):
    tab, address, requests = page
    tab.open(f"{address}/#h=21754")
    tab.run("document.querySelector('#rules').open = true")
    tab.point("#where", click=True)
    tab.type("nothing = 1")
    tab.press("Tab")
    tab.until("document.querySelector('#where').getAttribute('aria-invalid') === 'true'")
    assert "no column 'nothing'" in tab.texts("#where-help .error-text")[0]
    assert tab.focus() == "price"  # the focus went on to the columns and stayed there
    tab.press("Tab", shift=True)
    tab.run("document.querySelector('#where').select()")
    tab.type("price < 3")
    tab.press("Enter")
    tab.until(f"document.querySelectorAll('{FIRST}').length")
    assert tab.run("document.querySelector('#where').getAttribute('aria-invalid')") is None
    rules_become(requests, {"where": "price < 3"})
    assert tab.texts("#rules-count") == ["1 active"]


@pytest.mark.browser
def test_rules_are_switches(page):
    tab, address, requests = page
    tab.open(f"{address}/#h=21754&m=sasrec")
    changes = {"#seen": "days", "#max": "2", "#diversity": "0.5", "#new": "0.25"}
    for selector, value in changes.items():
        set_value(tab, selector, value)
    tab.until("document.querySelector('#rules-count').textContent === '4 active'")
    expected = {"seen": 30, "max_per_category": 2, "category": "price", "new_items": {"share": 0.25}, "diversity": 0.5}
    rules_become(requests, expected)
    tab.run("[...document.querySelectorAll('#rules button')].at(-1).click()")
    rules_become(requests, None)
    assert tab.run("document.querySelector('#rules-count').hidden")


@pytest.mark.browser
def test_a_column_is_put_into_the_condition_ready_for_its_value(page):
    tab, address, requests = page
    tab.open(f"{address}/#h=21754&m=sasrec")
    tab.run("document.querySelector('#rules').open = true")
    tab.point("[data-focus='column-country']", click=True)
    tab.type("France")
    tab.point("[data-focus='column-price']", click=True)
    tab.type("3")
    tab.press("Enter")
    rules_become(requests, {"where": "country = 'France' and price > 3"})


@pytest.mark.browser
@pytest.mark.parametrize("key", [None, "secret"])
def test_pictures_stand_beside_titles_where_there_are_any(tab, key):
    tab.screen(390, 844)
    with serving(service(images=True, key=key)) as address:
        tab.call("Page.navigate", url=f"{address}/explorer/icon.svg")
        tab.until(f"location.origin === '{address}'")
        tab.run(f"sessionStorage.setItem('recpipe-api-key', {json.dumps(key or '')})")
        tab.open(f"{address}/#h=21754&h=85123A&m=sasrec&seen=allow")
        tab.until("document.querySelectorAll('.events img').length === 1")  # the other has none
        tab.until("document.querySelectorAll('.items img').length === 7")
        tab.until("[...document.querySelectorAll('img')].every((e) => e.naturalWidth > 0 && e.alt === '')")
        assert tab.run("document.documentElement.scrollWidth") == 390
        tab.call("Page.navigate", url="about:blank")


@pytest.mark.browser
def test_one_model_that_fails_leaves_the_others_and_can_be_tried_again(page):
    tab, address, requests = page
    tab.open(f"{address}/#h=22197")
    tab.until("document.querySelector('.list .error')")
    assert tab.texts(".list .error p") == ["no answer within 10 seconds"]
    assert len(tab.texts(FIRST)) == 10
    number = len(requests)
    tab.point(".list .error button", click=True)
    limit = time.monotonic() + 20
    while len(requests) == number:
        assert time.monotonic() < limit, "no further request"
        time.sleep(0.02)


@pytest.mark.browser
def test_a_user_of_the_log_is_loaded_with_times(page):
    tab, address, requests = page
    tab.open(address)
    tab.point("#user", click=True)
    tab.type("ann")
    tab.until("document.querySelectorAll('#user-list [role=option]').length === 1")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.events li').length === 2")
    tab.until("document.querySelector('.list[aria-busy=true]') === null && !document.querySelector('.fallback')")
    assert history(tab) == ["REGENCY CAKESTAND 3 TIER", "HOME BUILDING BLOCK WORD"]
    assert sent(requests)["users"][0]["timestamps"] == [100, 200] and sent(requests)["now"] == 200


@pytest.mark.browser
def test_nearest_items_open_in_a_dialog_that_gives_the_focus_back(page):
    tab, address, _ = page
    tab.open(f"{address}/#h=21754")
    tab_to(tab, "Nearest items: HOME")
    tab.press("Enter")
    tab.until("document.querySelectorAll('#similar .items li').length > 3")
    assert tab.texts("#similar select option") == ["sasrec", "tiger"]  # item_knn has no vectors
    tab_to(tab, "Add to the history: REGENCY")
    tab.press("Enter")
    tab.press("Escape")
    assert not tab.run("document.querySelector('#similar').open")
    assert history(tab) == ["REGENCY CAKESTAND 3 TIER", "HOME BUILDING BLOCK WORD"]


@pytest.mark.browser
def test_a_service_with_a_key_asks_for_it(tab):
    tab.screen(1280, 900)
    with serving(service(key="secret")) as address:
        tab.call("Page.navigate", url=address)
        tab.until("document.querySelector('#key')?.open")
        tab.type("secret")
        tab.press("Enter")
        tab.until("document.querySelectorAll('.items li').length >= 10")
        assert not tab.run("document.querySelector('#key').open")
        tab.run("sessionStorage.clear()")
        tab.call("Page.navigate", url="about:blank")


def test_the_page_asks_nothing_of_other_machines(tmp_path):
    with serving(service()) as address:
        with urlopen(f"{address}/") as answer:
            html, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        files = {"/explorer/app.js", *re.findall(r'(?:src|href)="(/explorer/[^"]+)"', html)}
        for name in sorted(files):
            files |= {
                f"/explorer/{found}"
                for found in re.findall(r'from "\./([^"]+)"', urlopen(f"{address}{name}").read().decode())
            }
        texts = {name: urlopen(f"{address}{name}").read().decode() for name in files}
        assert len(texts) >= 10
        for text in (html, *texts.values()):
            assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text)
            assert not re.search(r"<script>|\son\w+=\"|\sstyle=\"", text)
        tag = urlopen(f"{address}/").headers["ETag"]
        request = Request(f"{address}/", headers={"If-None-Match": tag})
        with pytest.raises(Exception, match="304"):
            urlopen(request)
        with pytest.raises(Exception, match="404"):
            urlopen(f"{address}/explorer/__init__.py")


def test_users_of_a_log_are_found_and_read(log_folder):
    with serving(service(log_folder)) as address:
        assert json.load(urlopen(f"{address}/users?q=1"))["users"] == [{"user_id": "ann/1"}]
        user = json.load(urlopen(f"{address}/users/ann%2F1"))
        assert user["items"] == ["21754", "22423"] and user["timestamps"] == [100, 200] and user["total"] == 2
        assert user["titles"] == [TITLES["21754"], TITLES["22423"]]
        with pytest.raises(Exception, match="404"):
            urlopen(f"{address}/users/nobody")
        with pytest.raises(Exception, match="422"):
            urlopen(f"{address}/users?limit=0")
