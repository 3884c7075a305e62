"""Checks of ``--params``: every key exists, and its value is of the right kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from recpipe.config.suggest import ConfigError, nearest
from recpipe.config.tree import CHOICES, Leaf, Tree, block, leaves, merge

if TYPE_CHECKING:
    from recpipe.config.resolve import Configuration

FREE = ("options", "columns", "settings", *CHOICES)  # blocks whose keys are arguments that their user checks


def check_overrides(configuration: Configuration) -> None:
    """Raises ConfigError for a key that nothing has, and for a value of the wrong kind."""
    for name, value in configuration.overrides.items():
        if name == "models" and isinstance(value, Mapping):
            _check_models(configuration, value)
        elif name == "datasets" and isinstance(value, Mapping):
            _check_datasets(configuration, value)
        else:
            _check({name: value}, _known(configuration), "", configuration.extra_settings)


def _known(configuration: Configuration) -> Tree:
    """The top level of the files, with all settings under every kind of semantic ids."""
    from recpipe.config.resolve import with_kinds

    files = configuration.files
    return {**files, "semantic_ids": with_kinds(block(files, "semantic_ids"))}


def _check_models(configuration: Configuration, models: Mapping[str, Any]) -> None:
    known = block(configuration.files, "models")
    for model, values in models.items():
        if model not in known:
            raise _unknown(f"models.{model}", known)
        if not isinstance(values, Mapping):
            raise ConfigError(f"models.{model} is a block; give one of its keys")
        tree = configuration.known_tree(model)
        for key, value in values.items():
            nested = isinstance(value, Mapping) and key in ("datasets", "profiles")
            for path, own in value.items() if nested else [("", {key: value})]:
                if nested and path not in block(configuration.files, key):
                    raise _unknown(f"models.{model}.{key}.{path}", block(configuration.files, key))
                prefix = f"models.{model}.{key}.{path}." if nested else f"models.{model}."
                _check(own, tree, prefix, configuration.extra_settings, model=model)


def _check_datasets(configuration: Configuration, datasets: Mapping[str, Any]) -> None:
    from recpipe.config.resolve import BY_DATASET

    files = configuration.files
    for dataset, values in datasets.items():
        if dataset not in block(files, "datasets"):
            raise _unknown(f"datasets.{dataset}", block(files, "datasets"))
        shared = {name: each for name, each in _known(configuration).items() if name in BY_DATASET}
        tree = merge(shared, block(files, "datasets", dataset))
        _check(values, tree, f"datasets.{dataset}.", configuration.extra_settings)


def _check(
    given: Mapping[str, Any],
    known: Tree,
    prefix: str,
    extra: Callable[[str, str | None], Mapping[str, Any]],
    *,
    model: str | None = None,
) -> None:
    for key, value in given.items():
        path = f"{prefix}{key}"
        if key not in known:
            others = extra(prefix.rstrip("."), model)
            if key not in others:
                raise _unknown(path, {**known, **dict.fromkeys(others)}, known)
            _check_kind(path, value, others[key])
            continue
        present = known[key]
        if isinstance(value, Mapping):
            if isinstance(present, Leaf) and present.value is not None:
                raise _wrong_kind(path, dict(value), present.value)
            if isinstance(present, dict) and present and key not in FREE:
                _check(value, present, f"{path}.", extra, model=model)
        elif isinstance(present, dict):
            if present and value is not None:
                raise ConfigError(f"{path} is a block; give one of its keys: {', '.join(present)}")
        else:
            _check_kind(path, value, present.value)


def _check_kind(path: str, value: Any, present: Any) -> None:
    if not same_kind(value, present):
        raise _wrong_kind(path, value, present)


def same_kind(value: Any, present: Any) -> bool:
    """Whether ``value`` may replace ``present``: number for number, yes/no for yes/no, a date for a share.

    Null and text may be replaced by any single value; a list cannot be given on the command line.
    """
    if isinstance(value, Mapping) or isinstance(present, list | tuple):
        return isinstance(value, list | tuple) and isinstance(present, list | tuple)
    if value is None or present is None or isinstance(present, str):
        return True
    if isinstance(present, bool) or isinstance(value, bool):
        return isinstance(present, bool) and isinstance(value, bool)
    if isinstance(present, float):
        return isinstance(value, int | float) or _is_date(value)
    return isinstance(value, int)


def _is_date(value: Any) -> bool:
    try:
        date.fromisoformat(str(value))
    except ValueError:
        return False
    return True


def _wrong_kind(path: str, value: Any, present: Any) -> ConfigError:
    return ConfigError(
        f"{path} (command line) cannot be {value!r}: conf has {present!r}, give that kind of value"
    )


def _unknown(path: str, known: Mapping[str, Any], tree: Tree | None = None) -> ConfigError:
    blocks, _, name = path.rpartition(".")
    hint = nearest(name, known)
    place = ""
    if blocks and tree:
        suggested = [tree[key] for key in tree if f"{key!r}" in hint] or list(tree.values())[-1:]
        file = next((leaf.file for _, leaf in leaves({"": suggested[0]})), "")
        place = f"; it belongs in {file}" if file else ""
    return ConfigError(
        f"unknown parameter {path!r} (command line){hint}{place}; there are {', '.join(map(str, known))}"
    )
