"""Pages of the Python API: one per package, from the docstrings (mkdocstrings, static analysis).

Plumbing that no program outside of recpipe calls is left out: raw files, the HTTP service, reports, the Kedro half.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class ApiPage:
    """A page: ``modules`` are named below ``package``, all of the package where none is named; less ``without``."""

    title: str
    text: str
    package: str
    modules: tuple[str, ...] = ()
    without: tuple[str, ...] = field(default=())


CONTRACT = ("recommender", "next_item", "generator", "parallel_codes", "registry")
PAGES = {
    "recommender": ApiPage(
        "Contract of a recommender", "What a class of models implements and declares.", "models", CONTRACT
    ),
    "models": ApiPage("Model classes", "One module per model.", "models", without=CONTRACT),
    "losses": ApiPage("Losses", "`train.loss.name` is the name of a module.", "training.losses"),
    "decoding": ApiPage("Decoding", "Top-k lists of models that generate semantic ids.", "decoding"),
    "layers": ApiPage("Layers", "Parts of networks that models share.", "layers"),
    "accelerate": ApiPage("Acceleration", "Faster versions of layers and decoding on a CPU.", "accelerate"),
    "semantic-ids": ApiPage("Semantic ids", "Quantizers, codes of items, collisions, prefix trees.", "semantic_ids"),
    "content": ApiPage("Content", "Embeddings of the text and images of items.", "content"),
    "training": ApiPage(
        "Training",
        "A training from its settings to a bundle.",
        "training",
        ("job", "fit", "module", "settings", "optimisers", "callbacks", "checkpoint", "bundle", "catalogue",
         "refit", "update", "add_items", "standalone"),
    ),
    "data": ApiPage(
        "Data",
        "Readers, sequences, splits and batches.",
        "data",
        ("readers", "protocol", "split_rules", "splits", "sequences", "histories", "ids", "features", "batches",
         "batch_samplers", "windows"),
    ),
    "evaluation": ApiPage("Evaluation", "Ranks, metrics, intervals and tests.", "evaluation"),
    "serving": ApiPage(
        "Serving",
        "A bundle in use: lists under rules, explanations, files of lists.",
        "serving",
        ("model", "rules", "lists", "places", "ranking", "explain", "batch"),
    ),
    "config": ApiPage("Configuration", "Typed configuration with one order of precedence.", "config"),
}  # fmt: skip


def pages() -> dict[str, str]:
    """Return the pages of the API by path below ``docs``."""
    return {f"api/{name}.md": _text(page) for name, page in PAGES.items()}


def _text(page: ApiPage) -> str:
    return f"# {page.title}\n\n{page.text}\n\n" + "\n".join(_module(file) for file in _files(page))


def _files(page: ApiPage) -> list[Path]:
    folder = SOURCE / "recpipe" / page.package.replace(".", "/")
    if page.modules:
        places = [folder / name for name in page.modules]
        return [place / "__init__.py" if place.is_dir() else place.with_suffix(".py") for place in places]
    files = sorted(folder.rglob("*.py"), key=lambda file: (file.name != "__init__.py", file))
    files = [file for file in files if file.stem not in (*page.without, "__main__")]
    return [
        file
        for file in files
        if file.name != "__init__.py" or "\ndef " in (text := file.read_text()) or "\nclass " in text
    ]


def _module(file: Path) -> str:
    relative = file.relative_to(SOURCE)
    name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    heading = f"## `{name}`\n\nSource: [`src/{relative}`](../../src/{relative})\n\n"
    return f"{heading}::: {name}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
