"""Settings of a model by name, and its variants for a study: a setting with several values, or one part removed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from recpipe.config import RunConfig, read_yaml, split_names
from recpipe.models.registry import model_class
from recpipe.training.settings import TrainSettings

AS_CONFIGURED = "as configured"


@dataclass(frozen=True)
class Study:
    """Several ``values`` of a ``setting``, written a+b+c; or ``without``: by name of a part, settings that remove it.

    A setting is a field of the model's Config, ``train.<key>`` or ``side.<key>``.
    """

    setting: str | None = None
    values: str | int | float | None = None
    without: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.setting is None) == (not self.without) or (self.setting is None) != (self.values is None):
            raise ValueError("a study has a setting with values, as 8+16+32, or a block without; not both")

    def value_list(self) -> list[Any]:
        """Read each of ``values`` as YAML, without repeats."""
        return list(dict.fromkeys(read_yaml(value) for value in split_names(self.values)))


@dataclass(frozen=True)
class Variant:
    """One training of a study; ``overrides`` is empty for the model as configured."""

    name: str
    value: Any
    overrides: Mapping[str, Any]
    config: RunConfig


def variants(study: Study, config: RunConfig) -> tuple[list[Variant], dict[str, str]]:
    """Return the variants of a model in ``study``, and why others are left out; ValueError without the setting."""
    settings = all_settings(config)
    if study.setting is not None:
        if study.setting not in settings:
            names = ", ".join(sorted(settings))
            raise ValueError(f"models of type {config.type} have no setting {study.setting}; there are {names}")
        return [_variant(str(value), value, {study.setting: value}, config) for value in study.value_list()], {}
    selection, left_out = [_variant(AS_CONFIGURED, None, {}, config)], {}
    for name, removal in study.without.items():
        overrides = {key: value for key, value in removal.items() if settings.get(key, value) != value}
        if overrides:
            selection.append(_variant(f"without {name}", None, overrides, config))
        else:
            left_out[name] = f"{config.type} as configured has none"
    return selection, left_out


def _variant(name: str, value: Any, overrides: Mapping[str, Any], config: RunConfig) -> Variant:
    return Variant(name, value, overrides, with_overrides(config, overrides))


def with_overrides(config: RunConfig, overrides: Mapping[str, Any]) -> RunConfig:
    """Return ``config`` with other values of settings, whose names are as in `Study`.

    A dot more is a key of a block: ``train.optimiser.learning_rate``.
    """
    blocks = {"": dict(config.settings), "train": copy.deepcopy(config.train), "side": dict(config.side)}
    for setting, value in overrides.items():
        name, _, path = setting.partition(".")
        block: dict[str, Any] = blocks[name] if path else blocks[""]
        *keys, last = (path or name).split(".")
        for key in keys:
            block[key] = dict(block.get(key) or {})
            block = block[key]
        block[last] = value
    return replace(config, settings=blocks[""], train=blocks["train"], side=blocks["side"])


def all_settings(config: RunConfig) -> dict[str, Any]:
    """Return all settings of a model, by names as in `Study`.

    Of ``train`` a closed-form model reads the weights of events only.
    """
    cls = model_class(config.type)
    settings = {each.name: each.default for each in fields(cls.Config)} | dict(config.settings)
    if not cls.closed_form:
        train = dict.fromkeys(each.name for each in fields(TrainSettings)) | dict(config.train)
        settings |= {f"train.{key}": value for key, value in train.items()}
    elif cls.takes_weights:
        settings["train.weights"] = config.train.get("weights", True)
    if cls.takes_side:
        settings |= {f"side.{key}": value for key, value in config.side.items()}
    return settings
