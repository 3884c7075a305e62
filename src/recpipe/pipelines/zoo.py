"""Which models exist, and how one template of nodes becomes a group of nodes for each of them.

A model is a file conf/<env>/parameters/models/<name>.yml. Kedro builds pipelines without telling them which
configuration is used, so a session declares what it read; without one (`kedro registry list`, kedro-viz) the
project's own conf folder is looked at. So it is with the item vectors that a model's block `side` asks for: only such
models have them as inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import reduce, wraps
from pathlib import Path
from typing import Any

import yaml
from kedro.framework.project import pipelines, settings
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project

from recpipe.pipelines.blocks import merged
from recpipe.pipelines.modalities import MODALITIES, NONE

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

SHARED = "shared"
Reads = dict[str, tuple[str, ...]]  # by model, the modalities whose vectors it reads
_declared: list[Reads] = []  # at most one entry: the last session's


def declare(names: Iterable[str], vectors: Mapping[str, Iterable[str]] | None = None) -> None:
    """From now on pipelines are built for `names`, which read `vectors`; those built for others are forgotten."""
    found = {name: tuple((vectors or {}).get(name, ())) for name in sorted(names)}
    if _declared != [found]:
        _declared[:] = [found]
        pipelines.configure("recpipe.pipeline_registry")


def models() -> tuple[str, ...]:
    """Names of all models, sorted."""
    return tuple(_declared[0]) if _declared else tuple(sorted({file.stem for file in _files()}))


def vectors() -> Reads:
    """The modalities that each model reads vectors of."""
    if _declared:
        return _declared[0]
    folders = _folders()
    defaults = [_yaml(folder / "globals.yml") for folder in folders]
    side = [_yaml(folder / "parameters" / "side.yml") for folder in folders]
    conf: dict[str, Any] = reduce(merged, [*defaults, *side, *map(_yaml, _files())], {})
    return vectors_asked(conf) if "dataset" in conf else {}


def vectors_asked(conf: Mapping[str, Any]) -> Reads:
    """What the blocks `side` of the parameters `conf` ask for. Raises ValueError for an unknown modality."""
    common = (conf.get("side") or {}).get("vectors", NONE)
    found = {}
    for model, block in conf["models"].items():
        of_dataset = (block.get("datasets") or {}).get(conf["dataset"]) or {}
        own = {**(block.get("side") or {}), **(of_dataset.get("side") or {})}
        asked = own.get("vectors", common) or NONE
        if asked == NONE or ("vectors" not in own and not _takes_side(str(block["type"]))):
            continue
        names = tuple(dict.fromkeys(str(asked).split("+")))
        if unknown := [name for name in names if name not in MODALITIES]:
            allowed = f"choose {', '.join(MODALITIES)}, several as a+b, or {NONE}"
            raise ValueError(f"models.{model}.side.vectors: unknown vectors {unknown[0]!r}; {allowed}")
        found[model] = names
    return found


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


def for_every_model(template: Callable[[str], Pipeline], *, inputs: set[str]) -> Pipeline:
    """`template(name)` for each model, in the namespace of its name and tagged with it.

    `inputs` are datasets that models share; parameters are never namespaced.
    """
    return sum((_namespaced(template(model), model, inputs) for model in models()), start=Pipeline([]))


def _namespaced(nodes: Pipeline, model: str, inputs: set[str]) -> Pipeline:
    parameters = {name for name in nodes.inputs() if name.startswith("params:")}
    return Pipeline(nodes, namespace=model, tags=model, inputs=inputs & nodes.inputs(), parameters=parameters)


def named(function: Callable[..., Any], model: str) -> Callable[..., Any]:
    """`function` with its first argument, the model's name, given; Kedro reads types from what is left."""

    @wraps(function)
    def node(*args: Any, **inputs: Any) -> Any:
        return function(model, *args, **inputs)

    first, *rest = inspect.signature(function).parameters.values()
    node.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    node.__annotations__ = {key: hint for key, hint in function.__annotations__.items() if key != first.name}
    return node
