"""Fixtures of all tests: one thread per process, a copy of the project to run in, one finished run."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from tests.reporting.browser import CHROMIUM

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

PROJECT = Path(__file__).parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``browser`` where there is none."""
    if CHROMIUM is None:
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason="neither chromium nor google-chrome is installed"))


@pytest.fixture(autouse=True)
def loggers_on() -> None:
    """Loggers of recpipe say what is of level INFO, whatever an earlier test or a library of its own has set."""
    for name, logger in logging.root.manager.loggerDict.items():
        if name.partition(".")[0] == "recpipe" and isinstance(logger, logging.Logger):
            logger.disabled = False
            if logger.level > logging.INFO:
                logger.setLevel(logging.INFO)


@pytest.fixture(scope="session")
def project() -> Path:
    """The repository, to read from only."""
    return PROJECT


@pytest.fixture
def project_copy(tmp_path: Path) -> Path:
    """The project without its data, so that what a run writes lands in `tmp_path`; raw data is linked."""
    return copy_project(tmp_path / "project")


def copy_project(target: Path) -> Path:
    """Configuration and pyproject.toml as they are in the repository, an empty src (recpipe is imported as ever)."""
    (target / "src").mkdir(parents=True)
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(PROJECT / name, target)
    shutil.copytree(PROJECT / "conf", target / "conf", ignore=shutil.ignore_patterns("local"))
    (target / "conf" / "local").mkdir()
    (target / "data").mkdir()
    (target / "data" / "01_raw").symlink_to(PROJECT / "data" / "01_raw", target_is_directory=True)
    return target


@pytest.fixture(scope="session")
def project_copier() -> Callable[[Path], Path]:
    """`copy_project`, for fixtures that many tests share."""
    return copy_project


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """A project after `kedro run --env test`, and what that printed; to be copied, not changed."""
    return shared_run(tmp_path_factory, "whole")


@pytest.fixture(scope="session")
def whole_run_with_ids(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess]:
    """As `whole_run`, with semantic ids, though no model of the run reads them."""
    return shared_run(tmp_path_factory, "whole_with_ids", "--params", "modality=text")


def shared_run(
    tmp_path_factory: pytest.TempPathFactory, name: str, *arguments: str
) -> tuple[Path, subprocess.CompletedProcess]:
    """Run the whole project once for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder, output = shared / "project", shared / "output.json"
    with FileLock(f"{shared}.lock"):
        if not output.exists():
            copy_project(folder)
            environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
            command = [sys.executable, "-m", "kedro", "run", "--env", "test", *arguments]
            process = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False
            )
            assert process.returncode == 0, process.stderr[-3000:]
            output.write_text(json.dumps([process.stdout, process.stderr]), encoding="utf-8")
    return folder, subprocess.CompletedProcess([], 0, *json.loads(output.read_text(encoding="utf-8")))


@pytest.fixture
def session_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """`session_in(folder, env=…, runtime_params=…)`: an open session of the project in `folder`."""
    from kedro.framework.startup import bootstrap_project

    from recpipe.session import RecpipeSession

    def opened(folder: Path, **options: object) -> RecpipeSession:
        monkeypatch.chdir(folder)
        bootstrap_project(folder)
        return RecpipeSession.create(project_path=folder, save_on_close=False, **options)

    return opened
