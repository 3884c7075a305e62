"""Hooks of mkdocs: generated pages, navigation, links to files of the repository, pictures, formulas."""

from __future__ import annotations

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # mkdocs loads this file by its path

from docs.generators import formulas, glossary, links, navigation, pictures, registry, tables  # noqa: E402

SEARCH_BOOST = {"tutorials": 4, "models": 2, "configuration": 2, "glossary.md": 2}
SEARCH_BOOST |= {"api": 0.1, "decisions": 0.1, "experiments": 0.1}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add generated pages and pages of repository files, then build the navigation.

    Raises PluginError for a generated page that stands in docs too.
    """
    for uri, text in registry.generated_pages().items():
        if files.get_file_from_path(uri) is not None:
            raise PluginError(
                f"docs/{uri} stands in docs and is generated too: remove the file or the generator's page"
            )
        files.append(File.generated(config, uri, content=text))
    texts = {file.src_uri: file.content_string for file in files.documentation_pages()}
    config.nav = navigation.navigation(texts)
    if not config.repo_url:
        for uri, text in links.file_pages(texts, ROOT).items():
            files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to repository files at their pages, split ``<picture>``, weigh search hits, make terms headings."""
    folder = page.file.src_uri.partition("/")[0]
    page.meta.setdefault("search", {"boost": SEARCH_BOOST.get(folder, 1)})
    if page.file.src_uri == glossary.PAGE:
        markdown = glossary.with_headings(markdown)
        page.meta["hide"] = ["toc"]  # of 190 terms in alphabetical order
    markdown = links.relink(markdown, page.file.src_uri, ROOT, repository_url=config.repo_url)
    return pictures.by_scheme(markdown)


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn formulas into MathML, mark long cells of tables."""
    return tables.with_long_cells(formulas.with_mathml(html))
