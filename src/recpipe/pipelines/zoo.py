"""Which models exist, and how one template of nodes becomes a group of nodes for each of them.

A model is a file conf/<env>/parameters/models/<name>.yml. Kedro builds pipelines without telling them which
configuration is used, so a session declares what it read; without one (`kedro registry list`, kedro-viz) the
project's own conf folder is looked at. So it is with what a model's block asks for besides the split: item vectors,
semantic ids, the items of another model. Only such models have them as inputs.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.project import pipelines, settings
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project

from recpipe.pipelines.blocks import merged
from recpipe.pipelines.modalities import KINDS, MODALITIES, NONE, group

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SHARED = "shared"
COLLABORATIVE = "collaborative"  # vectors of items that are those of another model


@dataclass(frozen=True)
class Asked:
    """What a model reads besides the split: modalities of item vectors, kinds of semantic ids, and another model."""

    vectors: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    collaborative: str | None = None

    @property
    def modalities(self) -> set[str]:
        """All that a run has to make for it."""
        return {*self.vectors, *self.ids}

    @property
    def inputs(self) -> dict[str, str]:
        """Arguments of `train_model`, in the order of its signature, and the datasets that they are."""
        found = {f"{name}_embeddings": f"{name}_embeddings" for name in MODALITIES if name in self.vectors}
        for name in (name for name in KINDS if name in self.ids):
            found |= {
                f"{name}_ids": f"{group(name)}.semantic_ids",
                f"{name}_tree": f"{group(name)}.prefix_tree",
            }
        return found | ({} if self.collaborative is None else {COLLABORATIVE: f"{self.collaborative}.bundle"})


Reads = dict[str, Asked]  # by model
_declared: list[Reads] = []  # at most one entry: the last session's


def declare(names: Iterable[str], reads: Mapping[str, Asked] | None = None) -> None:
    """From now on pipelines are built for `names`, which read `reads`; those built for others are forgotten."""
    found = {name: (reads or {}).get(name, Asked()) for name in sorted(names)}
    if _declared != [found]:
        _declared[:] = [found]
        pipelines.configure("recpipe.pipeline_registry")


def models() -> tuple[str, ...]:
    """Names of all models, sorted."""
    return tuple(_declared[0]) if _declared else tuple(sorted({file.stem for file in _files()}))


def reads() -> Reads:
    """What each model reads besides the split."""
    if _declared:
        return _declared[0]
    folders = _folders()
    defaults = [_yaml(folder / "globals.yml") for folder in folders]
    side = [_yaml(folder / "parameters" / "side.yml") for folder in folders]
    conf: dict[str, Any] = reduce(merged, [*defaults, *side, *map(_yaml, _files())], {})
    return asked(conf) if "dataset" in conf else {}


def asked(conf: Mapping[str, Any]) -> Reads:
    """What the models of the parameters `conf` ask for. Raises ValueError for an unknown modality or model."""
    common = (conf.get("side") or {}).get("vectors", NONE)
    return {model: _asked(model, conf, common) for model in conf["models"]}


def _asked(model: str, conf: Mapping[str, Any], common: str) -> Asked:
    block = conf["models"][model]
    own = {**block, **((block.get("datasets") or {}).get(conf["dataset"]) or {})}
    side = {**(block.get("side") or {}), **(own.get("side") or {})}
    wanted = side.get("vectors", common if _takes_side(str(block["type"])) else NONE)
    vectors = _names(wanted, (*MODALITIES, COLLABORATIVE), f"models.{model}.side.vectors")
    ids = _names(own.get("ids", NONE), KINDS, f"models.{model}.ids")
    other = own.get(COLLABORATIVE) if COLLABORATIVE in vectors else None
    if COLLABORATIVE in vectors and other not in set(conf["models"]) - {model}:
        raise ValueError(
            f"models.{model}.{COLLABORATIVE} is {other!r}; name the model whose items are read, one of "
            f"{', '.join(sorted(set(conf['models']) - {model}))}"
        )
    return Asked(tuple(name for name in vectors if name != COLLABORATIVE), ids, other)


def _names(value: Any, allowed: tuple[str, ...], where: str) -> tuple[str, ...]:
    names = () if value in (None, NONE) else tuple(dict.fromkeys(str(value).split("+")))
    if unknown := [name for name in names if name not in allowed]:
        what = f"choose {', '.join(allowed)}, several as a+b, or {NONE}"
        raise ValueError(f"{where}: unknown {where.rpartition('.')[2]} {unknown[0]!r}; {what}")
    return names


def _takes_side(kind: str) -> bool:
    from recpipe.models.registry import model_class, types

    return kind not in types() or model_class(kind).takes_side  # an unknown type is refused elsewhere


def _folders() -> list[Path]:
    conf = (find_kedro_project(Path.cwd()) or Path.cwd()) / settings.CONF_SOURCE
    return [conf / settings.CONFIG_LOADER_ARGS[key] for key in ("base_env", "default_run_env")]


def _files() -> list[Path]:
    return [
        file for folder in _folders() for file in sorted((folder / "parameters" / "models").glob("*.yml"))
    ]


def _yaml(file: Path) -> dict[str, Any]:
    return (yaml.load(file.read_text(), LOADER) or {}) if file.is_file() else {}


def for_every_model(
    template: Callable[[str], Pipeline],
    *,
    inputs: set[str],
    others: Mapping[str, Mapping[str, str]] | None = None,
) -> Pipeline:
    """`template(name)` for each model, in the namespace of its name and tagged with it.

    `inputs` are datasets that models share; parameters are never namespaced. `others`: for each model, by their
    name in the template, datasets of other namespaces.
    """
    shared = {name: name for name in inputs}
    made = (
        _namespaced(template(model), model, {**shared, **(others or {}).get(model, {})}) for model in models()
    )
    return sum(made, start=Pipeline([]))


def _namespaced(nodes: Pipeline, model: str, shared: Mapping[str, str]) -> Pipeline:
    parameters = {name for name in nodes.inputs() if name.startswith("params:")}
    outside = {name: shared[name] for name in nodes.inputs() if name in shared}
    with warnings.catch_warnings():  # Kedro takes a dot for a slip; here it is the namespace of what is read
        warnings.filterwarnings("ignore", "One or more dataset names contain")
        return Pipeline(nodes, namespace=model, tags=model, inputs=outside, parameters=parameters)


def named(function: Callable[..., Any], model: str) -> Callable[..., Any]:
    """`function` with its first argument, the model's name, given; Kedro reads types from what is left."""

    @wraps(function)
    def node(*args: Any, **inputs: Any) -> Any:
        return function(model, *args, **inputs)

    first, *rest = inspect.signature(function).parameters.values()
    node.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    node.__annotations__ = {key: hint for key, hint in function.__annotations__.items() if key != first.name}
    return node
