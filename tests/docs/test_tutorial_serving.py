"""The tutorial on serving: Python, terminal, HTTP service, production bundle, lists and registration after a demo."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_every_way_to_make_lists_works(project: Path, page_project_after_demo: Path) -> None:
    outputs = run_page(project / "docs" / "tutorials" / "serving.md", page_project_after_demo)
    text = {output.snippet.text: output.stdout for output in outputs}
    (service,) = (stdout for code, stdout in text.items() if "/recommend" in code)
    answer, end = json.JSONDecoder().raw_decode(service)
    lists = answer["lists"]
    (of_log,) = json.JSONDecoder().raw_decode(service[end:].lstrip())[0]["lists"]
    assert of_log["user_id"] == "12347" and of_log["log_events"] > 10 and of_log["source"] == "model"
    assert [row["user_id"] for row in lists] == ["ann"] and len(lists[0]["items"]) == 5
    assert not {"21754", "22423"} & {item["item_id"] for item in lists[0]["items"]}
    (rules,) = (stdout for code, stdout in text.items() if "were" in code)
    assert "did you mean 'where'?" in rules
    data = page_project_after_demo / "data"
    assert list((data / "06_models" / "online_retail" / "sasrec" / "seed_42" / "production").glob("*/production"))
    assert list((data / "07_model_output" / "online_retail" / "sasrec").glob("**/submission.csv"))
