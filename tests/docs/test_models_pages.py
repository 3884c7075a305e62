"""Every model has a page: what it is, when to use it, paper, settings, measured numbers."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from docs.generators import models
from docs.generators.configuration import CONF, ROOT
from docs.generators.models import FAMILIES, ModelPage, index, page_text

FILES = sorted((CONF / "base/parameters/models").glob("*.yml"))


@pytest.fixture(scope="module")
def pages() -> dict[str, ModelPage]:
    return {page.name: page for page in models.model_pages()}


@pytest.fixture(scope="module")
def texts(pages: dict[str, ModelPage]) -> dict[str, str]:
    return {name: page_text(page) for name, page in pages.items()}


def test_every_conf_file_of_a_model_has_a_page(pages: dict[str, ModelPage]):
    assert sorted(pages) == [path.stem for path in FILES]


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_model_says_when_to_use_it(pages: dict[str, ModelPage], name: str):
    """In the last lines of the comment at the top of its file: `# When to use: ...`, one to five sentences."""
    when = pages[name].when
    assert 20 < len(when) < 420
    assert when.endswith(".")


@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_every_page_has_all_parts(texts: dict[str, str], name: str):
    text = texts[name]
    for part in (
        "**When to use:**",
        "## Run",
        "## Measured",
        "## Paper and differences",
        "## Settings",
        "### The file",
    ):
        assert part in text, part
    assert re.search(r"^(Papers?|Source): ", text, re.MULTILINE)
    assert re.search(r"^Differences:", text, re.MULTILINE)


def test_every_setting_of_a_model_is_explained(pages: dict[str, ModelPage], texts: dict[str, str]):
    for name, page in pages.items():
        for field in dataclasses.fields(page.cls.Config):
            entry = texts[name].partition(f"\n`{field.name}` = ")[2].partition("\n\n")[0]
            assert entry, f"{name}.{field.name}"
            assert ". " in entry.partition(":   ")[2], f"{name}.{field.name} has no meaning"


def test_values_are_those_of_the_model_on_any_data_set(texts: dict[str, str]):
    assert "`dim` = `64`" in texts["sasrec"]
    assert "`generate` = `10`" in texts["transformer_generative"]
    assert "`dim` = `64`" in texts["transformer_generative"]  # of the model that it extends


def test_measured_numbers_are_those_of_the_store(texts: dict[str, str]):
    rows = json.loads((ROOT / "docs/results/ours.json").read_text(encoding="utf-8"))["rows"]
    for row in rows:
        if row["model"] in texts:
            mean = f"{row['metrics']['ndcg@10'][0]:.4f}".removeprefix("0")
            assert mean in texts[row["model"]], row["model"]
    unmeasured = set(texts) - {row["model"] for row in rows}
    assert all("Not measured yet" in texts[name] for name in unmeasured)


def test_the_index_lists_every_model_once_in_a_family(pages: dict[str, ModelPage]):
    text = index(list(pages.values()))
    assert [name for name in pages if text.count(f"| [{name}]({name}.md) |") != 1] == []
    assert all(f"## {family}" in text for family in FAMILIES)


def test_years_are_those_of_the_papers(pages: dict[str, ModelPage]):
    years = {name: pages[name].year for name in ("sasrec", "tiger", "ease", "gsasrec", "bert4rec", "popular")}
    assert years == {
        "sasrec": "2018", "tiger": "2023", "ease": "2019", "gsasrec": "2023", "bert4rec": "2019", "popular": "none",
    }  # fmt: skip


def test_inputs_of_a_model_are_named(pages: dict[str, ModelPage]):
    assert pages["tiger"].reads == "events, semantic ids (text)"
    assert pages["setrec"].reads == "events, text vectors, items of sasrec"
    assert pages["hstu_query"].reads == "events, times"
    assert pages["item_knn"].reads == "events"
