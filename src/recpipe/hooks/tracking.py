"""Tracking in MLflow: Kedro's hooks as calls to `MlflowRuns`.

`metadata: {mlflow: <kind>}` of a catalog entry says how it is logged, mlflow.yml where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import CatalogProtocol, MemoryDataset
from kedro.pipeline import Pipeline
from kedro.pipeline.node import Node

from recpipe.config import ID_KINDS, ConfigError
from recpipe.hooks.console import is_interruption
from recpipe.hooks.mlflow_runs import MlflowRuns, TrackingError, flat, tracking_uri
from recpipe.kedro_compat import loaded_file
from recpipe.pipelines.register import MLFLOW_RUN
from recpipe.pipelines.wiring import STAGES
from recpipe.progress import set_epoch_listener, set_trial_listener

log = logging.getLogger(__name__)

SHARED = {"ingest", "report"}  # groups without a run of their own
PRODUCTION = "_production"  # suffix of the datasets that hold production bundles


class TrackingHooks:
    """Hooks of all runs of a process; `self._runs` belongs to the current one."""

    def __init__(self) -> None:
        self._conf: dict[str, Any] = {}
        self._project = Path()
        self._runs: MlflowRuns | None = None
        self._catalog: Any = None
        self._tags: dict[str, str] | None = None  # until the runs are opened
        self._groups: set[str] = set()  # namespaces with a run of their own

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Read mlflow.yml of the environment."""
        self._project = Path(context.project_path)
        self._conf = context.config_loader["mlflow"]

    @hook_impl
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: CatalogProtocol[Any, Any]
    ) -> None:
        """Choose names and tags of the runs; the first node opens them."""
        if self._runs is not None:  # stopped by Ctrl-C, of which Kedro tells no hook
            self._runs.close("KILLED")
        self._catalog, self._runs, self._tags = catalog, None, None
        is_parallel = "ParallelRunner" in str(run_params.get("runner"))
        if MLFLOW_RUN in pipeline.inputs():
            self._check_registry(is_parallel)
            catalog[MLFLOW_RUN] = MemoryDataset(self.model_run, copy_mode="assign")
        if not self._conf["enabled"]:
            return
        if is_parallel:
            log.warning(
                "ParallelRunner: no MLflow tracking and no line per step, as Kedro runs each in a process of its own. "
                "Leave out --runner, or use --runner=ThreadRunner, to have them"
            )
            return
        groups = sorted({node.namespace for node in pipeline.nodes if node.namespace})
        self._groups = set(groups) - SHARED
        models = sorted(self._groups - set(ID_KINDS))
        names = run_params.get("pipeline_names") or []
        others = [name for name in names if name not in STAGES]
        tags = {
            "dataset": str(catalog.load("params:dataset")),
            "models": " ".join(models or sorted(self._groups)),
            "pipelines": "+".join(name for name in (*STAGES, *others) if name in names) or "all",
            "environment": str(run_params.get("env")),
            "kedro_run": str(run_params.get("run_id")),
        }
        self._runs, self._tags = MlflowRuns(), tags

    def _check_registry(self, is_parallel: bool) -> None:
        """Raise ConfigError where the pipeline register cannot work."""
        if not self._conf["enabled"]:
            raise ConfigError(
                "the pipeline register needs MLflow, which is off: set enabled: true in conf/base/mlflow.yml"
            )
        if is_parallel:
            raise ConfigError("the pipeline register needs MLflow, which ParallelRunner does not have: omit --runner")

    def model_run(self, model: str) -> tuple[str, str]:
        """Return tracking URI and id of the run of ``model``, for the pipeline register.

        Raises TrackingError if the command is not tracked.
        """
        if (runs := self._started_runs()) is None:
            raise TrackingError("no command is being tracked")
        run_id = runs.run_id(model)  # raises first where the store does not open
        return tracking_uri(self._conf["tracking_uri"], self._project), run_id

    @hook_impl
    def before_node_run(self, node: Node, inputs: dict[str, Any]) -> None:
        """Log the node's parameters to the run of its model or to the parent, and each epoch when it ends."""
        if (runs := self._started_runs()) is None:
            return
        params: dict[str, str] = {}
        for name, value in inputs.items():
            if name.startswith("params:"):
                params |= flat(value, name.removeprefix("params:"))
        group = self._run_of(node)
        runs.guard(lambda: runs.params(group, params))
        set_epoch_listener(lambda row: runs.guard(lambda: runs.curves(group, [row])))
        set_trial_listener(lambda row: runs.guard(lambda: runs.trial(group, row)))

    def _run_of(self, node: Node) -> str | None:
        """Name of the nested run of a node; None for the parent. A production bundle has one beside its model's."""
        if node.namespace not in self._groups:
            return None
        is_production = any(name.endswith(PRODUCTION) for name in node.outputs)
        return f"{node.namespace} production" if is_production else node.namespace

    def _started_runs(self) -> MlflowRuns | None:
        """The runs, opened at the first call. None where tracking is off."""
        runs, tags = self._runs, self._tags
        if runs is not None and tags is not None:
            self._tags = None
            runs.guard(lambda: runs.start(self._conf, self._project, tags))
        return runs

    @hook_impl
    def after_node_run(self) -> None:
        """Stop listening to the node's epochs and trials."""
        set_epoch_listener(None)
        set_trial_listener(None)

    @hook_impl
    def after_dataset_saved(self, dataset_name: str, data: Any, node: Node) -> None:
        """Log an output as its `metadata.mlflow` in the catalog says.

        Raises ValueError for a kind that does not exist.
        """
        if (runs := self._runs) is None:
            return
        dataset = self._catalog.get(dataset_name)
        if (kind := (getattr(dataset, "metadata", None) or {}).get("mlflow")) is None:
            return
        model = self._run_of(node)

        def log_figures() -> None:
            for name, figure in data.items():
                if figure.data:
                    runs.artifact(model, dataset.file(name), folder="figures")

        actions: dict[str, Callable[[], None]] = {
            "metrics": lambda: runs.metrics(model, data.metrics),
            "protocol": lambda: runs.json(model, data.protocol_fields, "protocol.json"),
            "numbers": lambda: runs.numbers(model, data),
            "audit": lambda: runs.numbers(model, {"audit": data["measures"]}),
            "lists": lambda: runs.numbers(model, {"recommend": data.summary}),
            "curves": lambda: runs.curves(model, data.curve),
            "production": lambda: runs.production(model, data.training, data.curve),
            "artifact": lambda: runs.artifact(model, loaded_file(dataset)),
            "figures": log_figures,
        }
        if kind not in actions:
            raise ValueError(
                f"metadata.mlflow of {dataset_name} in the catalog is {kind!r}; allowed: {', '.join(actions)}"
            )
        runs.guard(actions[kind])

    @hook_impl
    def after_pipeline_run(self) -> None:
        """Close the runs and log where they are."""
        runs, self._runs = self._started_runs(), None
        if runs is not None:
            runs.close("FINISHED")
            if runs.where:
                logging.getLogger("recpipe.summary").info(
                    "MLflow  %s%s", runs.where, f"\n        {runs.command}" if runs.command else ""
                )

    @hook_impl
    def on_pipeline_error(self, error: Exception) -> None:
        """Close the runs as failed, with the error as a tag."""
        runs, self._runs = self._started_runs(), None
        set_epoch_listener(None)
        set_trial_listener(None)
        if runs is not None:
            status = "KILLED" if is_interruption(error) else "FAILED"
            runs.close(status, reason=f"{type(error).__name__}: {error}")
