"""Pages of the configuration show every setting once, with type, default and meaning."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from docs.generators import configuration
from docs.generators.configuration import CONF, PAGES, block_settings, sentence
from tests.docs.snippets import run_page

from recpipe.config.reference import Reference
from recpipe.data.sampling import STEPS


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(CONF)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return configuration.pages()


def test_every_setting_stands_on_one_page(reference: Reference):
    shown = Counter(
        (setting.key, setting.variant)
        for page in PAGES.values()
        for block in page.blocks
        for setting in block_settings(block, reference)
    )
    expected = {(setting.key, setting.variant) for setting in reference.settings}
    assert expected - set(shown) == set()
    assert [key for key, count in shown.items() if count > 1] == []


def test_every_setting_has_a_heading_or_a_section(pages: dict[str, str], reference: Reference):
    text = "\n".join(pages.values())
    blocks = {block for page in PAGES.values() for block in page.blocks}
    for setting in reference.settings:
        if setting.key not in blocks:
            key = setting.key.replace("<", "&lt;").replace(">", "&gt;")
            assert f"<code>{key}</code>" in text, setting.key


def test_anchors_of_a_page_are_unique(pages: dict[str, str]):
    for uri, text in pages.items():
        anchors = re.findall(r'id="([^"]+)"', text)
        assert len(anchors) == len(set(anchors)), uri


def test_the_default_of_a_key_is_that_of_base(pages: dict[str, str]):
    assert "<code>serve.port</code>" in pages["configuration/use.md"]
    after = pages["configuration/use.md"].partition("<code>serve.port</code>")[2]
    assert after.splitlines()[2] == "whole number from 0 to 65535, default `8000`"


def test_every_step_of_sampling_is_described(pages: dict[str, str]):
    for name in STEPS:
        assert f'id="step-{name}"' in pages["configuration/datasets.md"]


def test_every_file_of_parameters_is_linked_by_a_page(pages: dict[str, str]):
    text = "\n".join(pages.values())
    files = sorted((CONF / "base/parameters").glob("*.yml"))
    assert [path.name for path in files if f"parameters/{path.name}" not in text] == []


def test_the_index_links_every_page():
    index = (CONF.parent / "docs/configuration/index.md").read_text(encoding="utf-8")
    assert [name for name in PAGES if f"({name}.md)" not in index] == []


def test_the_index_names_the_sources_in_the_order_of_precedence():
    index = (CONF.parent / "docs/configuration/index.md").read_text(encoding="utf-8")
    order = ["the defaults", "the data set", "the model", "for a profile", "for a data set", "the command line"]
    places = [index.index(text, index.index("## Which value counts")) for text in order]
    assert places == sorted(places)


def test_the_commands_of_the_index_work(page_project: Path):
    """Except that sizes of the small models stand in conf/local, the outputs are those of the page."""
    outputs = run_page(CONF.parent / "docs/configuration/index.md", page_project)
    texts = [output.stdout for output in outputs]
    assert any(text.startswith("train.ema: number or null, default null") for text in texts)
    assert any("wide_sasrec: 128" in text for text in texts)
    assert re.search(r"^models.item_knn.neighbours +50 +# command line$", texts[0], re.MULTILINE)


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        ("last events of a history", "Last events of a history."),
        ("duckdb, or spark", "duckdb, or spark."),
        ("padded: a user per row", "padded: a user per row."),
        ("as {share: 0.2}", "As `{share: 0.2}`."),
        ("gSASRec has 256", "gSASRec has 256."),
        ("data/06_models/<dataset>/seed_<seed>", "`data/06_models/<dataset>/seed_<seed>`."),
    ],
)
def test_comments_become_sentences(comment: str, text: str):
    assert sentence(comment) == text
