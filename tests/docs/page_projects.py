"""Projects in which pages are executed: small models by ``conf/local``, results in ``data`` as a user has them."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.conftest import PROJECT, copy_project


def small_project(folder: Path) -> Path:
    """Copy the project: the sizes of ``conf/test`` in ``conf/local``, the bundled raw log in a folder of its own."""
    project = copy_project(folder)
    for file in sorted((PROJECT / "conf" / "test" / "parameters").rglob("*.yml")):
        name = "_".join(("small", *file.relative_to(PROJECT / "conf" / "test" / "parameters").parts))
        target = project / "conf" / "local" / "parameters" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    raw = project / "data" / "01_raw"
    raw.unlink()  # a link to all raw data
    raw.mkdir()
    (raw / "online_retail").mkdir()  # pages may add files to it
    for file in (PROJECT / "data" / "01_raw" / "online_retail").glob("[!.]*"):
        (raw / "online_retail" / file.name).symlink_to(file)
    return project


def finished_project(folder: Path, whole_run: Path) -> Path:
    """Make a `small_project` with what `kedro run` left, from the shared run of the tests (fixture ``whole_run``)."""
    project = small_project(folder)
    for entry in (whole_run / "data" / "test").iterdir():
        if entry.name[:2].isdigit():
            shutil.copytree(entry, project / "data" / entry.name, symlinks=True)
    return project
