"""The tutorial on TIGER: from ids to lists with probabilities, after the demo."""

from __future__ import annotations

import pytest
from tests.docs.snippets import run_page

pytestmark = pytest.mark.slow


def test_the_page_trains_tiger_and_gets_lists_with_probabilities(project, page_project_after_demo) -> None:
    run, ids, in_terminal, in_python = run_page(project / "docs" / "tutorials" / "tiger.md", page_project_after_demo)
    assert "tiger" in run.stdout
    assert len(ids.stdout.strip("[]\n").split(", ")) == 4
    assert "probability" in in_terminal.stdout and "%" in in_terminal.stdout
    probabilities = [float(line.split()[-1]) for line in in_python.stdout.splitlines()]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True) and sum(probabilities) < 1
