"""Section of item geometry: tables with null bands, figures, messages for missing parts."""

import numpy as np
import pytest
from tests.reporting.browser import open_page
from tests.reporting.test_html import EVIL, Page

from recpipe.config.schema import GeometryConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.geometry.study import Items, measure_geometry
from recpipe.evaluation.geometry.tables import VectorSource, random_tables
from recpipe.reporting.figures import CAPTIONS
from recpipe.reporting.figures.geometry import COLUMNS, geometry_figures, geometry_section
from recpipe.reporting.html import render_page

ITEMS, WIDTH = 90, 6
FIGURES = [name for name in CAPTIONS if name.startswith("geometry")]
NAMES = ["deep input", "wide input", "text encoder", f"odd {EVIL}"]


def source(name: str, seed: int) -> VectorSource:
    """Random vectors, for `wide` scaled by popularity."""
    tables = random_tables({name: np.full((ITEMS, WIDTH), -1.0, np.float32)}, 100 + seed)
    if name.startswith("wide"):
        tables[name] *= np.linspace(1, 5, ITEMS, dtype=np.float32)[::-1, None]
    return VectorSource(tables, "random numbers", lambda seed: random_tables(tables, seed))


@pytest.fixture(scope="module")
def geometry():
    events = (200 * 0.95 ** np.arange(ITEMS)).astype(int) + 1
    titles = [f"item {n}" for n in range(ITEMS - 1)] + [EVIL]
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(ITEMS)], object))
    items = Items(vocabulary, titles, events, Protocol(dataset="shop"))
    sources = [source(name, seed) for seed, name in enumerate(NAMES)]
    settings = GeometryConfig(models="all", k=10, nulls=4, items=5000, map=ITEMS, examples=3, nearest=5, beside=4)
    result = measure_geometry({}, sources, items, seed=1, settings=settings)
    stability = {
        "name": "deep input",
        "seeds": 3,
        "pairs": 3,
        "overlap": 0.4,
        "by_chance": 0.1,
        "cka": 0.8,
        "cka_by_chance": 0.05,
        "groups": {"head": 0.6, "tail": 0.2},
    }
    return result | {"protocol": "p", "seed": 1, "stability": [stability], "without": ["popular"]}


def page(geometry, split="p"):
    return render_page({"name": "shop"}, [], geometry=geometry_section(geometry, split))


def test_every_value_has_a_null_band(geometry) -> None:
    section = geometry_section(geometry, "p")
    name, description, cells = section.rows[1]
    assert (name, description, len(cells)) == ("wide input", "random numbers", len(COLUMNS))
    table = geometry["tables"][1]
    cell, (low, high) = cells[-1], table["bands"]["norm_popularity"]
    value = table["values"]["norm_popularity"]
    assert (cell.value, cell.inside) == (f"{value:.2f}", False) and value > high
    assert cell.band == f"{low:.2f} to {high:.2f}".replace("-", "\u2212")
    assert np.mean([cell.inside for cell in section.rows[0][2]]) >= 0.8  # random numbers against random numbers
    assert section.rows[0][2][0].value.endswith(f" of {WIDTH}")
    assert len(section.group_rows) == 3 * len(NAMES) and section.problems == []
    percents = [f"{n}.0\u202f%" for n in (40, 10, 60)] + ["\u2013", "20.0\u202f%"]
    assert section.stability[1] == [["deep input", "3", *percents, "0.80", "0.05"]]


def test_figures_show_the_values(geometry) -> None:
    figures = geometry_figures(geometry)
    assert list(figures) == FIGURES
    lines = [trace for trace in figures["geometry_variance"].data if trace.showlegend]
    assert len(lines) == len(NAMES) and len(figures["geometry_variance"].data) == 2 * len(NAMES)
    for trace in lines:
        assert trace.y[-1] == pytest.approx(1) and trace.x[-1] == 1
        assert np.all(np.diff(trace.y) > 0)
    assert np.all(np.diff(figures["geometry_spectrum"].data[0].y) <= 0)
    norms = figures["geometry_norms"].data[1].y
    assert norms[-1] > 1.3 and norms[0] < 0.7
    cells, agreement = figures["geometry_cka"].data[0], geometry["agreement"]
    assert cells.z[0][0] is None and cells.z[0][1] == pytest.approx(agreement["cka"][0][1], abs=1e-4)
    assert cells.customdata[0][1] == pytest.approx(agreement["cka_by_chance"][0][1], abs=1e-4)
    assert sum(len(trace.x) for trace in figures["geometry_map"].data) == ITEMS
    assert geometry_figures(None) == geometry_figures({"tables": []}) == {}


def test_the_page_has_all_figures_and_is_escaped(geometry) -> None:
    text = page(geometry)
    for expected in ("estimated from 4 of them", "popular has no item vectors", "Measured on 90 items", EVIL):
        assert expected in Page(text).words, expected
    assert EVIL not in text
    assert Page(text).plots == FIGURES


def test_missing_parts_have_messages(geometry) -> None:
    assert geometry_section(None, "p") is None
    partial = geometry | {"stability": [], "map": None, "nearest": [], "problems": [f"svd is left out {EVIL}"]}
    words = Page(page(partial, "other")).words
    for expected in ("Measured on another split", f"svd is left out {EVIL}", "seeds=42+123", "Too few items"):
        assert expected in words, expected
    empty = partial | {"tables": [], "without": ["popular", "item_knn"], "agreement": {"names": []}}
    assert "No item table was measured: popular, item_knn have" in Page(page(empty)).words


@pytest.mark.browser
def test_a_browser_draws_every_figure(geometry, tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page(geometry))
    rendered = open_page(path, tmp_path / "user")
    assert (rendered.console, rendered.empty) == ([], [])
    assert 'data-ready="yes"' in rendered.html and set(rendered.figures) == set(FIGURES)
