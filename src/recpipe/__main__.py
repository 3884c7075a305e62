"""`python -m recpipe`: the packaged project's own `kedro run`, with the same options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*args: Any, **kwargs: Any) -> Any:
    """Runs a pipeline as `kedro run` would; returns what the run returns."""
    package = Path(__file__).parent.name
    configure_project(package)
    kwargs.setdefault("standalone_mode", not hasattr(sys, "ps1"))
    return find_run_command(package)(*args, **kwargs)


if __name__ == "__main__":
    main()
