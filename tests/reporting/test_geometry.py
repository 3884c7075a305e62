"""The section of item geometry: what stands in its tables and figures, what is said instead of what is missing."""

import re
import subprocess

import numpy as np
import pytest
from tests.reporting.browser import CHROMIUM
from tests.reporting.test_html import EVIL, Page

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.study import GeometrySettings, Items, measure_geometry
from recpipe.evaluation.geometry.tables import VectorSource, random_tables
from recpipe.reporting.captions import CAPTIONS, GEOMETRY, IDS
from recpipe.reporting.figures.geometry import geometry_figures
from recpipe.reporting.geometry import COLUMNS, section
from recpipe.reporting.html import page

ITEMS, WIDTH = 90, 6
NAMES = ["deep input", "wide input", "text encoder", f"odd {EVIL}"]


def source(name: str, seed: int) -> VectorSource:
    """Random vectors, for `wide` stretched by popularity."""
    tables = random_tables({name: np.full((ITEMS, WIDTH), -1.0, np.float32)}, 100 + seed)
    if name.startswith("wide"):
        tables[name] *= np.linspace(1, 5, ITEMS, dtype=np.float32)[::-1, None]
    return VectorSource(tables, "random numbers", lambda seed: random_tables(tables, seed))


@pytest.fixture(scope="module")
def found():
    events = (200 * 0.95 ** np.arange(ITEMS)).astype(int) + 1
    titles = [f"item {n}" for n in range(ITEMS - 1)] + [EVIL]
    words = Vocabulary(np.array([f"i{n}" for n in range(ITEMS)], object))
    about = Items(words, titles, events, Protocol(dataset="shop"))
    sources = [source(name, seed) for seed, name in enumerate(NAMES)]
    settings = GeometrySettings(nulls=4, map=ITEMS, examples=3)
    told = measure_geometry({}, sources, about, seed=1, settings=settings)
    stable = {
        "name": "deep input",
        "seeds": 3,
        "pairs": 3,
        "overlap": 0.4,
        "by_chance": 0.1,
        "cka": 0.8,
        "cka_by_chance": 0.05,
        "groups": {"head": 0.6, "tail": 0.2},
    }
    return told | {"protocol": "p", "seed": 1, "stability": [stable], "without": ["popular"]}


@pytest.fixture(scope="module")
def text(found):
    return page({"name": "shop"}, [], geometry=section(found, "p"))


def test_every_number_stands_over_its_band(found) -> None:
    made = section(found, "p")
    name, of, cells = made.rows[1]
    assert (name, of, len(cells)) == ("wide input", "random numbers", len(COLUMNS))
    cell, (low, high) = cells[-1], found["tables"][1]["bands"]["norm_popularity"]
    value = found["tables"][1]["values"]["norm_popularity"]
    assert (cell.value, cell.inside) == (f"{value:.2f}", False) and value > high
    assert cell.band == f"{low:.2f} to {high:.2f}".replace("-", "\u2212")
    inside = [each.inside for each in made.rows[0][2]]
    assert np.mean(inside) >= 0.8  # random numbers are like random numbers
    assert made.rows[0][2][0].value.endswith(f" of {WIDTH}")
    assert len(made.group_rows) == 3 * len(NAMES) and made.problems == []
    assert made.stability[1] == [
        [
            "deep input",
            "3",
            "40.0\u202f%",
            "10.0\u202f%",
            "60.0\u202f%",
            "\u2013",
            "20.0\u202f%",
            "0.80",
            "0.05",
        ]
    ]


def test_figures_show_what_was_measured(found) -> None:
    drawn = geometry_figures(found)
    assert list(drawn) == list(GEOMETRY)
    own = [trace for trace in drawn["geometry_variance"].data if trace.showlegend]
    assert len(own) == len(NAMES) and len(drawn["geometry_variance"].data) == 2 * len(NAMES)
    for trace in own:
        assert trace.y[-1] == pytest.approx(1) and trace.x[-1] == 1
        assert np.all(np.diff(trace.y) > 0)
    assert np.all(np.diff(drawn["geometry_spectrum"].data[0].y) <= 0)
    rising = drawn["geometry_norms"].data[1].y
    assert rising[-1] > 1.3 and rising[0] < 0.7
    cells = drawn["geometry_cka"].data[0]
    assert cells.z[0][0] is None and cells.z[0][1] == pytest.approx(found["agreement"]["cka"][0][1], abs=1e-4)
    assert cells.customdata[0][1] == pytest.approx(found["agreement"]["cka_by_chance"][0][1], abs=1e-4)
    assert sum(len(trace.x) for trace in drawn["geometry_map"].data) == ITEMS
    assert geometry_figures(None) == geometry_figures({"tables": []}) == {}


def test_the_page_says_it_all_and_escapes_it(text) -> None:
    words = " ".join("".join(Page(text).words).split())
    for expected in (
        "Geometry of items",
        "dimensions used",
        "judged by 4 of them",
        "popular knows items by no vector",
        "The same model with another seed",
        "Nearest items",
        "Measured on 90 items with training events, with 10 neighbours",
        EVIL,
    ):
        assert expected in words, expected
    assert EVIL not in text
    plots = [attributes["id"] for tag, attributes in Page(text).tags if attributes.get("class") == "plot"]
    assert plots == list(GEOMETRY)
    assert not {*GEOMETRY} & {*CAPTIONS, *IDS}


def test_what_is_missing_is_said(found) -> None:
    assert section(None, "p") is None
    assert 'id="geometry"' not in page({"name": "shop"}, [])
    less = found | {"stability": [], "map": None, "nearest": [], "problems": [f"svd is left out {EVIL}"]}
    words = "".join(Page(page({"name": "shop"}, [], geometry=section(less, "other"))).words)
    for expected in (
        "Measured on another split",
        f"svd is left out {EVIL}",
        "Every model is here with one seed",
        "Too few items for a map",
    ):
        assert expected in words, expected
    nothing = less | {"tables": [], "without": ["popular", "item_knn"], "agreement": {"names": []}}
    words = "".join(Page(page({"name": "shop"}, [], geometry=section(nothing, "p"))).words)
    assert "No table of items was measured: popular, item_knn know items by no vector" in words


@pytest.mark.browser
def test_a_browser_draws_every_figure(text, tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text(text)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", f"--user-data-dir={tmp_path / 'user'}"]
    command = [CHROMIUM, *flags, "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert 'data-ready="yes"' in shown and "data-error" not in shown.split("<head")[0]
    for name in GEOMETRY:
        body = shown.split(f'id="{name}"', 1)[1].split("</figure>", 1)[0]
        assert 'class="main-svg"' in body, name
        assert re.search(r'class="(point|js-line|scatterlayer|hm)', body), name
