"""Nested settings whose leaves remember where they come from, and how one tree is merged over another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

COMMAND_LINE = "command line"
CHOICES = (
    "loss",
    "optimiser",
    "schedule",
)  # blocks whose other keys are arguments of what their `name` names


@dataclass(frozen=True)
class Leaf:
    """A value (scalar or list) with the file it stands in, or ``COMMAND_LINE``, and its key there."""

    value: Any
    file: str
    key: str

    @property
    def origin(self) -> str:
        """``conf/base/parameters/train.yml: train.window``."""
        return f"{self.file}: {self.key}"


Tree = dict[str, "Tree | Leaf"]


def tree_of(values: Mapping[Any, Any], file: str, path: str = "") -> Tree:
    """Plain nested values as a tree; keys become strings."""
    made: Tree = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        made[str(name)] = tree_of(value, file, key) if isinstance(value, Mapping) else Leaf(value, file, key)
    return made


def plain(tree: Tree | Leaf) -> Any:
    """The values alone, lists copied."""
    if isinstance(tree, Leaf):
        return copy.deepcopy(tree.value)
    return {name: plain(each) for name, each in tree.items()}


def merge(*trees: Tree) -> Tree:
    """Later trees over earlier ones, key by key at any depth; lists are replaced as a whole.

    A block of ``CHOICES`` that names something else than the one below replaces it: arguments of one optimiser are not
    those of another.
    """
    merged: Tree = {}
    for tree in trees:
        for name, above in tree.items():
            below = merged.get(name)
            if isinstance(below, dict) and isinstance(above, dict) and not _another(name, below, above):
                merged[name] = merge(below, above)
            else:
                merged[name] = above
    return merged


def _another(name: str, below: Tree, above: Tree) -> bool:
    if name not in CHOICES:
        return False
    names = [each.value for each in (below.get("name"), above.get("name")) if isinstance(each, Leaf)]
    return len(names) == 2 and names[0] != names[1]


def block(tree: Tree, *path: str) -> Tree:
    """The block at ``path``, empty where there is none or where it is null."""
    for name in path:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            return {}
        tree = inner
    return tree


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """(dotted path, leaf) of every value, in the order of the files."""
    for name, each in tree.items():
        key = f"{path}.{name}" if path else name
        if isinstance(each, Leaf):
            yield key, each
        else:
            yield from leaves(each, key)
