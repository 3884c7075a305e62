"""``make pictures``: screenshots of the report and the explorer in docs/pictures, light and dark.

They show the newest runs of the bundled log: after ``make demo`` and a training of the models named in MODELS, with
``kedro run --pipelines=report`` last. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

from PIL import Image
from tests.serving.chromium import Tab, browser_tab

DATASET = "online_retail"
MODELS = ("sasrec", "item_knn")
HISTORY = ("22423", "47566", "22720", "21754")  # cake stand, bunting, cake tins, building block word
WIDTH, HEIGHT = 1160, 700
COLOURS = 128  # of the palette: keeps a picture below 250 KB
PORT = 8765
SECTIONS = ("certainty", "segments", "audit", "semantic-ids")  # of the report, for the tutorials
THEMES = {"light": False, "dark": True}


def main() -> None:
    """Write the pictures of the results below ``--data``."""
    parser = argparse.ArgumentParser(description="Write screenshots of report and explorer.")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of results")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    args = parser.parse_args()
    report = args.data / "08_reporting" / DATASET / "report.html"
    if not report.is_file():
        parser.error(f"no {report}: run `make demo` first")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, browser_tab(Path(profile)) as tab:
        for theme, dark in THEMES.items():
            tab.screen(WIDTH, HEIGHT, dark=dark)
            save(args.out / f"report-{theme}.png", report_picture(tab, report, "leaderboard"))
            for section in SECTIONS:
                save(args.out / f"report-{section}-{theme}.png", report_picture(tab, report, section))
        with service(args.data) as address:
            for theme, dark in THEMES.items():
                tab.screen(WIDTH, HEIGHT, dark=dark)
                save(args.out / f"explorer-{theme}.png", explorer_picture(tab, address))


def report_picture(tab: Tab, report: Path, section: str) -> bytes:
    """Return a screenshot of a section of a report, such as the leaderboard, from its heading on."""
    tab.call("Page.navigate", url="about:blank")
    tab.call("Page.navigate", url=report.resolve().as_uri())
    tab.until("document.readyState === 'complete' && document.querySelector('.plot .main-svg, .plot svg')")
    tab.run("document.documentElement.style.scrollBehavior = 'auto'")
    tab.run(f"document.querySelector('#{section}').scrollIntoView()")
    return screenshot(tab)


def explorer_picture(tab: Tab, address: str) -> bytes:
    """Return a screenshot of the explorer with a history and the lists of two models."""
    events = [("h", item) for item in HISTORY]
    for _ in range(2):  # the first answers of a service are slow
        tab.open(f"{address}/#{urlencode([*events, *(('m', model) for model in MODELS)])}")
    tab.until(f"document.querySelectorAll('#lists ol').length === {len(MODELS)}")
    return screenshot(tab)


def screenshot(tab: Tab) -> bytes:
    """Return the visible part of the page as PNG, when its figures are drawn."""
    time.sleep(1)
    with tempfile.TemporaryDirectory() as folder:
        tab.screenshot(path := Path(folder) / "shot.png", whole=False)
        return path.read_bytes()


def save(path: Path, png: bytes) -> None:
    """Write a PNG with a palette."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


@contextmanager
def service(data: Path) -> Iterator[str]:
    """Start the HTTP service of the newest bundles on PORT; yields its address."""
    folders = [data / "06_models" / DATASET / model for model in MODELS]
    command = [sys.executable, "-m", "recpipe.serving.server", *map(str, folders), "--params", f"serve.port={PORT}"]
    process = subprocess.Popen(command)
    address = f"http://127.0.0.1:{PORT}"
    try:
        limit = time.monotonic() + 120
        while not _has_models(address):
            if process.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"the service of {', '.join(map(str, folders))} does not answer")
            time.sleep(0.5)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def _has_models(address: str) -> bool:
    try:
        with urlopen(f"{address}/models") as answer:
            return len(json.load(answer)["models"]) == len(MODELS)
    except (URLError, OSError):
        return False


if __name__ == "__main__":
    main()
