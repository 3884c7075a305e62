"""Navigation: sections in a fixed order; pages of a folder in the order in which its index page links to them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# title of a section, and its page or folder
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
ORDER = {  # of folders whose index page is no list of all pages
    "tutorials/": [
        "own-log", "compare-models", "semantic-ids", "tiger", "serving", "side-information", "tuning", "competition",
        "gpus-and-clusters", "extending",
    ],
    "configuration/": [
        "run", "datasets", "ingest", "protocol", "embed", "semantic-ids", "train", "side", "evaluate", "tune", "use",
    ],
}  # fmt: skip
LINK = re.compile(r"\]\(([\w.-]+\.md)(?:#[^)]*)?\)")


def navigation(texts: Mapping[str, str]) -> list[Any]:
    """Return the ``nav`` of mkdocs for pages, Markdown by path below ``docs``.

    A page that belongs to no section stands at the end, so that it cannot be missed.
    """
    nav: list[Any] = []
    rest = set(texts)
    for title, place in SECTIONS:
        inside = {page for page in rest if page == place or (place.endswith("/") and page.startswith(place))}
        rest -= inside
        if place in inside:
            nav.append({title: place})
        elif inside:
            nav.append({title: _in_order(inside, place, texts)})
    return nav + sorted(rest)


def _in_order(pages: set[str], folder: str, texts: Mapping[str, str]) -> list[Any]:
    index = f"{folder}index.md"
    if folder in ORDER:
        names = [f"{folder}{name}.md" for name in ORDER[folder]]
        order = {page: number for number, page in enumerate([index, *names])}
        return sorted(pages, key=lambda page: (order.get(page, len(order)), page))
    groups = _groups(texts.get(index, ""), folder, pages - {index})
    rest = sorted(pages - {index}.union(*groups.values()))
    first = [index] if index in pages else []
    if len(groups) > 1:
        return [*first, *({title: names} for title, names in groups.items()), *rest]
    return [*first, *(name for names in groups.values() for name in names), *rest]


def _groups(index: str, folder: str, pages: set[str]) -> dict[str, list[str]]:
    """Pages by the heading of the index page below which they are linked first."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for part in re.split(r"^## ", index, flags=re.MULTILINE):
        linked = [folder + name for name in LINK.findall(part) if folder + name in pages]
        new = [page for page in dict.fromkeys(linked) if page not in seen]
        seen |= set(new)
        if new:
            groups[part.partition("\n")[0].strip()] = new
    return groups
