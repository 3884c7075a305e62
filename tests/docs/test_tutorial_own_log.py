"""The tutorial on a log of one's own: its blocks run, and its error messages are those of a run."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.docs.snippets import PageRunner, read_snippets

pytestmark = pytest.mark.slow

MISTAKES = [
    ("user_id: customer", "user_id: client"),
    ('"%d.%m.%Y %H:%M"', "iso"),
    ("users: 5, items: 5", "users: 500, items: 500"),
    ("delimiter:", "delimeter:"),
]


@pytest.fixture(scope="module")
def page(project) -> Path:
    return project / "docs" / "tutorials" / "own-log.md"


def test_the_page_goes_from_a_csv_to_lists_and_prints_what_it_shows(page, page_project) -> None:
    text = page.read_text(encoding="utf-8")
    with PageRunner(page_project) as runner:
        done = [output for snippet in read_snippets(page) if (output := runner.run(snippet))]
        outputs = "\n".join(output.stdout + output.stderr for output in done)
        for start, end in (
            ("column    role", "keeps 93%"),
            ("events      31,980", "products.csv"),
            ("{'name': 'raw'", "'}]"),
            ("user 12660, 11 events", "OF4 WOODLAND"),
            ("  user_id  rank", "HARMONICA IN BOX"),
        ):
            shown = re.search(rf"^{start}[\s\S]*?{end}", text, re.MULTILINE)
            assert shown and shown[0] in outputs, start
        assert "LOVE BUILDING BLOCK" in outputs
        messages = re.findall(r"^Error: (.*)$", text, re.MULTILINE)
        dataset = page_project / "conf" / "local" / "parameters" / "datasets" / "my_shop.yml"
        good = dataset.read_text()
        for (before, after), message in zip(MISTAKES, messages, strict=True):
            dataset.write_text(good.replace(before, after, 1))
            command = ["kedro", "run", "--pipelines=ingest", "--params", "dataset=my_shop"]
            process = subprocess.run(
                command, cwd=page_project, env=runner.environment, capture_output=True, text=True, check=False
            )
            printed = process.stderr.replace(f"{page_project}/", "") + process.stdout
            assert process.returncode and message.removesuffix("…").strip() in printed, printed[-2000:]
