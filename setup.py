"""Build step: copies conf and notebooks of the repository into the package, for `recpipe new`.

All other settings of the build are in pyproject.toml.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT / "src"))

from recpipe.new_project import copy_shared  # noqa: E402


class BuildWithProjectFiles(build_py):
    """``build_py`` that adds conf and notebooks; an editable installation reads those of the repository."""

    def run(self) -> None:
        """Build the package, then copy."""
        super().run()
        if self.editable_mode:
            return
        template = Path(self.build_lib) / "recpipe/project_template"
        for name in ("conf", "notebooks"):  # of an earlier build
            shutil.rmtree(template / name, ignore_errors=True)
        copy_shared(ROOT, template)


setup(cmdclass={"build_py": BuildWithProjectFiles})
