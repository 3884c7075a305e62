"""README: short enough for two screens, its commands and snippets run, its links and targets exist."""

from __future__ import annotations

import re

import pytest
from tests.conftest import PROJECT
from tests.docs.snippets import run_page

from recpipe.reporting.results.__main__ import dataset_titles
from recpipe.reporting.results.ours import STORE, read_store
from recpipe.reporting.results.readme_table import COLUMNS, MODELS, update_readme

README = PROJECT / "README.md"
TEXT = README.read_text(encoding="utf-8")
MAX_LINES, MAX_WORDS, WIDTH = 150, 1200, 122


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= MAX_LINES
    assert len(TEXT.split()) <= MAX_WORDS


def test_prose_wraps():
    long = [line for line in TEXT.splitlines() if len(line) > WIDTH and not line.startswith(("|", "  <", "<"))]
    assert long == []


def test_the_first_screen_has_a_sentence_a_picture_and_the_two_commands():
    head = "\n".join(TEXT.splitlines()[:20])
    assert "<picture>" in head and "make demo" in head and "make test" in head


@pytest.mark.slow
def test_commands_and_snippets_run(page_project_after_demo):
    outputs = run_page(README, page_project_after_demo)
    lists = next(output for output in outputs if "load_bundle" in output.snippet.text)
    head, *rows = lists.stdout.splitlines()
    assert head.split() == ["rank", "item_id", "title"]
    assert [row.split()[:2] for row in rows[:10]] == [[str(n), str(n + 1)] for n in range(10)]


def test_make_demo_runs_the_whole_project_and_make_test_the_tests():
    rules = dict(re.findall(r"^([a-z]+):[^\n]*\n((?:\t[^\n]*\n)+)", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert rules["demo"].split() == ["$(KEDRO)", "run"]
    assert "pytest" in rules["test"] and "results" in rules


def test_files_that_the_readme_names_exist():
    targets = re.findall(r"\]\(([^)#]+)\)", TEXT) + re.findall(r'(?:src|srcset)="([^"]+)"', TEXT)
    local = [target for target in targets if not target.startswith("http")]
    assert len(local) > 10 and [target for target in local if not (PROJECT / target).exists()] == []


def test_pictures_have_a_light_and_a_dark_version_below_250_kb():
    pictures = sorted((PROJECT / "docs" / "pictures").glob("*.png"))
    names = {path.stem for path in pictures}
    assert {"report-light", "report-dark", "explorer-light", "explorer-dark"} <= names
    assert [path.name for path in pictures if path.stat().st_size > 250_000] == []


def test_the_table_is_what_make_results_writes():
    rows = read_store(PROJECT / "docs" / "results" / STORE).values()
    assert update_readme(TEXT, rows, dataset_titles(PROJECT / "conf")) == TEXT


def test_the_table_has_three_data_sets_and_five_models():
    lines = [line for line in TEXT.splitlines() if any(line.startswith(f"| `{model}` |") for model in MODELS)]
    assert len(COLUMNS) == 3 and len(lines) == 5
    for column in range(2, 5):  # a cell without a number is a run that is not finished yet
        numbers = [re.search(r"\.\d{4}", line.split("|")[column + 1]) for line in lines]
        assert sum(map(bool, numbers)) >= 3
