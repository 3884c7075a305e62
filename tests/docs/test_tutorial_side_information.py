"""The tutorial on side information: models that read more than ids, users and items without history."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_side_information_and_new_items_are_used_and_measured(project: Path, page_project: Path) -> None:
    encoder = page_project / "conf" / "local" / "parameters" / "small_embed.yml"
    encoder.write_text("embed: {text: tfidf}\n")  # in a second, without the network
    outputs = run_page(project / "docs" / "tutorials" / "side-information.md", page_project)
    (lists,) = (output.stdout for output in outputs if "profiles" in output.snippet.text)
    assert lists.count("cold_users") == 6
    reports = page_project / "data" / "08_reporting" / "online_retail"
    metrics = [json.loads(file.read_text()) for file in reports.glob("gru4rec*/**/metrics.json") if file.is_file()]
    assert {each["model"] for each in metrics} == {"gru4rec", "gru4rec_side", "gru4rec_content"}
