"""Variants of a model for a study: one setting with several values, or one part of it taken away at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from recpipe.models.registry import ModelSpec, model_class
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
        return [yaml.safe_load(each) for each in str(self.values).split("+")]


@dataclass(frozen=True)
class Variant:
    """One training of a study: ``changed`` settings, none of them for the model as it is."""

    name: str
    value: Any
    changed: Mapping[str, Any]
    spec: ModelSpec


def variants(
    study: Study, spec: ModelSpec, train: Mapping[str, Any], side: Mapping[str, Any]
) -> tuple[list[Variant], dict[str, str]]:
    """The trainings of ``study`` for a model, and why what is left out is left out, by name.

    ``train`` and ``side`` are the blocks that the model's own override. Taken away is only what the model has. Raises
    ValueError for a setting that it does not have.
    """
    present = _present(spec, train, side)
    if study.setting is not None:
        if study.setting not in present:
            raise ValueError(
                f"models of type {spec.type} have no setting {study.setting}; there are "
                f"{', '.join(sorted(present))}"
            )
        return [
            Variant(str(value), value, {study.setting: value}, changed(spec, {study.setting: value}))
            for value in dict.fromkeys(study.given())
        ], {}
    made, left_out = [Variant(WHOLE, None, {}, spec)], {}
    for name, settings in study.without.items():
        able = {key: value for key, value in settings.items() if present.get(key, value) != value}
        if able:
            made.append(Variant(f"without {name}", None, able, changed(spec, able)))
        else:
            left_out[name] = f"{spec.type} as configured has none"
    return made, left_out


def changed(spec: ModelSpec, settings: Mapping[str, Any]) -> ModelSpec:
    """``spec`` with ``settings``, by names as in `Study`."""
    config, train, side = dict(spec.config), dict(spec.train), dict(spec.side)
    for name, value in settings.items():
        block, _, key = name.rpartition(".")
        {"": config, "train": train, "side": side}[block][key] = value
    return replace(spec, config=config, train=train, side=side)


def _present(spec: ModelSpec, train: Mapping[str, Any], side: Mapping[str, Any]) -> dict[str, Any]:
    """All settings of a model, by names as in `Study`."""
    cls = model_class(spec.type)
    defaults = {field.name: field.default for field in dataclasses.fields(cls.Config)}
    found = {**defaults, **spec.config}
    if not cls.closed_form:
        learned = {field.name: None for field in dataclasses.fields(TrainSettings)}
        found |= _prefixed("train", {**learned, **train, **spec.train}.items())
    if cls.takes_side:
        found |= _prefixed("side", {**side, **spec.side}.items())
    return found


def _prefixed(block: str, items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    return {f"{block}.{key}": value for key, value in items}
