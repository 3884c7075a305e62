"""What `--params` may say, and what it overrides: names and kinds are checked before anything runs."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import click

COMMON = ("train", "side")  # blocks that a model's own of the same name override


class Refused(click.ClickException, ValueError):
    """A request for what the configuration does not have: one line on the command line, no traceback."""


def winning(asked: Mapping[str, Any], conf: Mapping[str, Any]) -> dict[str, Any]:
    """`asked`, repeated where the files override it: the data set's `protocol`, `cold_users`, `embed` and
    `semantic_ids`, a model's `train` and `side`, and the model's block for the data set.

    What is said on the command line wins over what a data set or a model says, and that over the common block; of
    two things said, the one with the longer name wins.
    """
    dataset = asked.get("dataset", conf["dataset"])
    given: dict[str, Any] = copy.deepcopy(dict(asked))
    for block in ("protocol", "cold_users", "embed", "semantic_ids"):
        _repeat(given, ["datasets", dataset, block], conf, asked.get(block))
    for name in conf["models"]:
        said = at(asked, ["models", name])
        of_dataset = ["models", name, "datasets", dataset]
        own = {key: said[key] for key in said if key not in (*COMMON, "datasets")}
        _repeat(given, of_dataset, conf, own)
        for block in COMMON:
            _repeat(given, [*of_dataset, block], conf, said.get(block))
            _repeat(given, ["models", name, block], conf, asked.get(block))
            _repeat(given, [*of_dataset, block], conf, asked.get(block))
    return given


def with_side(conf: Mapping[str, Any]) -> dict[str, Any]:
    """`conf` with all keys of the block `side` in every model: they may be given whatever its file has of them."""
    side = conf.get("side") or {}
    models = {
        name: {**block, "side": {**side, **(block.get("side") or {})}}
        for name, block in conf["models"].items()
    }
    return {**conf, "models": models}


def _repeat(
    given: dict[str, Any], path: list[str], conf: Mapping[str, Any], said: Mapping[str, Any] | None
) -> None:
    """Puts into `given`, at `path`, what was said of keys that the files have there; what is there stays."""
    present = at(conf, path)
    values = {key: value for key, value in (said or {}).items() if key in present}
    for key in path if values else []:
        given = given.setdefault(key, {})
    for key, value in values.items():
        _fill(given, key, value)


def _fill(given: dict[str, Any], key: str, value: Any) -> None:
    if isinstance(value, Mapping) and isinstance(given.get(key), dict):
        for inner, each in value.items():
            _fill(given[key], inner, each)
    else:
        given.setdefault(key, copy.deepcopy(value))


def at(block: Mapping[str, Any], path: list[str]) -> Mapping[str, Any]:
    """What stands in `block` at `path`; empty where there is nothing."""
    for key in path:
        block = block.get(key) or {}
    return block


def first(key: str, *blocks: Mapping[str, Any]) -> Any:
    """`key` of the first of `blocks` that has it."""
    return next((block[key] for block in blocks if key in block), None)


def check_name(name: Any, known: Iterable[str], *, what: str, also: str = "") -> None:
    """Raises `Refused` unless `known` has `name`."""
    known = sorted(known)
    if name not in known:
        has = f"conf/base/parameters/{what}s has {', '.join(known)}{also}"
        raise Refused(f"unknown {what} {str(name)!r}{_nearest(str(name), known)}; {has}")


def check_parameters(asked: Mapping[str, Any], conf: Mapping[str, Any], path: str = "") -> None:
    """Raises `Refused` for a parameter that the files do not have, or have with another kind of value.

    A block that is empty in the files takes any key.
    """
    for key, value in asked.items():
        name = f"{path}{key}"
        if key not in conf:
            has = f"{path.rstrip('.') or 'conf'} has {', '.join(map(str, conf))}"
            raise Refused(f"unknown parameter {name!r}{_nearest(str(key), conf)}; {has}")
        present = conf[key]
        if isinstance(value, Mapping) and isinstance(present, Mapping):
            if present:
                check_parameters(value, present, f"{name}.")
        elif isinstance(present, Mapping):
            raise Refused(
                f"parameter {name!r} is a block; give one of its keys, {', '.join(map(str, present))}"
            )
        elif not same_kind(value, present):
            raise Refused(
                f"parameter {name!r} cannot be {value!r}: conf has {present!r}, give that kind of value"
            )


def same_kind(value: Any, present: Any) -> bool:
    """Whether `value` may replace `present`: number for number, yes/no for yes/no, a date for a share.

    Null and text may be replaced by any single value; a list cannot be given on the command line.
    """
    if isinstance(value, Mapping) or isinstance(present, list):
        return False
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


def _nearest(name: str, known: Iterable[Any]) -> str:
    close = difflib.get_close_matches(name, [str(each) for each in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
