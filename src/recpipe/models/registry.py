"""Finds models: the file name under models/ is the ``type`` of a conf block."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import recpipe.models
from recpipe.layers.side import Side, SideConfig, names
from recpipe.models.recommender import Recommender
from recpipe.semantic_ids.catalogue import CatalogueIds

NOT_MODELS = {"recommender", "generator", "registry", "ordering"}
RESERVED = {"type", "train", "side", "datasets", "ids", "collaborative"}


@dataclass(frozen=True)
class ModelSpec:
    """A conf block resolved for one data set: class, settings, overrides of ``train``, side information, and the
    modalities of the semantic ids, in the order of the block.
    """

    type: str
    config: dict[str, Any]
    train: dict[str, Any]
    side: dict[str, Any]
    ids: tuple[str, ...] = ()


def types() -> list[str]:
    """All model types there are."""
    found = (module.name for module in pkgutil.iter_modules(recpipe.models.__path__))
    return sorted(name for name in found if name not in NOT_MODELS)


def model_class(type_: str) -> type[Recommender]:
    """The class in ``models/<type_>.py``. Raises ValueError with the nearest spelling for an unknown one."""
    if type_ not in types():
        near = difflib.get_close_matches(type_, types(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown model type {type_!r}{hint}; there are {', '.join(types())}")
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


def resolve(block: Mapping[str, Any], dataset: str) -> ModelSpec:
    """A conf block ``{type, <settings>, train, side, ids, datasets: {<name>: {the same}}}`` for one data set."""
    own = dict((block.get("datasets") or {}).get(dataset) or {})
    if "type" in own or "datasets" in own:
        raise ValueError(
            f"datasets.{dataset} of a model may override settings, train and side, not type and datasets"
        )
    settings = {key: value for key, value in {**block, **own}.items() if key not in RESERVED}
    train, side = ({**(block.get(key) or {}), **(own.get(key) or {})} for key in ("train", "side"))
    ids = names({**block, **own}.get("ids") or "none")
    return ModelSpec(str(block["type"]), settings, train, side, ids)


def side_config(spec: ModelSpec, common: Mapping[str, Any] | None = None, *, where: str) -> SideConfig:
    """The block ``side`` of a model over the ``common`` one, which models that read no side information pass over.

    Raises ValueError for unknown keys, for a block of its own that a model has no use for, and where it lacks one.
    """
    cls = model_class(spec.type)
    if not cls.takes_side:
        if not configured(SideConfig, spec.side, where=f"{where}.side").empty:
            raise ValueError(f"{where}: models of type {spec.type} read no side information; drop `side`")
        return SideConfig()
    config: SideConfig = configured(SideConfig, {**(common or {}), **spec.side}, where=f"{where}.side")
    _check_needs(cls, config, where)
    return config


def _check_needs(cls: type[Recommender], config: SideConfig, where: str) -> None:
    for part in cls.needs:
        if not names(getattr(config, part)):
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
    made = configured(cls.Config, config, where=f"model type {type_}")
    _check_needs(cls, SideConfig() if side is None else side.config, f"model type {type_}")
    if bool(ids) != cls.reads_ids:
        what = "cannot do without `ids`, such as `ids: text`" if cls.reads_ids else "reads no semantic ids"
        raise ValueError(f"models of type {type_} {what}; see their block in conf/base/parameters/models")
    given: dict[str, Any] = {"side": side} if cls.takes_side else {}
    given |= {"ids": ids} if cls.reads_ids else {}
    return cls(made, n_items=n_items, max_length=max_length, **given)


def configured(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """``cls(**values)`` for a dataclass, with an error that names what is unknown."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: unknown setting {key!r}{hint}; known: {', '.join(known)}")
    return cls(**values)
