"""The tutorial on GPUs, clusters and large logs: what a machine with two cores and Java can run of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.docs.snippets import PageRunner, read_snippets

pytestmark = pytest.mark.slow


def test_every_command_runs(project: Path, page_project: Path) -> None:
    local, spark = (page_project / "conf" / name / "parameters" for name in ("local", "spark"))
    shutil.copytree(local, spark, dirs_exist_ok=True)  # `--env spark` takes the place of conf/local
    has_java = shutil.which("java") is not None
    with PageRunner(page_project) as runner:
        for snippet in read_snippets(project / "docs" / "tutorials" / "gpus-and-clusters.md"):
            if has_java or "--env spark" not in snippet.text:
                runner.run(snippet)
    models = page_project / "data" / "06_models" / "online_retail"
    trained = {folder.name for folder in models.iterdir()}
    assert trained == {"popular", "sasrec", "lstm", "gru4rec"}
    if has_java:
        assert list((page_project / "data" / "07_model_output" / "online_retail" / "popular").glob("**/*.parquet"))
