"""When what is tracked: Kedro's events as calls to `MlflowRuns`.

The catalog says what is tracked, `metadata: {mlflow: …}` with one of the kinds below; mlflow.yml says where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from recpipe.hooks.mlflow_runs import MlflowRuns
from recpipe.hooks.values import flat
from recpipe.pipelines.modalities import KINDS, group
from recpipe.pipelines.progress import listen

STAGES = ("ingest", "embed", "semantic_ids", "train", "evaluate", "report")


class TrackingHooks:
    """Kedro makes one instance per process; all that belongs to one run of Kedro is in `self._runs`."""

    def __init__(self) -> None:
        self._conf: dict[str, Any] = {}
        self._project = Path()
        self._runs: MlflowRuns | None = None
        self._catalog: Any = None

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Keeps mlflow.yml of the environment in use."""
        self._project = Path(context.project_path)
        self._conf = context.config_loader["mlflow"]

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol
    ) -> None:
        """Opens the parent run, named after the pipelines and the models in them."""
        self._catalog, self._runs = catalog, None
        if not self._conf["enabled"]:
            return
        groups = sorted({node.namespace for node in pipeline.nodes if node.namespace})
        models = [name for name in groups if name not in map(group, KINDS)]
        tags = {
            "dataset": str(catalog.load("params:dataset")),
            "models": " ".join(models or groups),
            "pipelines": "+".join(sorted(run_params.get("pipeline_names") or ["all"], key=_stage)),
            "environment": str(run_params.get("env")),
            "kedro_run": str(run_params.get("run_id")),
        }
        runs = self._runs = MlflowRuns()
        runs.guard(lambda: runs.start(self._conf, self._project, tags))

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Parameters go to the run of the node's model or to the parent, and so do epochs as they end."""
        if (runs := self._runs) is None:
            return
        dataset = inputs.get("params:dataset")
        params: dict[str, str] = {}
        for name, value in inputs.items():
            if name == "params:datasets":
                params |= flat(
                    value[dataset], f"datasets.{dataset}"
                )  # the others are not what this run is about
            elif name.startswith("params:"):
                params |= flat(value, name.removeprefix("params:"))
        runs.guard(lambda: runs.params(node.namespace, params))
        listen(lambda row: runs.guard(lambda: runs.curves(node.namespace, [row])))

    @hook_impl
    def after_node_run(self) -> None:
        """What the next node says of epochs is not this one's."""
        listen(None)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any) -> None:
        """Metrics, curves and files, where the catalog asks for it."""
        if (runs := self._runs) is None:
            return
        dataset = self._catalog.get(dataset_name)
        kind = (getattr(dataset, "metadata", None) or {}).get("mlflow")
        model = dataset_name.rsplit(".", 1)[0] if "." in dataset_name else None
        actions: dict[str, Callable[[], None]] = {
            "metrics": lambda: _metrics(runs, model, data),
            "numbers": lambda: runs.numbers(model, data),
            "curves": lambda: runs.curves(model, data),
            "artifact": lambda: runs.artifact(model, Path(dataset._get_load_path())),
            "figure": lambda: _figure(runs, model, data, Path(dataset._get_load_path())),
        }
        if kind is None:
            return
        if kind not in actions:
            raise ValueError(
                f"metadata.mlflow of {dataset_name} in the catalog is {kind!r}; allowed: {', '.join(actions)}"
            )
        runs.guard(actions[kind])

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Closes the runs and says where they are."""
        runs, self._runs = self._runs, None
        if runs is not None:
            runs.guard(lambda: runs.end("FINISHED"))
            if runs.where:
                logging.getLogger("recpipe.summary").info("MLflow  %s; `make mlflow` opens it", runs.where)

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """The runs say that they failed, and of what."""
        runs, self._runs = self._runs, None
        listen(None)
        if runs is not None:
            runs.guard(lambda: runs.end("FAILED", reason=f"{type(error).__name__}: {error}"))


def _metrics(runs: MlflowRuns, model: str | None, data: dict[str, Any]) -> None:
    """With the settings in force, which the blocks that a node is given do not say."""
    runs.metrics(model, data)
    if settings := data.get("settings"):
        runs.params(model, flat(settings, "settings"))


def _figure(runs: MlflowRuns, model: str | None, data: Any, path: Path) -> None:
    """Its JSON under `figures`; one without data, which stands for what there is nothing of yet, is left out."""
    if data.data:
        runs.artifact(model, path, folder="figures")


def _stage(name: str) -> int:
    """Names of pipelines in the order in which they run: the command line shuffles them."""
    return STAGES.index(name) if name in STAGES else len(STAGES)
