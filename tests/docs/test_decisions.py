"""docs/decisions: the index has every decision with its title, number and a known status."""

import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "decisions"
ROW = re.compile(r"^\| (\d+) \| \[(.+?)\]\((\d{4}-[\w-]+\.md)\) \| (.+?) \| (.+?) \|$", re.MULTILINE)
STATUS = re.compile(r"in use|not built|(replaced|changed) by \[(\d+)\]\((\d{4})-[\w-]+\.md\)")


def test_every_decision_has_one_row_with_its_title():
    rows = {file: (int(number), title) for number, title, file, _, _ in ROW.findall((FOLDER / "index.md").read_text())}
    pages = {page.name: page.read_text().splitlines()[0] for page in FOLDER.glob("0*.md")}
    assert rows.keys() == pages.keys()
    assert {file: f"# {number}. {title}" for file, (number, title) in rows.items()} == pages
    assert all(int(file[:4]) == number for file, (number, _) in rows.items())
    assert sorted(number for number, _ in rows.values()) == list(range(1, len(pages) + 1))


def test_a_status_is_one_of_four():
    for *_, status in ROW.findall((FOLDER / "index.md").read_text()):
        match = STATUS.fullmatch(status)
        assert match
        assert match[2] is None or int(match[2]) == int(match[3])
