"""Pipeline register: the newest bundle of a model as a version in the MLflow model registry, with an alias."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import ConfigError, DataPaths, RunConfig
from recpipe.config.run_config import BUNDLES
from recpipe.config.schema import RegisterConfig
from recpipe.pipelines.evaluate import commit
from recpipe.pipelines.report import collect_node
from recpipe.pipelines.types import Bundle, RunStore
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

if TYPE_CHECKING:
    from recpipe.serving.registry.champion import Evidence

log = logging.getLogger(__name__)

FOR_USE = ("refit", "update", "add_items")  # pipelines that make bundles for use
MLFLOW_RUN = "mlflow_run"  # dataset that recpipe.hooks.tracking adds: function from a model to URI and id of its run


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``collect_runs``, as in the report, and ``register_model`` in the namespace of every model."""
    nodes = [collect_node(wiring)]
    for model in wiring.models:
        inputs = node_inputs("runs", MLFLOW_RUN, params=("paths", "register")) | {"config": f"params:models.{model}"}
        if set(FOR_USE) & set(wiring.requested):
            inputs["production"] = f"{model}_production"
        nodes.append(create_node(register_model, inputs, f"{model}_registration", model))
    return Pipeline(nodes)


def register_model(
    config: RunConfig,
    paths: DataPaths,
    runs: RunStore,
    register: RegisterConfig,
    mlflow_run: Callable[[str], tuple[str, str]],
    production: Bundle | None = None,
) -> dict[str, Any]:
    """Register a bundle, and give it the alias champion or challenger; ``production`` only makes the node wait."""
    from recpipe.serving.model import load_bundle
    from recpipe.serving.registry.champion import decide
    from recpipe.serving.registry.mlflow_registry import Registry

    name = register.model_name(config.dataset, config.name)
    folder = bundle_folder(paths.models / config.name / f"seed_{config.seed}", register.bundle)
    bundle = load_bundle(folder)
    evidence = measured_evidence(bundle, folder, runs, register.metric)
    registry = Registry(*mlflow_run(config.name))
    present = registry.champion(name)
    decision = decide(
        evidence,
        None if present is None else present[1],
        rule=register.champion,
        metric=register.metric,
        level=register.level,
        resamples=register.resamples,
    )
    tags = {"dataset": config.dataset, "model": config.name, "model_type": bundle.type, "seed": str(config.seed)}
    if (revision := commit()) is not None:
        tags["commit"] = revision
    version = registry.register(name, bundle, folder, evidence, tags)
    alias = registry.set_alias(name, version, decision)
    log.info("%s: models:/%s/%s is %s: %s", config.name, name, version, alias, decision.reason)
    log.info("`MLFLOW_TRACKING_URI=%s mlflow models serve -m models:/%s@%s --env-manager local` serves it",
             shown_uri(registry.tracking_uri), name, alias)  # fmt: skip
    return {
        "name": name,
        "version": version,
        "alias": alias,
        "reason": decision.reason,
        "difference": decision.difference,
        "p": decision.p,
        "champion_before": None if present is None else present[0],
        "bundle": folder.parent.name,
        "made_by": evidence.made_by,
        "run_id": registry.run_id,
    }


def shown_uri(uri: str) -> str:
    """Return the URI of a local store; another one may hold a password."""
    return uri if uri.startswith("sqlite") else "<tracking_uri>"


def bundle_folder(run: Path, which: str) -> Path:
    """Return the folder of the ``newest``, ``measured`` or ``production`` bundle of a run. Raises ConfigError."""
    from recpipe.training.bundle_folders import newest_bundle

    try:
        return newest_bundle(run, BUNDLES[which])
    except ValueError as error:
        pipelines = "refit" if which == "production" else "train,evaluate"
        dataset, model, seed = run.parts[-3:]
        raise ConfigError(
            f"there is no {which} bundle in {run}: `kedro run --pipelines={pipelines} --params "
            f"dataset={dataset},model={model},seed={seed.removeprefix('seed_')}` makes one"
        ) from error


def measured_evidence(bundle: Bundle, folder: Path, runs: RunStore, metric: str) -> Evidence:
    """Return what a bundle is compared by: metrics and ranks of its own evaluation, or of the run it stands for.

    Of several evaluations it is that under the protocol of the training, or else the newest.
    Raises ValueError for a bundle that was never evaluated, though its protocol has a test fold.
    """
    from recpipe.serving.registry.champion import Evidence
    from recpipe.training.newest import is_of_training

    version, production = folder.parent.name, bundle.training.get("production")
    if production is not None:
        stands_for = production["stands_for"]
        run, metrics = stands_for["run"], stands_for["metrics"]
        ranks = ranks_of(f"{run.partition('/')[2]}/{stands_for['protocol']}", metrics, runs, metric)
        return Evidence(
            run, stands_for["version"], stands_for["protocol"], production["made_by"], version, metrics, ranks
        )
    name = f"{bundle.name}/seed_{bundle.training.get('seed')}"
    run, protocol = f"{bundle.protocol.dataset}/{name}", bundle.protocol
    if protocol.split == "none":
        return Evidence(run, version, protocol.id, bundle_version=version)
    evaluations = {key: values for key, values in runs.evaluations(name).items() if is_of_training(values, bundle)}
    measured = evaluations.get(protocol.id) or next(iter(evaluations.values()), None)
    ranks = measured and ranks_of(f"{name}/{measured['protocol']['id']}", measured["test"], runs, metric)
    if measured is None or ranks is None:
        raise ValueError(
            f"{folder} has no evaluation of its own: run `kedro run --pipelines=evaluate,register --params "
            f"dataset={protocol.dataset},model={bundle.name},seed={bundle.training.get('seed')}`"
        )
    id_, metrics = measured["protocol"]["id"], dict(measured["test"])
    return Evidence(run, version, id_, bundle_version=version, metrics=metrics, ranks=ranks)


def ranks_of(key: str, metrics: dict[str, Any], runs: RunStore, metric: str) -> Any:
    """Return the ranks of a run and protocol on disk, None where they are of another evaluation than ``metrics``."""
    from recpipe.evaluation.metrics import metric_value

    if key not in runs.ranks:
        return None
    ranks = runs.ranks[key]
    value = metric_value(ranks, metric, setting="register.metric")
    return ranks if metric not in metrics or abs(value - metrics[metric]) < 1e-9 else None
