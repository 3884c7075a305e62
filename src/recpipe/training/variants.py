"""Variants of a model for a study: one setting with several values, or one part of it taken away at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from recpipe.config import RunConfig, read_yaml, split_names
from recpipe.models.registry import model_class
from recpipe.training.settings import TrainSettings

WHOLE = "as configured"


@dataclass(frozen=True)
class Study:
    """``values`` of ``setting``, as a+b+c; or ``without``: by name, the settings that take a part away.

    A setting is a field of the model's Config, or ``train.<key>``, or ``side.<key>``.
    """

    setting: str | None = None
    values: str | int | float | None = None
    without: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.setting is None) == (not self.without) or (self.setting is None) != (self.values is None):
            raise ValueError("a study has a setting with values, as 8+16+32, or a block without; not both")

    def given(self) -> list[Any]:
        """``values`` as YAML reads each."""
        return [read_yaml(each) for each in split_names(self.values)]


@dataclass(frozen=True)
class Variant:
    """One training of a study: ``changed`` settings, none of them for the model as it is."""

    name: str
    value: Any
    changed: Mapping[str, Any]
    config: RunConfig


def variants(study: Study, config: RunConfig) -> tuple[list[Variant], dict[str, str]]:
    """The trainings of ``study`` for a model, and why what is left out is left out, by name.

    Taken away is only what the model has. Raises ValueError for a setting that it does not have.
    """
    present = _present(config)
    if study.setting is not None:
        if study.setting not in present:
            raise ValueError(
                f"models of type {config.type} have no setting {study.setting}; there are "
                f"{', '.join(sorted(present))}"
            )
        return [
            Variant(str(value), value, {study.setting: value}, changed(config, {study.setting: value}))
            for value in dict.fromkeys(study.given())
        ], {}
    made, left_out = [Variant(WHOLE, None, {}, config)], {}
    for name, settings in study.without.items():
        able = {key: value for key, value in settings.items() if present.get(key, value) != value}
        if able:
            made.append(Variant(f"without {name}", None, able, changed(config, able)))
        else:
            left_out[name] = f"{config.type} as configured has none"
    return made, left_out


def changed(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    """``config`` with ``settings``, by names as in `Study`."""
    blocks = {"": dict(config.settings), "train": dict(config.train), "side": dict(config.side)}
    for name, value in settings.items():
        block, _, key = name.rpartition(".")
        blocks[block][key] = value
    return replace(config, settings=blocks[""], train=blocks["train"], side=blocks["side"])


def _present(config: RunConfig) -> dict[str, Any]:
    """All settings of a model, by names as in `Study`."""
    cls = model_class(config.type)
    defaults = {field.name: field.default for field in dataclasses.fields(cls.Config)}
    present = {**defaults, **config.settings}
    if not cls.closed_form:
        learned = {field.name: None for field in dataclasses.fields(TrainSettings)}
        present |= _prefixed("train", {**learned, **config.train}.items())
    if cls.takes_side:
        present |= _prefixed("side", config.side.items())
    return present


def _prefixed(block: str, items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {f"{block}.{key}": value for key, value in items}
