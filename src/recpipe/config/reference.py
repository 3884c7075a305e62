"""Reference of all settings: the type, default and meaning of every key of the configuration.

Types and defaults come from the classes that check a block, meanings from the YAML comments in conf/base and from the
docstrings of the classes. ``recpipe config describe`` and the documentation show them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recpipe.config.checks import ConfigError, nearest
from recpipe.config.comments import file_comments
from recpipe.config.fields import field_meanings, fields, show
from recpipe.config.files import Leaf, Tree, block, leaves, read_parameters, to_values
from recpipe.config.reference_sections import EXTRA, INTERNAL, SECTIONS, Section

NAME = "<name>"
LONGEST_BLOCK = 60  # characters of a default


@dataclass(frozen=True)
class Setting:
    """A key: its type and default in words, and its meaning. ``file`` is empty for a key that no file of base has."""

    key: str
    type: str
    default: str
    meaning: str
    variant: str = ""
    file: str = ""


class Reference:
    """All settings by key, with the defaults and comments of the folder ``conf``.

    ``<name>`` in a key stands for a free name, such as that of a data set. A key may have several variants.
    """

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        self.tree = read_parameters(conf, "base")
        self.settings = [*self._extra(), *(item for section in SECTIONS for item in self._section(section))]

    def find(self, key: str) -> list[Setting]:
        """Return the variants of a key such as ``train.window``, those of the keys in a block such as ``serve``.

        ``models.sasrec.train.window`` is ``train.window``. Raises ConfigError with the nearest spelling, and for a
        setting of a model itself, such as ``models.sasrec.heads``.
        """
        first, *rest = key.split(".")
        pattern = rest[1:] if first == "models" else [first, *rest]
        matches = [item for item in self.settings if _matches(item.key.split("."), pattern)]
        blocks = {item.key.partition(".")[0] for item in self.settings if "." in item.key}
        if first == "models" and (not pattern or pattern[0] not in blocks):
            name = rest[0] if rest and rest[0] else "<model>"
            raise ConfigError(
                f"settings of a model stand with their comments in conf/base/parameters/models/{name}.yml; "
                f"`recpipe config show models.{name} --params model={name}` shows them",
                key,
            )
        if not matches:
            near = nearest(key, [item.key for item in self.settings])
            raise ConfigError(f"no setting is called {key!r}{near}; blocks are {', '.join(sorted(blocks))}", key)
        exact = [item for item in matches if len(item.key.split(".")) == len(pattern)]
        return exact or matches

    def leaf(self, key: str) -> Leaf | None:
        """Return the value of a key in base, for ``<name>`` the first that has it; None without one."""
        return next(iter(_at(self.tree, key.split("."))), None)

    def comment(self, leaf: Leaf) -> str:
        """Return the comment of a value in its file, or that of the block that it is in on the same line."""
        return file_comments(self.conf.parent / leaf.file).get(leaf.key, "")

    def block_comment(self, key: str) -> str:
        """Return the comment of a block."""
        for path, leaf in leaves(self.tree):
            if path.startswith(f"{key}."):
                return file_comments(self.conf.parent / leaf.file).get(key, "")
        return ""

    def _extra(self) -> Iterator[Setting]:
        for key, (type_, default, meaning) in EXTRA.items():
            leaf = None if key.startswith("datasets.") else self.leaf(key)
            text = default if leaf is None or default or NAME in key else f"`{show(leaf.value)}`"
            comment = self.comment(leaf) if leaf is not None else ""
            yield Setting(
                key, type_, text, meaning or comment or self.block_comment(key), file=leaf.file if leaf else ""
            )

    def _section(self, section: Section) -> Iterator[Setting]:
        cls = load(section.cls)
        meanings = field_meanings(cls)
        for name, (type_, default) in fields(cls).items():
            key = f"{section.path}.{name}"
            if name in INTERNAL.get(section.path, ()) or key in EXTRA:
                continue
            leaf = None if section.variant or section.path.startswith("datasets.") else self.leaf(key)
            leaf = leaf or (self._variant_leaf(section, name) if section.variant else None)
            has_value = leaf is not None and NAME not in key
            text = f"`{show(leaf.value)}`" if leaf is not None and has_value else self._block_default(key) or default
            meaning = (self.comment(leaf) if leaf is not None else "") or self.block_comment(key)
            if not meaning or ((section.variant or NAME in section.path) and name in meanings):
                meaning = meanings.get(name, meaning)
            yield Setting(key, type_, text, meaning, section.variant, leaf.file if leaf is not None else "")

    def _block_default(self, key: str) -> str:
        """Return a small block of base in one line, empty for a large one."""
        value = block(self.tree, *key.split("."))
        text = show(to_values(value)) if value else ""
        return f"`{text}`" if 0 < len(text) <= LONGEST_BLOCK else ""

    def _variant_leaf(self, section: Section, name: str) -> Leaf | None:
        """Return a value of the key in the first block of base that chooses the variant."""
        choice, _, value = section.variant.partition(": ")
        parts = section.path.split(".")
        for block_ in _blocks(self.tree, parts):
            leaf, selector = block_.get(name), block_.get(choice)
            if isinstance(leaf, Leaf) and isinstance(selector, Leaf) and selector.value == value:
                return leaf
        return None


def _matches(key: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a key, or its beginning, is the pattern; ``<name>`` in the key stands for anything."""
    return len(key) >= len(pattern) and all(a in (NAME, b) for a, b in zip(key, pattern, strict=False))


def _blocks(tree: Tree, path: Sequence[str]) -> Iterator[Tree]:
    if not path:
        yield tree
        return
    for name, entry in tree.items():
        if path[0] in (NAME, name) and isinstance(entry, dict):
            yield from _blocks(entry, path[1:])


def _at(tree: Tree, path: Sequence[str]) -> Iterator[Leaf]:
    for block_ in _blocks(tree, path[:-1]):
        if isinstance(leaf := block_.get(path[-1]), Leaf):
            yield leaf


def load(name: str) -> Any:
    """Import ``package.module:Class.Inner``."""
    module, _, path = name.partition(":")
    value: Any = importlib.import_module(module)
    for part in path.split("."):
        value = getattr(value, part)
    return value
