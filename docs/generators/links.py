"""Links from pages to files of the repository that are no pages, such as code, configuration and notebooks.

Markdown files link to them by relative paths, which GitHub follows. On the site such a link leads to the
repository where mkdocs.yml names its address (``repo_url``), and otherwise to a page that shows the file.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

FOLDER = "files/"
LINK = re.compile(r"(?<=\]\()(?P<path>\.{0,2}[\w./-]+)(?P<anchor>#[\w-]*)?(?=\))")
FENCE = re.compile(r"^ *(```+|~~~+)")
LANGUAGES = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".cff": "yaml"}
LANGUAGES |= {".sh": "bash", ".html": "html", ".css": "css", ".js": "javascript", ".ipynb": "json"}
EXCLUDED = "---\nsearch:\n  exclude: true\n---\n\n"


def file_pages(texts: dict[str, str], root: Path) -> dict[str, str]:
    """Return a page for every repository file that the pages, or Markdown files that they link to, link to.

    ``texts``: Markdown by path below ``docs``. Keys of the result are paths below ``docs`` too.
    """
    pages: dict[str, str] = {}
    waiting = list(texts.items())
    while waiting:
        uri, text = waiting.pop()
        for target in _targets(text, uri, root):
            page = _page_of(target)
            if page not in pages:
                pages[page] = _content(root / target, target)
                if target.endswith(".md"):
                    waiting.append((page, pages[page]))
    return pages


def relink(markdown: str, uri: str, root: Path, *, repository_url: str | None = None) -> str:
    """Point the links of a page to repository files at the repository, or at the pages of these files."""

    def replacement(match: re.Match[str]) -> str:
        target = _target(match["path"], uri, root)
        if target is None:
            return match[0]
        anchor = match["anchor"] or ""
        if target.startswith("docs/") and not target.startswith("docs/generators/"):
            return relpath(target.removeprefix("docs/"), dirname(uri)) + anchor
        if repository_url:
            return f"{repository_url.rstrip('/')}/blob/main/{target}{anchor}"
        return relpath(_page_of(target), dirname(uri)) + (anchor if target.endswith(".md") else "")

    return _outside_fences(markdown, lambda line: LINK.sub(replacement, line))


def _source(uri: str) -> str:
    """Path in the repository of the file that a page shows."""
    if not uri.startswith(FOLDER):
        return f"docs/{uri}"
    return uri.removeprefix(FOLDER)


def _target(path: str, uri: str, root: Path) -> str | None:
    """Path in the repository that a link of a page leads to, None where mkdocs shall judge it."""
    target = normpath(join(dirname(_source(uri)), path))
    own = uri.startswith(FOLDER) or not target.startswith("docs/") or target.startswith("docs/generators/")
    return target if own and not target.startswith("..") and (root / target).exists() else None


def _targets(text: str, uri: str, root: Path) -> list[str]:
    paths: list[str] = []

    def collect(line: str) -> str:
        paths.extend(match["path"] for match in LINK.finditer(line))
        return line

    _outside_fences(text, collect)
    targets = [target for path in paths if (target := _target(path, uri, root)) is not None]
    return [target for target in targets if not target.startswith("docs/") or target.startswith("docs/generators/")]


def _page_of(target: str) -> str:
    return FOLDER + (target if target.endswith(".md") else f"{target}.md")


def _content(path: Path, target: str) -> str:
    if path.is_dir():
        names = sorted(child.name + "/" * child.is_dir() for child in path.iterdir() if child.name[0] not in "._")
        return EXCLUDED + f"# {target}/\n\nFolder of the repository.\n\n" + "".join(f"- `{name}`\n" for name in names)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return EXCLUDED + f"# {target}\n\nFile of the repository, {path.stat().st_size:,} bytes.\n"
    if path.suffix == ".md":
        return EXCLUDED + text
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall("`+", text)), default=0))
    return EXCLUDED + f"# {target}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    lines, fence = [], ""
    for line in markdown.splitlines(keepends=True):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence = "" if fence else mark[1]
            lines.append(line)
        else:
            lines.append(line if fence else change(line))
    return "".join(lines)
