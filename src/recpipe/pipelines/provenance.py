"""Git commit of the code, for metrics.json."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path


@cache
def commit() -> str | None:
    """Short commit of the code, with + where tracked files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changes = _git(
            here, "status", "--porcelain", "--untracked-files=no", "--", "../../../src", "../../../conf"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def _git(folder: Path, *words: str) -> str:
    process = subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=10
    )
    return process.stdout.strip()
