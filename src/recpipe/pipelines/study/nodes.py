"""Node of study: trainings of recpipe.training, one after the other, of which none is made twice."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recpipe.config import DataPaths, RunConfig, build_config
from recpipe.config.schema import StudyConfig
from recpipe.pipelines.train.nodes import training_job
from recpipe.pipelines.types import TrainingData, TrainingJob

if TYPE_CHECKING:
    from recpipe.training.fit import Trained
    from recpipe.training.variants import Study, Variant

log = logging.getLogger(__name__)


def vary_model(
    study: StudyConfig,
    config: RunConfig,
    training_data: TrainingData,
    paths: DataPaths,
    **inputs: Any,
) -> dict[str, Any]:
    """Train a variant for every value of the study: a row of numbers for each. ``inputs`` as of ``train_model``.

    Each row is kept in the work folder as soon as it is there, so that a study that was cut off goes on.
    """
    from recpipe.training.variants import variants

    job = training_job(config, training_data, paths, **inputs)
    settings = study_settings(study)
    made, left_out = variants(settings, config)
    made, too_long = _within(made, job.data.protocol.history)
    for each, why in (left_out | too_long).items():
        log.info("%s of %s: left out, as %s", each, config.name, why)
    rows = []
    for number, variant in enumerate(made, 1):
        log.info("study %s of %s, %s of %s: %s", study.name, config.name, number, len(made), variant.name)
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
        "metric": replace(job, config=made[0].config).settings.metric if made else None,
        "rows": rows,
        "left_out": left_out | too_long,
    }


def study_settings(study: StudyConfig) -> Study:
    """The study as the library takes it. Raises ConfigError for one of two kinds."""
    from recpipe.training.variants import Study

    return build_config(Study, study.model_dump(exclude={"name"}), where=f"studies.{study.name}")


def _within(made: list[Variant], history: int) -> tuple[list[Variant], dict[str, str]]:
    """Windows beyond the protocol's history read nothing more: they are no variant."""
    over = {each.name for each in made if (each.changed.get("train.window") or 0) > history}
    why = dict.fromkeys(sorted(over, key=int), f"protocol.history is {history}")
    return [each for each in made if each.name not in over], why


def _row(variant: Variant, job: TrainingJob, folder: Path) -> dict[str, Any]:
    """What a variant came to, from its file where it was trained before under the same settings and data."""
    place = folder / "".join(sign if sign.isalnum() else "_" for sign in variant.name)
    result = place / "result.json"
    identity = json.loads(json.dumps(job.identity()))
    if result.is_file() and (earlier := json.loads(result.read_text()))["about"] == identity:
        row: dict[str, Any] = earlier["row"]
        return row
    trained, _ = job.train(folder=place)
    row = {
        "name": variant.name,
        "value": variant.value,
        "changed": dict(variant.changed),
        **_numbers(trained, job),
    }
    place.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps({"about": identity, "row": row}))
    return row


def _numbers(trained: Trained, job: TrainingJob) -> dict[str, Any]:
    """The best validation, and what it cost; of item vectors, how many dimensions they make use of."""
    from recpipe.evaluation.context import Question
    from recpipe.evaluation.geometry.spectrum import participation_ratio, spectrum

    metric = job.settings.metric
    value = Question(job.data.valid_set, job.data.protocol, metric).value(trained.model)
    try:
        vectors = trained.model.item_vectors()[1:].detach().cpu().double().numpy()
        dimensions = participation_ratio(spectrum(vectors))
    except ValueError:  # it has none
        dimensions = None
    shown = ("train_seconds", "seconds_per_epoch", "tokens_per_second", "epochs", "best_epoch", "parameters")
    return {metric: value, "used_dimensions": dimensions, **{key: trained.cost.get(key) for key in shown}}
