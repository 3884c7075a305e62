"""Comments of YAML files by key, which explain the settings in the reference.

A comment belongs to the first key of its line; lines below it that begin at the same column continue it. A comment on
lines of its own belongs to the next key, if that has none beside it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from recpipe.config.files import _Loader


def head_comment(text: str) -> str:
    """Return the comment lines at the top of a YAML file, without their signs, line by line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def key_comments(text: str) -> dict[str, str]:
    """Return the comments of a YAML text by dotted key. Raises ``yaml.YAMLError``."""
    comments = _comments(text)
    lines: dict[int, list[str]] = {}  # keys that begin on a line, the outermost first
    root = yaml.compose(text, _Loader)
    for key, line in _keys(root) if isinstance(root, yaml.MappingNode) else ():
        lines.setdefault(line, []).append(key)
    result = {}
    for line, keys in lines.items():
        beside = comments.get(line)
        parts = [] if beside is None or beside.is_alone else [*_following(comments, line, beside.column)]
        if not parts:
            parts = _above(comments, line)
        if parts:
            result[keys[0]] = " ".join(parts)
    return result


@dataclasses.dataclass(frozen=True)
class _Comment:
    text: str
    column: int
    is_alone: bool  # on a line of its own


def _comments(text: str) -> dict[int, _Comment]:
    """Find comments by line, from 0; signs inside of values do not count."""
    ends: dict[int, int] = {}  # column behind the last token of a line
    inside: set[int] = set()  # lines within a value of several lines
    for token in yaml.scan(text, _Loader):
        start, end = token.start_mark, token.end_mark
        if (start.line, start.column) == (end.line, end.column):
            continue
        is_block = isinstance(token, yaml.ScalarToken) and token.style in ("|", ">")
        last = end.line - 1 if is_block else end.line
        inside |= set(range(start.line + 1, last + 1 if is_block else last))
        if not is_block:
            ends[end.line] = max(ends.get(end.line, 0), end.column)
    result = {}
    for number, line in enumerate(text.splitlines()):
        behind = ends.get(number, 0)
        match = re.compile(r"(?:^|\s)#\s?(.*)$").search(line, max(behind - 1, 0) if behind else 0)
        if match and number not in inside:
            column = match.start(0) + match.group(0).index("#")
            result[number] = _Comment(match.group(1).strip(), column, not line[:column].strip())
    return result


def _keys(node: yaml.MappingNode, path: str = "") -> Iterator[tuple[str, int]]:
    for key, value in node.value:
        if key.value == "<<":
            continue
        name = f"{path}.{key.value}" if path else str(key.value)
        yield name, key.start_mark.line
        if isinstance(value, yaml.MappingNode) and value.start_mark.line >= key.start_mark.line:
            yield from _keys(value, name)


def _following(comments: dict[int, _Comment], line: int, column: int) -> Iterator[str]:
    yield comments[line].text
    while (below := comments.get(line := line + 1)) is not None and below.is_alone and below.column == column:
        yield below.text


def _above(comments: dict[int, _Comment], line: int) -> list[str]:
    parts: list[str] = []
    column = None
    while (above := comments.get(line := line - 1)) is not None and above.is_alone:
        if column is not None and above.column != column:
            break
        column = above.column
        parts.insert(0, above.text)
    beside = comments.get(line)
    return [] if beside is not None and not beside.is_alone and beside.column == column else parts


@cache
def file_comments(file: Path) -> dict[str, str]:
    """Return ``key_comments`` of a file, an empty dict for one that is no YAML file."""
    return key_comments(file.read_text(encoding="utf-8")) if file.suffix in (".yml", ".yaml") else {}
