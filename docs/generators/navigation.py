"""Navigation: sections in a fixed order, pages of a folder in the order of ``ORDER``, then by name."""

from __future__ import annotations

from typing import Any

# title of the section, and its page or folder
SECTIONS = (
    ("Start", "index.md"),
    ("Tutorials", "tutorials/"),
    ("Models", "models/"),
    ("Protocols and metrics", "protocols.md"),
    ("Results", "results/"),
    ("Configuration", "configuration/"),
    ("Python API", "api/"),
    ("Glossary", "glossary.md"),
    ("Architecture", "architecture.md"),
    ("Decisions", "decisions/"),
    ("Experiments", "experiments/"),
)
ORDER = {
    "tutorials/": [
        "own-log", "compare-models", "semantic-ids", "tiger", "serving", "side-information", "tuning", "competition",
        "gpus-and-clusters", "extending",
    ],
    "configuration/": [
        "run", "datasets", "ingest", "protocol", "embed", "semantic-ids", "train", "side", "evaluate", "tune", "use",
    ],
    "api/": ["recommender", "models", "decoding", "layers", "training", "losses", "semantic-ids", "content", "data",
             "evaluation", "serving", "reporting", "config", "kedro"],
}  # fmt: skip


def navigation(pages: list[str]) -> list[Any]:
    """Return the ``nav`` of mkdocs for the pages of the site, paths below ``docs``.

    A page that belongs to no section stands at the end, so that it cannot be missed.
    """
    nav: list[Any] = []
    rest = set(pages)
    for title, place in SECTIONS:
        inside = sorted((page for page in rest if page == place or _in_folder(page, place)), key=_key(place))
        rest -= set(inside)
        if place in inside:
            nav.append({title: place})
        elif inside:
            nav.append({title: inside})
    return nav + sorted(rest)


def _in_folder(page: str, place: str) -> bool:
    return place.endswith("/") and page.startswith(place)


def _key(place: str) -> Any:
    order = {"index": -1} | {name: number for number, name in enumerate(ORDER.get(place, []))}

    def key(page: str) -> tuple[int, str]:
        return order.get(page.removeprefix(place).removesuffix(".md"), len(order)), page

    return key
