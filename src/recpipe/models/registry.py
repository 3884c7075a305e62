"""Finds models: the file name under models/ is the ``type`` of a conf block."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

import recpipe.models
from recpipe.config import ConfigError, ModelInfo, build_config, check_known, split_names
from recpipe.layers.side import Side, SideConfig
from recpipe.models.recommender import Recommender
from recpipe.semantic_ids.ids import CatalogueIds

NOT_MODELS = {"recommender", "generator", "registry"}


def types() -> list[str]:
    """All model types there are."""
    found = (module.name for module in pkgutil.iter_modules(recpipe.models.__path__))
    return sorted(name for name in found if name not in NOT_MODELS)


def model_class(type_: str) -> type[Recommender]:
    """The class in ``models/<type_>.py``. Raises ValueError with the nearest spelling for an unknown one."""
    check_known(type_, types(), what="model type")
    module = importlib.import_module(f"recpipe.models.{type_}")
    classes = [
        value
        for _, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Recommender)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(classes) != 1:
        raise ValueError(
            f"{module.__name__} must define one Recommender, it defines {[c.__name__ for c in classes]}"
        )
    return classes[0]


def model_info(type_: str) -> ModelInfo:
    """What the configuration needs to know of a model's code; defaults are null where a setting has none."""
    cls = model_class(type_)
    defaults = {
        field.name: None if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(cls.Config)
    }
    return ModelInfo(defaults, cls.takes_side, not cls.closed_form)


def side_config(type_: str, side: Mapping[str, Any], *, where: str) -> SideConfig:
    """The block ``side`` of a model of ``type_``.

    Raises ConfigError for unknown keys, for side information that the model has no use for, and where it lacks what it
    needs.
    """
    cls = model_class(type_)
    config = build_config(SideConfig, side, where=f"{where}.side")
    if not cls.takes_side:
        if not config.empty:
            raise ConfigError(f"{where}: models of type {type_} read no side information; drop `side`")
        return SideConfig()
    _check_needs(cls, config, where)
    return config


def _check_needs(cls: type[Recommender], config: SideConfig, where: str) -> None:
    for part in cls.needs:
        if not split_names(getattr(config, part)):
            raise ValueError(
                f"{where} cannot do without side.{part}; give it, such as `side: {{{part}: text}}`"
            )


def build(
    type_: str,
    config: Mapping[str, Any],
    *,
    n_items: int,
    max_length: int,
    side: Side | None = None,
    ids: Mapping[str, CatalogueIds] | None = None,
) -> Recommender:
    """An untrained model; ``ids`` by modality for one that reads them.

    Raises ValueError that names unknown settings and the known ones, or what the model cannot do without.
    """
    cls = model_class(type_)
    settings = build_config(cls.Config, config, where=f"model type {type_}")
    _check_needs(cls, SideConfig() if side is None else side.config, f"model type {type_}")
    if bool(ids) != cls.reads_ids:
        what = "cannot do without `ids`, such as `ids: text`" if cls.reads_ids else "reads no semantic ids"
        raise ValueError(f"models of type {type_} {what}; see their block in conf/base/parameters/models")
    given: dict[str, Any] = {"side": side} if cls.takes_side else {}
    given |= {"ids": ids} if cls.reads_ids else {}
    return cls(settings, n_items=n_items, max_length=max_length, **given)
