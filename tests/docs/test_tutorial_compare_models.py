"""The tutorial on comparing models: its commands run after the demo, and leave what the page describes."""

from __future__ import annotations

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_the_page_compares_models_seeds_protocols_and_an_ensemble(project, page_project_after_demo) -> None:
    outputs = run_page(project / "docs" / "tutorials" / "compare-models.md", page_project_after_demo)
    models, seeds, table, ensemble, temporal = (output.stdout for output in outputs)
    assert all(name in models for name in ("item_knn", "markov", "text_knn", "sasrec", "popular"))
    assert "±" in seeds
    assert "'inference_latency_ms_p50'" in table
    assert "protocol temporal" in temporal
    assert "sasrec" in ensemble and "by rrf" in ensemble
    assert (page_project_after_demo / "data" / "08_reporting" / "online_retail" / "report.html").is_file()
