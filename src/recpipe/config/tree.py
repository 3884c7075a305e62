"""Nested settings whose leaves know their origin, and the merge of such trees."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

COMMAND_LINE = "command line"
# Blocks whose other keys are arguments of what their `name` names.
CHOICES = ("loss", "optimiser", "schedule")


@dataclass(frozen=True)
class Leaf:
    """A value (scalar or list) with its file, or ``COMMAND_LINE``, and its key there."""

    value: Any
    file: str
    key: str

    @property
    def origin(self) -> str:
        """``conf/base/parameters/train.yml: train.window``."""
        return f"{self.file}: {self.key}"


Tree = dict[str, "Tree | Leaf"]


def tree_of(values: Mapping[Any, Any], file: str, path: str = "") -> Tree:
    """Convert nested values to a tree; keys become strings."""
    tree: Tree = {}
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        tree[str(name)] = tree_of(value, file, key) if isinstance(value, Mapping) else Leaf(value, file, key)
    return tree


def plain(tree: Tree | Leaf) -> Any:
    """Convert a tree to nested values; lists are copied."""
    if isinstance(tree, Leaf):
        return copy.deepcopy(tree.value)
    return {name: plain(each) for name, each in tree.items()}


def merge(*trees: Tree) -> Tree:
    """Merge later trees over earlier ones, key by key at any depth; lists are replaced as a whole.

    A block of ``CHOICES`` with another ``name`` than the one below replaces it: arguments of one optimiser are not
    those of another.
    """
    result: Tree = {}
    for tree in trees:
        for name, above in tree.items():
            below = result.get(name)
            if isinstance(below, dict) and isinstance(above, dict) and not _replaces(name, below, above):
                result[name] = merge(below, above)
            else:
                result[name] = above
    return result


def _replaces(name: str, below: Tree, above: Tree) -> bool:
    if name not in CHOICES:
        return False
    names = [each.value for each in (below.get("name"), above.get("name")) if isinstance(each, Leaf)]
    return len(names) == 2 and names[0] != names[1]


def block(tree: Tree, *path: str) -> Tree:
    """Return the block at ``path``, empty where it is missing or null."""
    for name in path:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            return {}
        tree = inner
    return tree


def blocks_of(tree: Tree, names: Iterable[str]) -> Tree:
    """Return the blocks ``names`` of ``tree``, without missing and null ones."""
    return {name: inner for name in names if (inner := block(tree, name))}


def without_null(tree: Tree, names: Iterable[str]) -> Tree:
    """Return ``tree`` without null entries of ``names``: a block whose lines are all comments overrides nothing."""
    return {
        name: each
        for name, each in tree.items()
        if name not in names or not isinstance(each, Leaf) or each.value is not None
    }


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Iterate over all values as (dotted path, leaf), in the order of the files."""
    for name, each in tree.items():
        key = f"{path}.{name}" if path else name
        if isinstance(each, Leaf):
            yield key, each
        else:
            yield from leaves(each, key)
