"""Pages of the Python API: one per package, from the docstrings (mkdocstrings, static analysis)."""

from __future__ import annotations

from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"
# page: title, what stands there, packages (all their modules) and modules
PAGES = {
    "recommender": (
        "Contract of a recommender",
        "What a model class implements and declares.",
        ["recpipe.models.recommender", "recpipe.models.next_item", "recpipe.models.generator",
         "recpipe.models.parallel_codes", "recpipe.models.registry"],
    ),
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return the pages of the API by path below ``docs``."""
    return {f"api/{name}.md": _page(*page) for name, page in PAGES.items()}


def _page(title: str, what: str, modules: list[str]) -> str:
    blocks = "\n\n".join(f"## `{module}`\n\n::: {module}\n" for module in modules)
    return f"# {title}\n\n{what}\n\n{blocks}"
