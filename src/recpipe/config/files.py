"""Parameter files of a conf folder as one tree: ``base``, and over it one environment."""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from recpipe.config.suggest import ConfigError
from recpipe.config.tree import Leaf, Tree, leaves, merge, tree_of

BASE, DEFAULT_ENV = "base", "local"
SUFFIXES = (".yml", ".yaml", ".json")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML: 1e-3 is a number, a date is text, and a key stands once in its block."""

    yaml_implicit_resolvers = {
        sign: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
        for sign, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [each.value for each, _ in node.value if isinstance(each, yaml.ScalarNode)]
        if repeated := [key for key in dict.fromkeys(keys) if keys.count(key) > 1 and key != "<<"]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated[0]!r} stands twice in one block", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str) -> Any:
    """Values of YAML text; no objects. Raises ``yaml.YAMLError``."""
    return yaml.load(text, _Loader)


def parse_overrides(text: str) -> dict[str, Any]:
    """``dataset=ml-1m,train.window=50`` as nested values, as ``kedro run --params`` reads them."""
    nested: dict[str, Any] = {}
    for pair in (each.strip() for each in text.split(",")):
        if not pair:
            continue
        path, sign, value = pair.partition("=")
        if not sign:
            raise ConfigError(f"{pair!r} is no setting; write key=value, several separated by commas")
        *blocks, last = path.strip().split(".")
        inner = nested
        for name in blocks:
            inner = inner.setdefault(name, {})
        inner[last] = read_yaml(value.strip()) if value.strip() else ""
    return nested


def read_parameters(conf: Path, env: str | None = None) -> Tree:
    """Parameters and globals of the environments ``base`` and ``env`` (by default ``local``) of the folder ``conf``.

    Raises ConfigError for a folder that is missing, a file that is no YAML, and a key that two files of one environment
    have.
    """
    if not (conf / BASE).is_dir():
        raise ConfigError(f"{conf} has no folder {BASE!r}: it is no conf folder of recpipe")
    env = env or DEFAULT_ENV
    if env != DEFAULT_ENV and not (conf / env).is_dir():
        there = ", ".join(sorted(each.name for each in conf.iterdir() if each.is_dir()))
        raise ConfigError(f"there is no environment {env!r} in {conf}; there are {there}")
    return merge(*(_environment(conf, name) for name in dict.fromkeys((BASE, env))))


def _environment(conf: Path, env: str) -> Tree:
    environment: Tree = {}
    origins: dict[str, Leaf] = {}
    for file in _files(conf / env):
        shown = file.relative_to(conf.parent).as_posix()
        tree = tree_of(_read(file, shown), shown)
        for key, leaf in leaves(tree):
            if isinstance(leaf.value, str) and "${" in leaf.value:
                raise ConfigError(
                    f"{leaf.origin} is {leaf.value!r}; parameters have no interpolation, the catalog has"
                )
            if key in origins:
                raise ConfigError(
                    f"{key} stands in two files, {origins[key].file} and {shown}; keep one of them"
                )
            origins[key] = leaf
        environment = merge(environment, tree)
    return environment


def _files(folder: Path) -> Iterator[Path]:
    """``globals.yml``, and what Kedro takes for parameters: by the name of the file, or of the folder at the top."""
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        if file.suffix not in SUFFIXES or any(part.startswith(".") for part in parts) or not file.is_file():
            continue
        if (
            parts[0].startswith("parameters")
            or parts[-1].startswith("parameters")
            or parts == ("globals.yml",)
        ):
            yield file


def _read(file: Path, shown: str) -> dict[Any, Any]:
    values = _parsed(file, file.stat().st_mtime_ns, shown)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{shown} holds a {type(values).__name__}; it must hold keys with values")
    return values


@cache
def _parsed(file: Path, changed: int, shown: str) -> Any:
    """Content of a file, which is read once for as long as it is unchanged."""
    try:
        text = file.read_text(encoding="utf-8")
        return json.loads(text) if file.suffix == ".json" else read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{shown}{place}: broken YAML, {error.problem or error}") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} cannot be read: {' '.join(str(error).split())}") from error
