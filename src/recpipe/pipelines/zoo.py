"""Which models exist, and how one template of nodes becomes a group of nodes for each of them.

A model is a file conf/<env>/parameters/models/<name>.yml. Kedro builds pipelines without telling them which
configuration is used, so a session declares what it read; without one (`kedro registry list`, kedro-viz) the
project's own conf folder is looked at.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any

from kedro.framework.project import pipelines, settings
from kedro.pipeline import Pipeline
from kedro.utils import find_kedro_project

SHARED = "shared"
_declared: list[tuple[str, ...]] = []  # at most one entry: the last session's


def declare(names: Iterable[str]) -> None:
    """From now on pipelines are built for `names`; those built for others are forgotten."""
    found = tuple(sorted(names))
    if _declared != [found]:
        _declared[:] = [found]
        pipelines.configure("recpipe.pipeline_registry")


def models() -> tuple[str, ...]:
    """Names of all models, sorted."""
    return _declared[0] if _declared else _in_project(find_kedro_project(Path.cwd()) or Path.cwd())


def _in_project(project: Path) -> tuple[str, ...]:
    conf = project / settings.CONF_SOURCE
    environments = [settings.CONFIG_LOADER_ARGS[key] for key in ("base_env", "default_run_env")]
    files = [file for env in environments for file in (conf / env / "parameters" / "models").glob("*.yml")]
    return tuple(sorted({file.stem for file in files}))


def for_every_model(template: Callable[[str], Pipeline], *, inputs: set[str]) -> Pipeline:
    """`template(name)` for each model, in the namespace of its name and tagged with it.

    `inputs` are datasets that all models share; parameters are never namespaced.
    """
    return sum((_namespaced(template(model), model, inputs) for model in models()), start=Pipeline([]))


def _namespaced(nodes: Pipeline, model: str, inputs: set[str]) -> Pipeline:
    parameters = {name for name in nodes.inputs() if name.startswith("params:")}
    return Pipeline(nodes, namespace=model, tags=model, inputs=inputs, parameters=parameters)


def named(function: Callable[..., Any], model: str) -> Callable[..., Any]:
    """`function` with its first argument, the model's name, given; Kedro reads types from what is left."""

    @wraps(function)
    def node(*args: Any, **inputs: Any) -> Any:
        return function(model, *args, **inputs)

    first, *rest = inspect.signature(function).parameters.values()
    node.__signature__ = inspect.Signature(rest)  # type: ignore[attr-defined]
    node.__annotations__ = {key: hint for key, hint in function.__annotations__.items() if key != first.name}
    return node
