"""Pipeline tune: hyper-parameter search of each model on the validation fold; the best settings as a conf file."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import DataPaths, RunConfig
from recpipe.config.schema import TuneConfig
from recpipe.pipelines.train import training_inputs, training_job
from recpipe.pipelines.types import TrainingData
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

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
    model = TunedModel.of(result, config)
    result["command"] = final_command(model)
    log.info("%s: %s", model.name, model.about)
    if result["pareto"]:
        log.info("trials that no other one beats in both objectives: %s", ", ".join(map(str, result["pareto"])))
    log.info("its number on the test fold, once: %s", result["command"])
    return result, model


def final_command(model: TunedModel) -> str:
    """Return the command that trains and evaluates a tuned model with several seeds."""
    params = f"dataset={model.dataset},model={model.name},seeds={SEEDS}"
    return f"kedro run --pipelines=train,evaluate,report --params {params}"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``tune_model`` in the namespace of every model."""
    return Pipeline(
        [
            create_node(
                tune_model,
                node_inputs(params=("tune",)) | training_inputs(run),
                [f"{model}_tuning", f"{model}_tuned_model"],
                model,
            )
            for model, run in wiring.runs.items()
        ]
    )
