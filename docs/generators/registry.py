"""Registry of the page generators.

A generator is a module of this package with ``pages() -> dict[str, str]``: Markdown by path below ``docs``,
such as ``models/sasrec.md``. A page has one source: one generator, or a file in ``docs``.
"""

from __future__ import annotations

from importlib import import_module

GENERATORS = ("api", "configuration", "models")


def generated_pages() -> dict[str, str]:
    """Return the Markdown of all generated pages by path.

    Raises ValueError where two generators write one page.
    """
    pages: dict[str, str] = {}
    for name in GENERATORS:
        for uri, text in import_module(f"docs.generators.{name}").pages().items():
            if uri in pages:
                raise ValueError(f"docs/generators/{name}.py writes {uri}, which another generator writes already")
            pages[uri] = text
    return pages
