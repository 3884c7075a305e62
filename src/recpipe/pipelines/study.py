"""Pipeline study: a model trained for several values of a setting, or with parts removed."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.pipeline import Pipeline

from recpipe.config import DataPaths, RunConfig, build_config
from recpipe.config.schema import StudyConfig
from recpipe.data.atomic import atomic_file
from recpipe.data.digests import verified
from recpipe.pipelines.train import training_inputs, training_job
from recpipe.pipelines.types import Bundle, TrainingData, TrainingJob
from recpipe.pipelines.wiring import Wiring, create_node

if TYPE_CHECKING:
    from recpipe.training.variants import Study, Variant

log = logging.getLogger(__name__)


def vary_model(
    study: StudyConfig, config: RunConfig, training_data: TrainingData, paths: DataPaths, **inputs: Any
) -> dict[str, Any]:
    """Train a variant for every value of the study, or read its row from disk; ``inputs`` as for ``train_model``."""
    from recpipe.training.variants import variants

    job = training_job(config, training_data, paths, **inputs)
    settings, history = study_settings(study), job.data.protocol.history
    candidates, left_out = variants(settings, config)
    too_long = sorted((v.name for v in candidates if (v.overrides.get("train.window") or 0) > history), key=int)
    left_out |= dict.fromkeys(too_long, f"protocol.history is {history}")
    selection = [variant for variant in candidates if variant.name not in too_long]
    for name, reason in left_out.items():
        log.info("%s of %s: left out, as %s", name, config.name, reason)
    folder, rows = paths.studies(config.name, config.seed) / study.name, []
    for number, variant in enumerate(selection, 1):
        log.info("study %s of %s, %s of %s: %s", study.name, config.name, number, len(selection), variant.name)
        rows.append(_row(variant, replace(job, config=variant.config), folder))
    return {
        "study": study.name,
        "model": config.name,
        "seed": config.seed,
        "setting": settings.setting,
        "protocol": job.data.protocol.id,
        "metric": replace(job, config=selection[0].config).settings.metric if selection else None,
        "rows": rows,
        "left_out": left_out,
    }


def study_settings(study: StudyConfig) -> Study:
    """Convert to the type of the library. Raises ConfigError for both ``values`` and ``without``."""
    from recpipe.training.variants import Study

    return build_config(Study, study.model_dump(exclude={"name"}), where=f"studies.{study.name}")


def _row(variant: Variant, job: TrainingJob, folder: Path) -> dict[str, Any]:
    """Train a variant, or read its row from a file with the same settings and data."""
    variant_folder = folder / "".join(sign if sign.isalnum() else "_" for sign in variant.name)
    result, identity = variant_folder / "result.json", json.loads(json.dumps(job.identity()))
    if result.is_file() and (saved := json.loads(verified(result).read_text()))["about"] == identity:
        return dict(saved["row"])
    bundle = job.train(folder=variant_folder, keep_checkpoints=True)
    row = {"name": variant.name, "value": variant.value, "changed": dict(variant.overrides), **_numbers(bundle, job)}
    with atomic_file(result) as part:
        part.write_text(json.dumps({"about": identity, "row": row}))
    bundle.remove_checkpoints()
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
    except ValueError:  # no item vectors
        dimensions = None
    keys = ("train_seconds", "seconds_per_epoch", "tokens_per_second", "epochs", "best_epoch", "parameters")
    cost = bundle.training["cost"]
    return {metric: value, "used_dimensions": dimensions, **{key: cost.get(key) for key in keys}}


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``vary_model`` in the namespace of every model."""
    study = {"study": f"params:studies.{wiring.study}"}
    return Pipeline(
        [
            create_node(vary_model, study | training_inputs(run), f"{model}_study", model)
            for model, run in wiring.runs.items()
        ]
    )
