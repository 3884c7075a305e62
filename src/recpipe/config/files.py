"""Parameter files of a conf folder (``base``, and one environment over it) as a tree whose leaves know their origin."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import yaml

from recpipe.config.checks import ConfigError

BASE, DEFAULT_ENV = "base", "local"
SUFFIXES = (".yml", ".yaml", ".json")
COMMAND_LINE = "command line"
CHOICES = ("loss", "optimiser", "schedule")  # blocks whose other keys are arguments of what `name` selects
SEARCH_SPACE = "search_space"  # block of ranges by setting, for tuning
SHORTHANDS = {"protocol": "name"}  # blocks that a single value of the command line stands for, with the key it sets


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


def to_tree(values: Mapping[Any, Any], file: str, path: str = "") -> Tree:
    """Convert nested values to a tree; keys become strings, and ``train.window`` in a search space two blocks."""
    tree: Tree = {}
    if path.rpartition(".")[2] == SEARCH_SPACE:
        values = _nested(values, f"{file}: {path}")
    for name, value in values.items():
        key = f"{path}.{name}" if path else str(name)
        tree[str(name)] = to_tree(value, file, key) if isinstance(value, Mapping) else Leaf(value, file, key)
    return tree


def _nested(values: Mapping[Any, Any], place: str) -> dict[str, Any]:
    """Split the dotted keys of a search space. Raises ConfigError for a setting that stands twice."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        *blocks, last = str(name).split(".")
        inner = result
        for part in blocks:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{place} has {name} inside of a value; write one of the two")
        if last in inner and not (isinstance(inner[last], dict) and isinstance(value, Mapping)):
            raise ConfigError(f"{place} has {name} twice; keep one of them")
        inner[last] = {**inner[last], **value} if last in inner else value
    return result


def to_values(tree: Tree | Leaf) -> Any:
    """Convert a tree to nested values; lists are copied."""
    if isinstance(tree, Leaf):
        return copy.deepcopy(tree.value)
    return {name: to_values(entry) for name, entry in tree.items()}


def leaves(tree: Tree, path: str = "") -> Iterator[tuple[str, Leaf]]:
    """Iterate over all values as (dotted path, leaf), in the order of the files."""
    for name, entry in tree.items():
        key = f"{path}.{name}" if path else name
        if isinstance(entry, Leaf):
            yield key, entry
        else:
            yield from leaves(entry, key)


def first_file(tree: Tree | Leaf) -> str:
    """Return the file of the first value, an empty string without any."""
    return next((leaf.file for _, leaf in leaves({"": tree})), "")


def merge(*trees: Tree) -> Tree:
    """Merge later trees over earlier ones, key by key at any depth; lists are replaced as a whole.

    A block of ``CHOICES`` with another ``name`` replaces the one below, as arguments of one optimiser are not those of
    another. So do ``choices`` of a search space and a range from ``low`` to ``high``.
    """
    result: Tree = {}
    for tree in trees:
        for name, above in tree.items():
            below = result.get(name)
            result[name] = above
            if isinstance(below, dict) and isinstance(above, dict):
                names = [leaf.value for entry in (below, above) if isinstance(leaf := entry.get("name"), Leaf)]
                is_same = name not in CHOICES or len(names) < 2 or names[0] == names[1]
                if is_same and not is_other_range(below, above):
                    result[name] = merge(below, above)
    return result


def is_other_range(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    """Return whether one of two blocks has ``choices`` and the other one a range, ``low`` or ``high``."""
    limits = {"low", "high"}
    return ("choices" in above and bool(limits & below.keys())) or ("choices" in below and bool(limits & above.keys()))


def block(tree: Tree, *path: str) -> Tree:
    """Return the block at ``path``, empty where it is missing or null."""
    for name in path:
        entry = tree.get(name)
        if not isinstance(entry, dict):
            return {}
        tree = entry
    return tree


def pick_blocks(tree: Tree, names: Iterable[str]) -> Tree:
    """Return the blocks ``names`` of ``tree``, without missing and null ones."""
    return {name: entry for name in names if (entry := block(tree, name))}


def drop_null(tree: Tree, names: Iterable[str]) -> Tree:
    """Return ``tree`` without null entries of ``names``: a block whose lines are all comments overrides nothing."""
    return {
        name: entry
        for name, entry in tree.items()
        if name not in names or not isinstance(entry, Leaf) or entry.value is not None
    }


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML where 1e-3 is a number, a date is text, and a repeated key is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        sign: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for sign, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} stands twice in one block", node.start_mark
            )
        mapping: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Read plain values from YAML text, no Python objects. Raises ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)


def parse_overrides(text: str) -> dict[str, Any]:
    """Read ``dataset=ml-1m,train.window=50`` as nested values, like ``kedro run --params``. Raises ConfigError.

    ``protocol=papers`` is short for ``protocol.name=papers``, so ``protocol=papers,protocol.history=30`` is possible.
    """
    nested: dict[str, Any] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        path, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"{pair!r} is no setting; write key=value, several separated by commas")
        *blocks, last = path.strip().split(".")
        if not blocks and last in SHORTHANDS:
            blocks, last = [last], SHORTHANDS[last]
        inner = nested
        for name in blocks:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise ConfigError(f"{pair}: {name} is a value in an earlier setting; write one of the two")
        try:
            inner[last] = read_yaml(value.strip()) if value.strip() else ""
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair}: the value cannot be read; lists have one element, as [10]") from error
    return nested


def expand_shorthands(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested overrides in which ``protocol: papers`` is ``protocol: {name: papers}``."""
    return {
        key: {SHORTHANDS[key]: value} if key in SHORTHANDS and not isinstance(value, Mapping) else value
        for key, value in overrides.items()
    }


def read_parameters(conf: Path, env: str | None = None) -> Tree:
    """Read parameters and globals of the folder ``conf``: the environment ``env`` (by default ``local``) over ``base``.

    A block that is empty in ``env`` overrides nothing. Raises ConfigError for a missing folder, a file that is not
    YAML, and a key that stands in two files of one environment.
    """
    if not (conf / BASE).is_dir():
        raise ConfigError(
            f"{conf} has no folder {BASE!r}, so it is not a conf folder of recpipe: work in a project folder; "
            "`recpipe new` creates one"
        )
    env = env or DEFAULT_ENV
    if env != DEFAULT_ENV and not (conf / env).is_dir():
        names = ", ".join(sorted(path.name for path in conf.iterdir() if path.is_dir()))
        raise ConfigError(f"there is no environment {env!r} in {conf}; there are {names}")
    base = _read_environment(conf, BASE)
    if env == BASE:
        return base
    blocks = [name for name in base if block(base, name)]
    changes = drop_null(_read_environment(conf, env), blocks)
    for name in blocks:
        if isinstance(leaf := changes.get(name), Leaf):
            raise ConfigError(f"{leaf.origin} is {leaf.value!r}; it must be a block")
    return merge(base, changes)


def _read_environment(conf: Path, env: str) -> Tree:
    environment: Tree = {}
    origins: dict[str, Leaf] = {}
    for file in _files(conf / env):
        name, stat = file.relative_to(conf.parent).as_posix(), file.stat()
        values = _parse(file.resolve(), (stat.st_mtime_ns, stat.st_size), name)
        if not isinstance(values, dict | None):
            raise ConfigError(f"{name} holds a {type(values).__name__}; it must hold keys with values")
        tree = to_tree(values or {}, name)
        for key, leaf in leaves(tree):
            if isinstance(leaf.value, str) and "${" in leaf.value:
                raise ConfigError(f"{leaf.origin} is {leaf.value!r}; parameters have no interpolation, the catalog has")
            if key in origins:
                raise ConfigError(f"{key} stands in two files, {origins[key].file} and {name}; keep one of them")
            origins[key] = leaf
        environment = merge(environment, tree)
    return environment


def _files(folder: Path) -> Iterator[Path]:
    """``globals.yml`` and the files of ``parameters*``, a top folder or a file name, as Kedro selects them."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        is_hidden = any(part.startswith(".") for part in parts)
        is_parameters = parts[0].startswith("parameters") or parts[-1].startswith("parameters")
        is_selected = is_parameters or parts == ("globals.yml",)
        if is_selected and not is_hidden and file.suffix in SUFFIXES and file.is_file():
            yield file


@cache
def _parse(file: Path, version: tuple[int, int], name: str) -> Any:
    """Parse a file; cached by its ``version``, the time of change and the size."""
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{name}{place}: broken YAML, {error.problem or error}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {' '.join(str(error).split())}") from error
