"""Checks of names in the parameter files, and of the keys and values of ``--params``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import date
from typing import TYPE_CHECKING, Any

from recpipe.config.checks import DAYS, ConfigError, check_known, nearest, split_names
from recpipe.config.files import CHOICES, COMMAND_LINE, SEARCH_SPACE, Leaf, Tree, block, first_file, merge, pick_blocks
from recpipe.config.run_config import (
    AUTO,
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

ARGUMENT_BLOCKS = (
    "options",
    "columns",
    "settings",
    SEARCH_SPACE,
    *CHOICES,
)  # their keys are checked by the code that takes them
OPTIONAL = ("profile", "baselines", "like", "protocols")  # keys that a data set may lack
NUMBERS_OR_AUTO = ("devices",)  # keys whose number may be auto
SHARES_OR_DAYS = ("protocol.valid", "protocol.test")  # whose share of the log may be a number of days, as 14d


def check_names(configuration: Configuration) -> None:
    """Raise ConfigError for unknown names in the files, and for a value where a block belongs.

    Names are those of blocks, data sets, profiles, kinds of semantic ids and models that others extend.
    """
    files = configuration.files
    for name, entry in files.items():
        check_known(name, TOP_LEVEL, what="parameter", hint=_in_parentheses(first_file(entry)))
    _check_blocks(files, ("datasets", "models", "profiles", "protocols", *BY_DATASET))
    _check_blocks(block(files, "datasets"))
    _check_blocks(block(files, "models"))
    datasets, profiles, profile = block(files, "datasets"), block(files, "profiles"), configuration.profile
    check_known(configuration.dataset, datasets, what="dataset", hint=" (files in conf/*/parameters/datasets)")
    for tree in (files, *(block(datasets, name) for name in datasets)):
        _check_blocks(tree, BY_DATASET)
        for kind in block(tree, "semantic_ids", "kinds"):
            check_known(kind, ID_KINDS, what="kind of semantic ids")
        if isinstance(leaf := tree.get("profile"), Leaf) and leaf.value is not None:
            check_known(leaf.value, (*profiles, AUTO), what="profile", hint=_in_parentheses(leaf.origin))
    if profile is not None:
        check_known(profile, (*profiles, AUTO), what="profile", hint=_in_parentheses(COMMAND_LINE))
    _check_protocols(configuration)
    for model in configuration.model_names:
        entry = block(files, "models", model)
        _check_blocks(entry, ("profiles", "datasets", SEARCH_SPACE, *BY_MODEL))
        for key, names in (("profiles", profiles), ("datasets", datasets)):
            _check_blocks(block(entry, key))
            for name in block(entry, key):
                settings = block(entry, key, name)
                what = f"{key[:-1]} of models.{model}"
                check_known(name, names, what=what, hint=_in_parentheses(first_file(settings)))
                _check_blocks(settings, (SEARCH_SPACE, *BY_MODEL))
                for setting in ("type", "extends"):
                    if isinstance(leaf := settings.get(setting), Leaf):
                        raise ConfigError(f"{leaf.origin}: {key} may override settings, not the {setting}")
        configuration.type_of(model)


def _check_protocols(configuration: Configuration) -> None:
    """Raise ConfigError for unknown fields of named protocols, and names that are not defined or not listed."""
    files, definitions = configuration.files, block(configuration.files, "protocols")
    datasets = block(files, "datasets")
    fields = [name for name in block(files, "protocol") if name != "name"]
    for dataset, tree in (("", files), *((name, block(datasets, name)) for name in datasets)):
        _check_blocks(tree, ("protocols",))
        protocols = block(tree, "protocols")
        _check_blocks(protocols)
        for name in protocols:
            where = f"protocols.{name}" if not dataset else f"datasets.{dataset}.protocols.{name}"
            place = _in_parentheses(first_file(protocols[name]))
            check_known(name, definitions, what="protocol", hint=place or f" (datasets.{dataset}.protocols)")
            for key in block(protocols, name):
                check_known(key, fields, what=f"field of {where}", hint=place)
    configuration.protocol_names  # noqa: B018


def _in_parentheses(place: str) -> str:
    return f" ({place})" if place else ""


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
        choices, what = (*VECTORS, COLLABORATIVE), f"vectors of {where}.side"
        check_known(name, choices, what=what, hint=", several as a+b, or none")
    for name in config.ids:
        check_known(name, ID_KINDS, what=f"ids of {where}", hint=", several as a+b")
    others = [name for name in models if name != config.name]
    if COLLABORATIVE in vectors and config.collaborative not in others:
        raise ConfigError(
            f"{where}.{COLLABORATIVE} is {config.collaborative!r}{nearest(config.collaborative, others)}; name the "
            f"model whose items are read, one of {', '.join(others)}"
        )


def check_overrides(configuration: Configuration) -> None:
    """Raise ConfigError for a key of ``--params`` that the conf lacks, and for a value of the wrong kind."""
    for name, value in configuration.overrides.items():
        if name == "models" and isinstance(value, Mapping):
            _check_models(configuration, value)
        elif name == "datasets" and isinstance(value, Mapping):
            _check_datasets(configuration, value)
        else:
            _check({name: value}, _top_level(configuration), "", configuration.extra_settings)


def _top_level(configuration: Configuration) -> Tree:
    """Return the top level of the files with the data set's blocks, and all settings under every kind of ids."""
    files = configuration.files
    top = merge(files, pick_blocks(block(files, "datasets", configuration.dataset), BY_DATASET))
    return {**top, "semantic_ids": with_kinds(block(top, "semantic_ids"))}


def _check_models(configuration: Configuration, models: Mapping[str, Any]) -> None:
    for model, values in models.items():
        _check_block(model, values, "models.", block(configuration.files, "models"))
        tree = configuration.file_tree(model)
        for key, value in values.items():
            is_nested = isinstance(value, Mapping) and key in ("datasets", "profiles")
            for name, settings in value.items() if is_nested else [("", {key: value})]:
                path = f"models.{model}"
                if is_nested:
                    _check_block(name, settings, f"{path}.{key}.", block(configuration.files, key))
                    path = f"{path}.{key}.{name}"
                if "type" in settings:
                    raise ConfigError(f"{path}.type (command line): overrides may change settings, not the type")
                _check(settings, tree, f"{path}.", configuration.extra_settings, model=model)


def _check_datasets(configuration: Configuration, datasets: Mapping[str, Any]) -> None:
    choices = block(configuration.files, "datasets")
    for dataset, values in datasets.items():
        _check_block(dataset, values, "datasets.", choices)
        common: Tree = {key: entry for key, entry in _top_level(configuration).items() if key in BY_DATASET}
        optional: Tree = {name: Leaf(None, "", "") for name in OPTIONAL}
        tree = merge(optional, common, block(choices, dataset))
        _check(values, tree, f"datasets.{dataset}.", configuration.extra_settings)


def _check_block(name: str, values: object, prefix: str, choices: Tree) -> None:
    if name not in choices:
        raise _unknown(f"{prefix}{name}", choices)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix}{name} is a block; give one of its keys")


def _check(
    overrides: Mapping[str, Any],
    tree: Tree,
    prefix: str,
    extra: Callable[[str, str | None], Mapping[str, Any]],
    *,
    model: str | None = None,
) -> None:
    for key, value in overrides.items():
        path = f"{prefix}{key}"
        if key not in tree:
            defaults = extra(prefix.rstrip("."), model)
            if key not in defaults:
                raise _unknown(path, {**tree, **dict.fromkeys(defaults)}, tree)
            _check_kind(path, value, defaults[key], any_number=True)
            continue
        current = tree[key]
        if isinstance(current, Leaf):
            if isinstance(value, Mapping) and current.value is None:
                continue
            _check_kind(path, value, current.value, any_number=model is not None)
        elif isinstance(value, Mapping):
            if current and key not in ARGUMENT_BLOCKS:
                _check(value, current, f"{path}.", extra, model=model)
        elif current and (value is not None or not prefix or key in BY_DATASET):
            raise ConfigError(f"{path} is a block; give one of its keys: {', '.join(current)}")


def _check_kind(path: str, value: object, current: object, *, any_number: bool = False) -> None:
    """Raise ConfigError for a value of another kind. ``any_number``: the model's dataclass tells 3 from 2.5 later."""
    is_number = isinstance(value, int | float) and isinstance(current, int | float)
    if any_number and is_number and isinstance(value, bool) == isinstance(current, bool):
        return
    if value == AUTO and path.rpartition(".")[2] in NUMBERS_OR_AUTO:
        return
    if path.endswith(SHARES_OR_DAYS) and DAYS.fullmatch(str(value)):
        return
    if not same_kind(value, current):
        raise ConfigError(f"{path} (command line) cannot be {value!r}: conf has {current!r}, give that kind of value")


def same_kind(value: object, current: object) -> bool:
    """Return whether ``value`` may replace ``current``: number for number, boolean for boolean, list for list.

    A date may replace a float (the share of a split). Null and text may be replaced by any scalar, and null may replace
    any scalar.
    """
    if isinstance(value, Mapping) or isinstance(current, list | tuple):
        return isinstance(value, list | tuple) and isinstance(current, list | tuple)
    if value is None or current is None or isinstance(current, str):
        return True
    if isinstance(current, bool) or isinstance(value, bool):
        return isinstance(current, bool) and isinstance(value, bool)
    if isinstance(value, int) or not isinstance(current, float):
        return isinstance(value, int)
    with suppress(ValueError):
        return isinstance(value, float) or bool(date.fromisoformat(str(value)))
    return False


def _unknown(path: str, choices: Mapping[str, Any], tree: Tree | None = None) -> ConfigError:
    blocks, _, name = path.rpartition(".")
    hint, place = nearest(name, choices), ""
    if blocks and tree:
        entries = [tree[key] for key in tree if f"{key!r}" in hint] or list(tree.values())[-1:]
        if file := first_file(entries[0]):
            place = f"; it belongs in {file}"
    names = ", ".join(map(str, choices))
    return ConfigError(f"unknown parameter {path!r} (command line){hint}{place}; there are {names}")
