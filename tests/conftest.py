"""What all tests share: few threads, no tracking of the developer's own, and a copy of the project to run in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

PROJECT = Path(__file__).parents[1]


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
    """A project after `kedro run --env test` as a user types it, and what that printed; to be copied, not changed."""
    folder = copy_project(tmp_path_factory.mktemp("whole") / "project")
    environment = os.environ | {"PYTHONPATH": str(PROJECT / "src")}
    command = [sys.executable, "-m", "kedro", "run", "--env", "test"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done


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
