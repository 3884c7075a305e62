"""The explorer page with the real service: what it asks for is what the service answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.serving.chromium import Tab, browser_tab
from tests.serving.explorer_service import serving
from tests.serving.small_service import IDS, VERSIONS, serve_config, write_bundle
from tests.synthetic import write_log

from recpipe.config import DataPaths
from recpipe.serving.http.app import Service
from recpipe.serving.http.images import images_of_dataset
from recpipe.serving.http.loaded_models import LoadedModels
from recpipe.serving.http.metrics import Metrics
from recpipe.serving.http.model_loader import ModelLoader

IMAGES = {"content": {"image": {"column": "image"}}}


@pytest.fixture
def paths(tmp_path: Path) -> DataPaths:
    """Bundles, an ingested log of one user, and one image."""
    paths = DataPaths(tmp_path / "data", tmp_path / "raw", "tiny")
    for folder in (paths.primary, paths.raw):
        folder.mkdir(parents=True)
    for name in ("sasrec", "tiger", "item_knn"):
        write_bundle(paths.models / name, VERSIONS[0], name=name)
    write_log(paths.primary / "interactions.parquet", [("ann", "i03", 100), ("ann", "i08", 200), ("ann", "i05", 300)])
    pq.write_table(pa.table({"user_id": ["ann"]}), paths.primary / "users.parquet")
    titles = [f"Lantern {n}" for n in range(len(IDS))]
    items = {"item_id": IDS, "title": titles, "price": [float(n) for n in range(len(IDS))], "image": ["a.png"] * 20}
    pq.write_table(pa.table(items), paths.primary / "items.parquet")
    Image.new("RGB", (30, 30), "red").save(paths.raw / "a.png")
    return paths


@pytest.fixture
def address(paths: DataPaths) -> Iterator[str]:
    config, metrics = serve_config(), Metrics()
    loader = ModelLoader(config, metrics, dataset="tiny", items=lambda _: paths.primary / "items.parquet")
    folders = {folder.name: folder for folder in sorted(paths.models.iterdir())}
    models = LoadedModels(lambda: folders, loader.load, files=loader.files, default="sasrec", on_reload=metrics.reload)
    images = images_of_dataset(IMAGES, paths)
    service = Service(models, metrics, config, users=paths.primary, images=images)
    with serving(service.app) as opened:
        yield opened


@pytest.fixture
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser_tab(tmp_path_factory.mktemp("profile")) as opened:
        opened.screen(1280, 900)
        yield opened


@pytest.mark.browser
def test_the_page_shows_what_the_service_answers(tab, address):
    tab.open(address)
    tab.until("document.querySelectorAll('.list .fallback').length === 3")
    assert tab.texts(".list h3") == ["sasrec", "item_knn", "tiger"]
    tab.point("#user", click=True)
    tab.type("an")
    tab.until("document.querySelectorAll('#user-list [role=option]').length === 1")
    tab.press("Enter")
    tab.until("document.querySelectorAll('.events li').length === 3 && !document.querySelector('.fallback')")
    assert tab.texts(".events .title") == ["Lantern 5", "Lantern 8", "Lantern 3"]
    for place in (1, 2, 3):
        tab.until(f"document.querySelectorAll('.list:nth-of-type({place}) .items li').length === 10")
        tab.run(f"document.querySelector('.list:nth-of-type({place}) .why').click()")
        tab.until(f"document.querySelectorAll('.list:nth-of-type({place}) .because li').length === 3")
    assert "text id" in tab.texts(".list:nth-of-type(3) .details dt")
    tab.until("[...document.querySelectorAll('.items img')].length === 30")
    tab.run("[...document.querySelectorAll('.details button')].find((b) => b.textContent === 'Nearest items').click()")
    tab.until("document.querySelectorAll('#similar .items li').length > 3")
    tab.press("Escape")
    assert tab.complaints == []


@pytest.mark.browser
def test_rules_reach_the_service_and_its_refusals_reach_the_page(tab, address):
    tab.open(f"{address}/#h=i03&h=i08&m=sasrec&m=tiger&where=price+%3C+5&not=i01&seen=exclude")
    tab.until("!document.querySelector('[aria-busy=true]') && document.querySelectorAll('.list .items').length === 2")
    for place in (1, 2):
        assert sorted(tab.texts(f".list:nth-of-type({place}) button.title")) == ["i00", "i02", "i04"]
    tab.open(f"{address}/#h=i03&m=sasrec&where=prize+%3C+5")
    tab.until("document.querySelector('.error-text')")
    assert "price" in tab.texts(".error-text")[0]  # the nearest spelling
