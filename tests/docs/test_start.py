"""The first page of the documentation site is executed after `make demo`."""

from __future__ import annotations

import pytest
from tests.docs.snippets import run_page


@pytest.mark.slow
def test_start_recommends_as_it_says(project, page_project_after_demo):
    outputs = run_page(project / "docs" / "index.md", page_project_after_demo)
    assert "item_id" in outputs[-1].stdout
