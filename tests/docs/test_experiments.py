"""docs/experiments: every page has a row in the index, and every entry a date."""

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "experiments"
PAGES = sorted(page.name for page in FOLDER.glob("*.md") if page.name != "index.md")
WITHOUT_DATES = {"leaderboards.md", "scale.md"}  # tables of many runs


def test_the_index_has_a_row_for_every_page():
    topics = (FOLDER / "index.md").read_text().split("## Topics")[1].split("##")[0]
    linked = [Path(target).name for target in re.findall(r"^\| \[[^]]+\]\(([^)]+)\)", topics, re.M)]
    assert len(linked) == len(set(linked))
    assert set(PAGES) <= set(linked)


@pytest.mark.parametrize("page", sorted(set(PAGES) - WITHOUT_DATES))
def test_entries_have_a_date_and_stand_in_order(page):
    headings = re.findall(r"^## (.*)$", (FOLDER / page).read_text(), re.M)
    dates = [heading.partition(":")[0].partition(" and ")[0] for heading in headings]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert dates == sorted(dates)
