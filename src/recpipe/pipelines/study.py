"""Node of study: a training for each variant of a model; finished variants are not trained again.

Wiring of study: the same node for every model, with the inputs of ``train_model``.

Pipeline study: a model trained for several values of a setting, or with parts removed.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import DataPaths, RunConfig, build_config
from recpipe.config.schema import StudyConfig
from recpipe.pipelines.train import training_inputs, training_job
from recpipe.pipelines.types import Bundle, TrainingData, TrainingJob
from recpipe.pipelines.wiring import Wiring

if TYPE_CHECKING:
    from recpipe.training.variants import Study, Variant

log = logging.getLogger(__name__)


def vary_model(
    study: StudyConfig,
    config: RunConfig,
    training_data: TrainingData,
    paths: DataPaths,
    **inputs: Any,
) -> dict[str, Any]:
    """Train a variant for every value of the study; return a row of numbers for each.

    ``inputs`` are those of ``train_model``. Rows are written to the work folder one by one, so that an interrupted
    study goes on.
    """
    from recpipe.training.variants import variants

    job = training_job(config, training_data, paths, **inputs)
    settings = study_settings(study)
    all_variants, left_out = variants(settings, config)
    selection, too_long = _within(all_variants, job.data.protocol.history)
    for each, reason in (left_out | too_long).items():
        log.info("%s of %s: left out, as %s", each, config.name, reason)
    rows = []
    for number, variant in enumerate(selection, 1):
        log.info(
            "study %s of %s, %s of %s: %s", study.name, config.name, number, len(selection), variant.name
        )
        rows.append(
            _row(
                variant,
                replace(job, config=variant.config),
                paths.studies(config.name, config.seed) / study.name,
            )
        )
    return {
        "study": study.name,
        "model": config.name,
        "seed": config.seed,
        "setting": settings.setting,
        "protocol": job.data.protocol.id,
        "metric": replace(job, config=selection[0].config).settings.metric if selection else None,
        "rows": rows,
        "left_out": left_out | too_long,
    }


def study_settings(study: StudyConfig) -> Study:
    """The study as a type of the library. Raises ConfigError for both ``values`` and ``without``."""
    from recpipe.training.variants import Study

    return build_config(Study, study.model_dump(exclude={"name"}), where=f"studies.{study.name}")


def _within(all_variants: list[Variant], history: int) -> tuple[list[Variant], dict[str, str]]:
    """Variants with a window of at most the protocol's history, and the reason for each of the others by name."""
    over = {each.name for each in all_variants if (each.overrides.get("train.window") or 0) > history}
    reason = dict.fromkeys(sorted(over, key=int), f"protocol.history is {history}")
    return [each for each in all_variants if each.name not in over], reason


def _row(variant: Variant, job: TrainingJob, folder: Path) -> dict[str, Any]:
    """The row of a variant, read from its file if it was trained before with the same settings and data."""
    place = folder / "".join(sign if sign.isalnum() else "_" for sign in variant.name)
    result = place / "result.json"
    identity = json.loads(json.dumps(job.identity()))
    if result.is_file() and (earlier := json.loads(result.read_text()))["about"] == identity:
        row: dict[str, Any] = earlier["row"]
        return row
    bundle = job.train(folder=place)
    row = {
        "name": variant.name,
        "value": variant.value,
        "changed": dict(variant.overrides),
        **_numbers(bundle, job),
    }
    place.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"about": identity, "row": row}))
    return row


def _numbers(bundle: Bundle, job: TrainingJob) -> dict[str, Any]:
    """Validation metric, cost, and effective dimensions of the item vectors."""
    from recpipe.evaluation.geometry.measures import participation_ratio, spectrum
    from recpipe.evaluation.ranking import fold_metric

    metric = job.settings.metric
    value = fold_metric(bundle.model, job.data.valid_set, job.data.protocol, metric)
    try:
        vectors = bundle.model.item_vectors()[1:].detach().cpu().double().numpy()
        dimensions = participation_ratio(spectrum(vectors))
    except ValueError:  # it has none
        dimensions = None
    keys = ("train_seconds", "seconds_per_epoch", "tokens_per_second", "epochs", "best_epoch", "parameters")
    cost = bundle.training["cost"]
    return {metric: value, "used_dimensions": dimensions, **{key: cost.get(key) for key in keys}}


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``vary_model`` in the namespace of every model."""
    return Pipeline([_study_node(run, wiring.study) for run in wiring.runs.values()])


def _study_node(run: RunConfig, study: str) -> Node:
    training = training_inputs(run)
    inputs = {"study": f"params:studies.{study}", **training}
    return Node(vary_model, inputs, f"{run.name}_study", name="vary_model", namespace=run.name, tags=run.name)


__all__ = ["create_pipeline"]
