"""A page in headless Chromium: its document after the scripts, and their errors."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
# of bars and dots, lines, sunbursts, heatmaps, parallel coordinates
MARKS = re.compile(r'class="(point|js-line|slice|hm|gl-canvas)\b')


@dataclass(frozen=True)
class RenderedPage:
    """``figures``: markup by id; ``console``: messages of the scripts."""

    html: str
    figures: dict[str, str]
    console: list[str]

    @property
    def empty(self) -> list[str]:
        """Figures without marks."""
        return [name for name, body in self.figures.items() if not MARKS.search(body)]


def open_page(path: Path, folder: Path) -> RenderedPage:
    """Open a page; ``folder`` is the profile of the browser."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=300, check=True)
    parts = re.split(r'<div class="plot[^"]*" id="(\w+)"', done.stdout)
    bodies = (body.split('<script type="application/json"', 1)[0] for body in parts[2::2])
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return RenderedPage(done.stdout, dict(zip(parts[1::2], bodies, strict=True)), console)
