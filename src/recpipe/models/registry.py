"""Registry of model types: the file name under models/ is the ``type`` of a conf block.

Installed packages may declare more, as entry points of the group ``recpipe.models``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from recpipe.accelerate import install
from recpipe.config import ConfigError, ModelInfo, build_config, check_known, split_names
from recpipe.config.entry_points import import_by_name, module_names
from recpipe.layers.side import Side, SideConfig
from recpipe.models.recommender import Recommender
from recpipe.semantic_ids.ids import CatalogueIds

MODELS = "recpipe.models"
NOT_MODELS = {"recommender", "next_item", "generator", "parallel_codes", "registry"}


def types() -> list[str]:
    """Return the names of all model types."""
    return sorted(module_names(MODELS) - NOT_MODELS)


def model_class(type_: str) -> type[Recommender]:
    """Return the class in ``models/<type_>.py``.

    Raises ConfigError with the nearest spelling for an unknown type, ValueError if the file defines no or several
    models.
    """
    check_known(type_, types(), what="model type")
    module = import_by_name(MODELS, type_)
    classes = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Recommender) and value.__module__ == module.__name__ and not inspect.isabstract(value)
    ]
    if len(classes) != 1:
        raise ValueError(f"{module.__name__} must define one Recommender, it defines {[c.__name__ for c in classes]}")
    return classes[0]


def model_info(type_: str) -> ModelInfo:
    """Return what configuration needs of a model class; the default of a setting without one is None."""
    cls, missing = model_class(type_), dataclasses.MISSING
    fields = dataclasses.fields(cls.Config)
    defaults = {field.name: None if field.default is missing else field.default for field in fields}
    return ModelInfo(defaults, cls.takes_side, not cls.closed_form)


def side_config(type_: str, side: Mapping[str, Any], *, where: str) -> SideConfig:
    """Build the block ``side`` of a model. Raises ConfigError for unknown or missing keys, and for a model without."""
    cls = model_class(type_)
    config = build_config(SideConfig, side, where=f"{where}.side")
    if not cls.takes_side and not config.empty:
        raise ConfigError(f"{where}: models of type {type_} read no side information; drop `side`")
    _check_required_side(cls, config, where)
    return config if cls.takes_side else SideConfig()


def build(
    type_: str,
    config: Mapping[str, Any],
    *,
    n_items: int,
    max_length: int,
    side: Side | None = None,
    ids: Mapping[str, CatalogueIds] | None = None,
    accelerate: bool = True,
) -> Recommender:
    """Build an untrained model. ``ids``: semantic ids by modality; ``accelerate``: install ``recpipe.accelerate``.

    Raises ConfigError for unknown settings, ValueError for missing or superfluous inputs.
    """
    cls = model_class(type_)
    settings = build_config(cls.Config, config, where=type_)
    _check_required_side(cls, SideConfig() if side is None else side.config, f"model type {type_}")
    if bool(ids) != cls.reads_ids:
        problem = "need semantic ids, such as `ids: text`" if cls.reads_ids else "read no semantic ids"
        raise ValueError(f"models of type {type_} {problem}; see their block in conf/base/parameters/models")
    inputs: dict[str, Any] = ({"side": side} if cls.takes_side else {}) | ({"ids": ids} if cls.reads_ids else {})
    model = cls(settings, n_items=n_items, max_length=max_length, **inputs)
    if accelerate:
        install(model)
    return model


def _check_required_side(cls: type[Recommender], config: SideConfig, where: str) -> None:
    for key in cls.required_side:
        if not split_names(getattr(config, key)):
            raise ValueError(f"{where} needs side.{key}, such as `side: {{{key}: text}}`")
