"""Pipeline tune: hyper-parameter search of each model on the validation fold; the best settings as a conf file."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import DataPaths, RunConfig, read_parameters
from recpipe.config.schema import TuneConfig
from recpipe.pipelines.train import split_node, training_inputs, training_job
from recpipe.pipelines.types import TrainingData
from recpipe.pipelines.wiring import Wiring, create_node, current, node_inputs

if TYPE_CHECKING:
    from recpipe.training.tuning.conf_file import TunedModel

log = logging.getLogger(__name__)

SEEDS = "42+123+2023"  # of the final number


def tune_model(
    tune: TuneConfig, config: RunConfig, training_data: TrainingData, paths: DataPaths, **inputs: Any
) -> tuple[dict[str, Any], Any]:
    """Begin or continue the study of a model; return it as JSON, and its best settings as a model of the conf.

    ``inputs`` are as for ``train_model``.
    """
    from recpipe.progress import report_trial
    from recpipe.training.tuning import tune as search
    from recpipe.training.tuning.conf_file import TunedModel

    job = training_job(config, training_data, paths, **inputs)
    result = search.tune(job, tune, paths.tuning(config.name, config.seed), on_trial=report_trial)
    model = TunedModel.of(result, config, file_config(config))
    result["command"] = final_command(model)
    log.info("%s: %s", model.name, model.about)
    if result["pareto"]:
        log.info("trials that no other one beats in both objectives: %s", ", ".join(map(str, result["pareto"])))
    log.info("its number on the test fold, once: %s", result["command"])
    return result, model


def file_config(config: RunConfig) -> RunConfig:
    """Return the configuration of a model in the files that later commands read, without those of the command line.

    Of the command line only the profile stays, which the session chooses for a data set with ``profile: auto``.
    """
    from kedro.framework.project import settings

    configuration = current()[0]
    profile = (configuration.overrides.get("datasets") or {}).get(config.dataset, {}).get("profile")
    overrides: dict[str, Any] = {"dataset": config.dataset, "seed": config.seed}
    if profile is not None:
        overrides["datasets"] = {config.dataset: {"profile": profile}}
    conf = configuration.project / settings.CONF_SOURCE
    files = read_parameters(conf) if conf.is_dir() else configuration.files
    return replace(configuration, files=files, overrides=overrides).run(config.name)


def final_command(model: TunedModel) -> str:
    """Return the command that trains and evaluates a tuned model with several seeds."""
    params = f"dataset={model.dataset},model={model.name},seeds={SEEDS}"
    return f"kedro run --pipelines=train,evaluate,report --params {params}"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``tune_model`` in the namespace of every model, and the shared split where that on disk is another."""
    split = [] if wiring.has_split else [split_node()]
    models = [
        create_node(
            tune_model,
            node_inputs(params=("tune",)) | training_inputs(run),
            [f"{model}_tuning", f"{model}_tuned_model"],
            model,
        )
        for model, run in wiring.runs.items()
    ]
    return Pipeline([*split, *models])
