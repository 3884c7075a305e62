"""Diagrams of the documentation as SVG, one for light and one for dark pages.

``python -m docs.generators.diagrams`` writes docs/pictures/{splits,flow,layers}-{light,dark}.svg. The layers are read
from the import contracts in pyproject.toml, so the picture cannot differ from them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "pictures"
WIDTH = 520  # narrow, so that text is readable on a phone
Colours = dict[str, str]
SCHEMES: dict[str, Colours] = {
    "light": {
        "page": "#ffffff", "box": "#eef2f6", "line": "#8a96a3", "text": "#1f2933", "soft": "#52606d",
        "train": "#8fa3b8", "valid": "#e8a33d", "test": "#2a9d6f", "shell": "#dbe9f6", "library": "#e3f1e6",
    },
    "dark": {
        "page": "#1e2129", "box": "#2b303b", "line": "#7b8794", "text": "#e4e7eb", "soft": "#a8b3bf",
        "train": "#7b8fa5", "valid": "#e8a33d", "test": "#3dbd88", "shell": "#24384d", "library": "#243d2e",
    },
}  # fmt: skip

# events of three users by time (0 to 100)
EVENTS = {"ann": (4, 18, 31, 52, 66, 81, 93), "ben": (11, 24, 40, 47, 58, 70), "cem": (35, 44, 63, 75, 84, 89, 97)}
VALID_FROM, TEST_FROM = 60, 79  # of the temporal split
FOLDS, WINDOW = 3, 12  # of the rolling split

# pipeline, what it leaves, folder below data/
STAGES = (
    ("", "raw log, item texts, images", "01_raw"),
    ("ingest", "interactions, items, users", "02_intermediate, 03_primary"),
    ("embed", "a vector per item and modality", "04_feature"),
    ("semantic_ids", "codes of every item, prefix tree", "05_model_input"),
    ("train", "training and test sets; a bundle per model", "05_model_input, 06_models"),
    ("evaluate", "ranks per user, metrics, test lists", "07_model_output, 08_reporting"),
    ("report", "leaderboard, intervals, figures, HTML page", "08_reporting"),
)
PRODUCTION = ("bundle trained on all events", "06_models")
USE = (("recommend", "lists of all users"), ("make serve", "HTTP API, explorer"))
SHELL = ("pipeline_registry", "session", "hooks", "pipelines", "io", "kedro_compat")  # first names of its layers


def layers() -> list[list[str]]:
    """Return the modules of each layer of ``recpipe``, the highest first, as the import contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = next(each for each in project["tool"]["importlinter"]["contracts"] if each["type"] == "layers")
    return [[name.strip(" ()").removeprefix("recpipe.") for name in layer.split(":")] for layer in contract["layers"]]


def draw_layers(colours: Colours) -> str:
    """Draw the layers as a stack: each imports from those below it."""
    shapes, y, height = [], 44, 30
    shapes.append(_text(20, 28, "Each layer imports from the layers below it, never from above.", colours["soft"]))
    for names in layers():
        fill = colours["shell" if names[0] in SHELL else "library"]
        shapes += [_box(20, y, WIDTH - 40, height - 4, fill), _text(34, y + 18, ",  ".join(names), colours["text"])]
        y += height
    legend = (("shell", "knows Kedro and MLflow"), ("library", "does not; torch, numpy, pyarrow"))
    for number, (name, words) in enumerate(legend):
        shapes += [_box(20 + 220 * number, y + 8, 16, 16, colours[name])]
        shapes += [_text(44 + 220 * number, y + 21, words, colours["soft"])]
    return _svg(shapes, y + 38, colours, "Layers of recpipe")


def draw_flow(colours: Colours) -> str:
    """Draw the way from the raw log to the report, and to lists in use."""
    shapes, y, step = [], 16, 66
    for number, (pipeline, result, folder) in enumerate(STAGES):
        shapes += _stage(20, y, WIDTH - 40, result, folder, colours)
        if number:
            shapes += _arrow(WIDTH / 2 - 60, y - 24, y, pipeline, colours)
        y += step
    y += 26
    shapes.append(_text(20, y - 14, "In use, from the bundle of a measured model:", colours["soft"]))
    y += 24
    shapes += _arrow(WIDTH / 2 - 60, y - 24, y, "refit", colours)
    shapes += _stage(20, y, WIDTH - 40, *PRODUCTION, colours)
    y += step
    width = (WIDTH - 60) / 2
    for number, (command, result) in enumerate(USE):
        x = 20 + number * (width + 20)
        shapes += _arrow(x + 40, y - 24, y, command, colours)
        shapes += _stage(x, y, width, result, "", colours)
    return _svg(shapes, y + 58, colours, "Data flow of recpipe")


def draw_splits(colours: Colours) -> str:
    """Draw which events are training, validation and test under three splits."""
    shapes: list[str] = []
    legend = (("train", "training"), ("valid", "validation target"), ("test", "test target"), ("", "history only"))
    for number, (name, words) in enumerate(legend):
        x = 28 + (0, 96, 240, 350)[number]
        shapes += [_event(x, 24, name, colours), _text(x + 12, 29, words, colours["soft"])]
    y = 66
    for title, rule in (("leave_one_out", leave_one_out_roles), ("temporal", temporal_roles)):
        shapes.append(_text(20, y, title, colours["text"], weight="bold"))
        for user, times in EVENTS.items():
            y += 26
            shapes += [_text(20, y + 5, user, colours["soft"]), _line(70, y, WIDTH - 20, y, colours["line"])]
            shapes += [_event(_x(time), y, role, colours) for time, role in zip(times, rule(times), strict=True)]
        if title == "temporal":
            for time in (VALID_FROM, TEST_FROM):
                shapes.append(_line(_x(time), y - 68, _x(time), y + 12, colours["text"], dash="4 3"))
        y += 44
    shapes.append(_text(20, y, "rolling, three folds", colours["text"], weight="bold"))
    for fold in range(1, FOLDS + 1):
        y += 26
        test = 100 - (FOLDS - fold + 1) * WINDOW
        parts = (("train", 0, test - WINDOW), ("valid", test - WINDOW, test), ("test", test, test + WINDOW))
        shapes += [_text(20, y + 5, f"fold {fold}", colours["soft"]), _line(70, y, WIDTH - 20, y, colours["line"])]
        shapes += [
            f'<rect x="{_x(start):.0f}" y="{y - 8}" width="{_x(stop) - _x(start):.0f}" height="16" rx="3" '
            f'fill="{colours[name]}"/>'
            for name, start, stop in parts
        ]
    shapes.append(_text(WIDTH - 20, y + 32, "time →", colours["soft"], anchor="end"))
    return _svg(shapes, y + 46, colours, "Splits of a log")


def leave_one_out_roles(times: Sequence[int]) -> list[str]:
    """Return the role of each event of a user: the last is the test target, the one before the validation target."""
    return ["train"] * (len(times) - 2) + ["valid", "test"]


def temporal_roles(times: Sequence[int]) -> list[str]:
    """Return the role of each event of a user: the first after each point in time is a target, later ones are none."""
    roles = []
    for time, before in zip(times, (-1, *times[:-1]), strict=True):
        if time < VALID_FROM:
            roles.append("train")
        else:
            part, start = ("valid", VALID_FROM) if time < TEST_FROM else ("test", TEST_FROM)
            roles.append(part if before < start else "")
    return roles


def _x(time: float) -> float:
    return 80 + time * (WIDTH - 110) / 100


def _event(x: float, y: float, role: str, colours: Colours) -> str:
    fill = colours[role] if role else colours["page"]
    return f'<circle cx="{x:.0f}" cy="{y}" r="6" fill="{fill}" stroke="{colours[role or "line"]}" stroke-width="1.5"/>'


def _stage(x: float, y: float, width: float, result: str, folder: str, colours: Colours) -> list[str]:
    where = f"data/{folder}".replace(", ", ", data/") if folder else ""
    middle = y + (18 if where else 26)
    shapes = [_box(x, y, width, 42, colours["box"]), _text(x + 14, middle, result, colours["text"])]
    return shapes + ([_text(x + 14, y + 34, where, colours["soft"], size=12)] if where else [])


def _arrow(x: float, start: float, stop: float, label: str, colours: Colours) -> list[str]:
    head = f'<path d="M{x - 4} {stop - 8} L{x} {stop - 1} L{x + 4} {stop - 8}" fill="none" stroke="{colours["line"]}"/>'
    line = _line(x, start, x, stop - 1, colours["line"])
    return [line, head, _text(x + 14, start + 16, label, colours["text"], weight="bold")]


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="5" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> str:
    style = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.0f}" y1="{y1}" x2="{x2:.0f}" y2="{y2}" stroke="{colour}"{style}/>'


def _text(
    x: float, y: float, words: str, colour: str, *, anchor: str = "start", weight: str = "normal", size: int = 14
) -> str:
    return (
        f'<text x="{x}" y="{y}" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(words)}</text>"
    )


def _svg(shapes: Sequence[str], height: float, colours: Colours, title: str) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="system-ui, sans-serif" font-size="14">\n<title>{title}</title>\n'
    )
    background = f'<rect width="{WIDTH}" height="{height:.0f}" rx="8" fill="{colours["page"]}"/>'
    return head + "\n".join([background, *shapes]) + "\n</svg>\n"


DIAGRAMS: dict[str, Callable[[Colours], str]] = {"splits": draw_splits, "flow": draw_flow, "layers": draw_layers}


def diagrams() -> dict[str, str]:
    """Return the SVG of all diagrams by file name."""
    return {
        f"{name}-{scheme}.svg": draw(colours) for name, draw in DIAGRAMS.items() for scheme, colours in SCHEMES.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for file, svg in diagrams().items():
        (FOLDER / file).write_text(svg, encoding="utf-8")
