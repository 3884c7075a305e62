"""Fixtures of the tests of README and tutorials: projects in which pages are executed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.page_projects import finished_project, small_project


@pytest.fixture
def page_project(tmp_path: Path) -> Path:
    """A project with small models and the bundled raw log; pages are run in it by `run_page`."""
    return small_project(tmp_path / "project")


@pytest.fixture
def page_project_after_demo(tmp_path: Path, whole_run) -> Path:
    """The same after `make demo`, for pages that begin with a trained model."""
    return finished_project(tmp_path / "project", whole_run[0])
