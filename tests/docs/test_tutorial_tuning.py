"""The tutorial on tuning: searches of a few trials, the tuned model, and its number on the test fold."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_searches_end_with_a_model_that_is_evaluated(project: Path, page_project: Path) -> None:
    outputs = run_page(project / "docs" / "tutorials" / "tuning.md", page_project)
    tuned = page_project / "conf" / "local" / "parameters" / "models"
    assert {file.stem for file in tuned.glob("*_tuned.yml")} == {"svd_tuned", "gru4rec_tuned"}
    (difference,) = (output.stdout for output in outputs if "config diff" in output.snippet.text)
    assert "svd_tuned" in difference
    metrics = page_project / "data" / "08_reporting" / "online_retail"
    assert list((metrics / "svd_tuned").glob("**/metrics.json"))
