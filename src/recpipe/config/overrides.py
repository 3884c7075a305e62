"""Checks of names in the parameter files, and of the keys and values of ``--params``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any

from recpipe.config.checks import ConfigError, check_known, nearest, split_names
from recpipe.config.files import CHOICES, COMMAND_LINE, Leaf, Tree, block, blocks_of, leaves, merge
from recpipe.config.run_config import (
    BY_DATASET,
    BY_MODEL,
    COLLABORATIVE,
    ID_KINDS,
    TOP_LEVEL,
    VECTORS,
    RunConfig,
    with_kinds,
)

if TYPE_CHECKING:
    from recpipe.config.resolve import Configuration

FREE = ("options", "columns", "settings", *CHOICES)  # blocks of arguments that are checked by what takes them
OPTIONAL = ("profile", "baselines")  # keys that a data set may lack


def check_overrides(configuration: Configuration) -> None:
    """Raise ConfigError for a key of ``--params`` that the conf lacks, and for a value of the wrong kind."""
    for name, value in configuration.overrides.items():
        if name == "models" and isinstance(value, Mapping):
            _check_models(configuration, value)
        elif name == "datasets" and isinstance(value, Mapping):
            _check_datasets(configuration, value)
        else:
            _check({name: value}, _top_level(configuration), "", configuration.extra_settings)


def check_names(configuration: Configuration) -> None:
    """Raise ConfigError for unknown names in the files, and for a value where a block belongs.

    Names are those of blocks, data sets, profiles, kinds of semantic ids and models that others extend.
    """
    files = configuration.files
    for name, each in files.items():
        file = next((leaf.file for _, leaf in leaves({name: each})), "")
        check_known(name, TOP_LEVEL, what="parameter", hint=f" ({file})" if file else "")
    _check_blocks(files, ("datasets", "models", "profiles", *BY_DATASET))
    _check_blocks(block(files, "datasets"))
    _check_blocks(block(files, "models"))
    datasets, profiles, profile = block(files, "datasets"), block(files, "profiles"), configuration.profile
    folder = " (files in conf/base/parameters/datasets)"
    check_known(configuration.dataset, datasets, what="dataset", hint=folder)
    for each in (files, *(block(datasets, name) for name in datasets)):
        _check_blocks(each, BY_DATASET)
        for kind in block(each, "semantic_ids", "kinds"):
            check_known(kind, ID_KINDS, what="kind of semantic ids")
        if isinstance(leaf := each.get("profile"), Leaf) and leaf.value is not None:
            check_known(leaf.value, profiles, what="profile", hint=f" ({leaf.origin})")
    if profile is not None:
        check_known(profile, profiles, what="profile", hint=f" ({COMMAND_LINE})")
    for model in configuration.model_names:
        entry = block(files, "models", model)
        _check_blocks(entry, ("profiles", "datasets", *BY_MODEL))
        for key, names in (("profiles", profiles), ("datasets", datasets)):
            _check_blocks(block(entry, key))
            for name in block(entry, key):
                settings = block(entry, key, name)
                file = next((leaf.file for _, leaf in leaves(settings)), "")
                what = f"{key[:-1]} of models.{model}"
                check_known(name, names, what=what, hint=f" ({file})" if file else "")
                _check_blocks(settings, BY_MODEL)
                for setting in ("type", "extends"):
                    if isinstance(leaf := settings.get(setting), Leaf):
                        raise ConfigError(f"{leaf.origin}: {key} may override settings, not the {setting}")
        configuration.type_of(model)


def _check_blocks(tree: Tree, names: Iterable[str] | None = None) -> None:
    """Raise ConfigError where an entry of ``names``, by default any, is a value; null stands for an empty block."""
    for name in tree if names is None else names:
        if isinstance(leaf := tree.get(name), Leaf) and leaf.value is not None:
            raise ConfigError(f"{leaf.origin} is {leaf.value!r}; it must be a block")


def check_inputs(config: RunConfig, models: Iterable[str]) -> None:
    """Raise ConfigError for unknown vectors, kinds of ids or item model that a model reads, and for a bad seed."""
    if type(config.seed) is not int or config.seed < 0:
        raise ConfigError(f"seed is {config.seed!r}; give a whole number from 0")
    where, vectors = f"models.{config.name}", split_names(config.side.get("vectors"))
    for name in vectors:
        what = f"vectors of {where}.side"
        check_known(name, (*VECTORS, COLLABORATIVE), what=what, hint=", several as a+b, or none")
    for name in config.ids:
        check_known(name, ID_KINDS, what=f"ids of {where}", hint=", several as a+b")
    others = [name for name in models if name != config.name]
    if COLLABORATIVE in vectors and config.collaborative not in others:
        raise ConfigError(
            f"{where}.{COLLABORATIVE} is {config.collaborative!r}{nearest(config.collaborative, others)}; name the "
            f"model whose items are read, one of {', '.join(others)}"
        )


def _top_level(configuration: Configuration) -> Tree:
    """The top level of the files with the data set's blocks, and all settings under every kind of semantic ids."""
    files = configuration.files
    top = merge(files, blocks_of(block(files, "datasets", configuration.dataset), BY_DATASET))
    return {**top, "semantic_ids": with_kinds(block(top, "semantic_ids"))}


def _check_models(configuration: Configuration, models: Mapping[str, Any]) -> None:
    models_in_files = block(configuration.files, "models")
    for model, values in models.items():
        if model not in models_in_files:
            raise _unknown(f"models.{model}", models_in_files)
        if not isinstance(values, Mapping):
            raise ConfigError(f"models.{model} is a block; give one of its keys")
        tree = configuration.file_tree(model)
        for key, value in values.items():
            is_nested = isinstance(value, Mapping) and key in ("datasets", "profiles")
            for name, settings in value.items() if is_nested else [("", {key: value})]:
                path = f"models.{model}.{key}.{name}" if is_nested else f"models.{model}"
                if is_nested and name not in block(configuration.files, key):
                    raise _unknown(path, block(configuration.files, key))
                if not isinstance(settings, Mapping):
                    raise ConfigError(f"{path} is a block; give one of its keys")
                if "type" in settings:
                    raise ConfigError(
                        f"{path}.type (command line): overrides may change settings, not the type"
                    )
                _check(settings, tree, f"{path}.", configuration.extra_settings, model=model)


def _check_datasets(configuration: Configuration, datasets: Mapping[str, Any]) -> None:
    files = configuration.files
    for dataset, values in datasets.items():
        if dataset not in block(files, "datasets"):
            raise _unknown(f"datasets.{dataset}", block(files, "datasets"))
        if not isinstance(values, Mapping):
            raise ConfigError(f"datasets.{dataset} is a block; give one of its keys")
        common: Tree = {name: each for name, each in _top_level(configuration).items() if name in BY_DATASET}
        optional: Tree = {name: Leaf(None, "", "") for name in OPTIONAL}
        tree = merge(optional, common, block(files, "datasets", dataset))
        _check(values, tree, f"datasets.{dataset}.", configuration.extra_settings)


def _check(
    overrides: Mapping[str, Any],
    known: Tree,
    prefix: str,
    extra: Callable[[str, str | None], Mapping[str, Any]],
    *,
    model: str | None = None,
) -> None:
    for key, value in overrides.items():
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
            if present and (value is not None or not prefix or key in BY_DATASET):
                raise ConfigError(f"{path} is a block; give one of its keys: {', '.join(present)}")
        else:
            _check_kind(path, value, present.value)


def _check_kind(path: str, value: Any, present: Any) -> None:
    if not same_kind(value, present):
        raise _wrong_kind(path, value, present)


def same_kind(value: Any, present: Any) -> bool:
    """Whether ``value`` may replace ``present``: number for number, boolean for boolean, list for list.

    A date may replace a float (the share of a split). Null and text may be replaced by any scalar, and null may replace
    any scalar.
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
        entries = [tree[key] for key in tree if f"{key!r}" in hint] or list(tree.values())[-1:]
        file = next((leaf.file for _, leaf in leaves({"": entries[0]})), "")
        place = f"; it belongs in {file}" if file else ""
    return ConfigError(
        f"unknown parameter {path!r} (command line){hint}{place}; there are {', '.join(map(str, known))}"
    )
