"""The tutorial on GPUs, clusters and large logs: what a machine with two cores can run of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_every_command_that_needs_no_cluster_runs(project: Path, page_project: Path) -> None:
    run_page(project / "docs" / "tutorials" / "gpus-and-clusters.md", page_project)
    data, models = page_project / "data", ("popular", "gru4rec")
    assert all(list((data / "06_models" / "online_retail" / name).glob("**/model.safetensors")) for name in models)
    assert any(file.is_file() for file in (data / "08_reporting" / "online_retail").glob("gru4rec/**/metrics.json"))
