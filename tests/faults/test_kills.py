"""A run that is killed at any moment leaves complete files, and the next run gives what it would have given.

``KILLS=50 pytest tests/faults/test_kills.py`` kills 50 times; by default three times.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.pipelines import check_disk, leftovers, results, start, write_project

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LIMIT = 120  # seconds for a run on a busy machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory, project_copier: Callable[[Path], Path]) -> tuple[Path, float, dict[str, Any]]:
    """A project after a run without a fault, its seconds and its results."""
    project = project_copier(tmp_path_factory.mktemp("whole") / "project")
    write_project(project)
    finish(project)  # the first one also starts the server
    begin = time.perf_counter()
    finish(project)
    return project, time.perf_counter() - begin, results(project)


def finish(project: Path) -> None:
    process = start(project)
    process.join(LIMIT)
    assert process.exitcode == 0, (project / "output.txt").read_text()[-3000:]


def kill(project: Path, seconds: float, number: signal.Signals) -> None:
    """Start a run and end it after ``seconds`` or, where it is finished by then, another one sooner."""
    process = start(project)
    process.join(seconds)
    if process.pid is not None and process.exitcode is None:
        os.kill(process.pid, number)
        process.join(LIMIT)
    if process.exitcode == 0:  # Lightning takes no SIGTERM after the last epoch
        kill(project, 0.8 * seconds, number)


@pytest.mark.parametrize("seed", range(int(os.environ.get("KILLS", "3"))))
def test_a_killed_run_leaves_complete_files_and_the_next_one_gives_the_same(whole, tmp_path, seed) -> None:
    """Odd seeds begin with nothing, even ones with the files of a finished run."""
    reference, seconds, expected = whole
    project = shutil.copytree(reference, tmp_path / "project", symlinks=True)
    if seed % 2:
        shutil.rmtree(project / "data" / "test")
    kill(project, random.Random(seed).uniform(0.1, 1) * seconds, SIGNALS[seed % len(SIGNALS)])
    check_disk(project)
    finish(project)
    assert results(project) == expected
    check_disk(project)
    assert leftovers(project) == []
