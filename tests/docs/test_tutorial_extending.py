"""The tutorial on extensions: its files in a copy of the repository, their tests, and the models that come out."""

from __future__ import annotations

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from tests.docs.snippets import PageRunner, read_snippets

pytestmark = pytest.mark.slow

ENTRY_POINTS = re.compile(r'\[project\.entry-points\."(recpipe\.\w+)"\]\n(\w+) = "([\w.]+)"')


def write_access_log(file: Path) -> None:
    """Write requests of 30 users who look at 10 items one after the other, and lines of other kinds."""
    rng, start = np.random.default_rng(0), datetime(2026, 11, 1, tzinfo=UTC)
    lines = []
    for user in range(30):
        for place in range(rng.integers(5, 9)):
            time = start + timedelta(hours=user, minutes=place)
            item = (user + place) % 10
            request = f'"GET /item/{item} HTTP/1.1" 200 512'
            lines.append(f"10.0.0.1 - user{user} [{time:%d/%b/%Y:%H:%M:%S} +0000] {request}")
    lines += ['10.0.0.1 - user1 [01/Nov/2026:10:00:00 +0000] "GET /basket HTTP/1.1" 200 99', "no request"]
    file.parent.mkdir(parents=True)
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture
def checkout(project: Path, page_project: Path) -> Path:
    """A copy of code, tests and configuration, and a log of a web server."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests"):
        shutil.copytree(project / name, page_project / name, dirs_exist_ok=True, ignore=ignored)
    write_access_log(page_project / "data" / "01_raw" / "web" / "access.log")
    return page_project


def declare_entry_point(page: str, folder: Path) -> None:
    """Write the metadata of the package of the tutorial as pip would, beside its modules."""
    group, name, module = ENTRY_POINTS.search(page).groups()
    metadata = folder / "my_models-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-models\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")


def test_the_model_the_loss_and_the_reader_of_the_tutorial_work(project: Path, checkout: Path) -> None:
    page = project / "docs" / "tutorials" / "extending.md"
    with PageRunner(checkout) as runner:
        for snippet in read_snippets(page):
            runner.run(snippet)
            if "pip install" in snippet.text:
                declare_entry_point(page.read_text(encoding="utf-8"), checkout / "src")
    models = checkout / "data" / "06_models"
    configs = [json.loads(file.read_text()) for file in models.glob("*/*/seed_42/bundle/*/bundle/config.json")]
    losses = [(config["training"]["settings"].get("train", {}).get("loss") or {}).get("name") for config in configs]
    trained = {(config["name"], loss) for config, loss in zip(configs, losses, strict=True)}
    assert {name for name, _ in trained} >= {"moving_average", "markov", "trending"}
    assert ("moving_average", "hinge") in trained
