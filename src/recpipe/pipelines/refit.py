"""Pipeline refit: a measured model trained on every event of the log, as a bundle for production."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config import COLLABORATIVE, ConfigError, DataPaths, RunConfig
from recpipe.data.protocol import log_steps
from recpipe.pipelines.train import build_log, training_inputs, training_job
from recpipe.pipelines.types import Bundle, DataFrame
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

ITEM_MODEL = "item_model_production"  # production bundle of the model whose item vectors are read


def refit_model(
    config: RunConfig,
    bundle: Bundle,
    evaluation: dict[str, Any],
    interactions: Path,
    users: DataFrame,
    ingest_steps: DataFrame,
    paths: DataPaths,
    **inputs: Any,
) -> Bundle:
    """Train the model of ``bundle`` on all events, as long as it took to its best state.

    ``evaluation`` is the newest one; the bundle stands for that under the protocol of its training, if there is one.
    ``inputs`` are those of training, and the settings of ``ingest``.
    """
    from recpipe.data.atomic import latest_version
    from recpipe.progress import report_epoch
    from recpipe.training import refit
    from recpipe.training.newest import evaluation_of

    folder = paths.refit_work(config.name, config.seed)
    version = latest_version(folder.parent / "bundle")
    assert version is not None  # the bundle was loaded from there
    metrics = (
        evaluation_of(paths.reporting / config.name / f"seed_{config.seed}" / "metrics.json", bundle) or evaluation
    )
    measured = refit.MeasuredRun(bundle, metrics, version.parent.name, training_curve(paths, config))
    log = build_log(interactions, bundle.protocol, inputs.pop("ingest"), paths)
    data = measured.whole_log(*log, users.to_arrow(), log_steps(ingest_steps.to_dicts()))
    settings = measured.config(config)
    production = inputs.pop(ITEM_MODEL, None)
    if COLLABORATIVE in inputs:
        inputs[COLLABORATIVE] = refit.choose_item_model(inputs[COLLABORATIVE], production, data)
    inputs["start"] = initial_bundle(settings.init_from, paths, config)
    job = training_job(settings, data, paths, folder=folder, **inputs)
    return refit.refit(job, measured, on_epoch=report_epoch, keep_checkpoints=True)


def training_curve(paths: DataPaths, config: RunConfig) -> Any:
    """Read the training curve of the measured run; None where there is none."""
    import pyarrow.parquet as pq

    from recpipe.data.digests import verified

    file = paths.reporting / config.name / f"seed_{config.seed}" / "curves.parquet"
    return pq.read_table(verified(file)) if file.is_file() else None


def initial_bundle(init_from: str, paths: DataPaths, config: RunConfig) -> Bundle | None:
    """Load the bundle whose weights the measured run began with; None without one. Raises ConfigError if it is gone."""
    from recpipe.data.atomic import latest_version
    from recpipe.training.bundle import load_bundle

    if init_from == "none":
        return None
    folder = latest_version(paths.models.parent / init_from / "bundle")
    if folder is None:
        raise ConfigError(
            f"{config.name} began with the weights of {init_from}, which is not on disk: train that first"
        )
    return load_bundle(folder, accelerate=config.accelerate)


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``refit_model`` in the namespace of every model."""
    nodes = [create_node(refit_model, refit_inputs(run), f"{m}_production", m) for m, run in wiring.runs.items()]
    return Pipeline(nodes)


def refit_inputs(run: RunConfig) -> dict[str, str]:
    """Return the datasets by argument of ``refit_model``: the measured run, the log, and what training reads."""
    measured = {"bundle": f"{run.name}_bundle", "evaluation": f"{run.name}_evaluation"}
    inputs = {name: dataset for name, dataset in training_inputs(run).items() if name not in ("training_data", "start")}
    if run.item_model is not None:
        inputs[ITEM_MODEL] = f"{run.item_model}_production"
    return inputs | measured | node_inputs("interactions", "users", "ingest_steps", params=("ingest",))
