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
from recpipe.pipelines.train import split_node, training_inputs, training_job
from recpipe.pipelines.types import Bundle, TrainingData, TrainingJob
from recpipe.pipelines.wiring import Wiring, create_node

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from recpipe.semantic_ids.vector_rows import VectorRows
    from recpipe.training.variants import Study, Variant

    Vectors = tuple[VectorRows, NDArray[np.bool_]]  # (I, D), and a mask of the items that have one

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
    folder, rows, vectors = paths.studies(config.name, config.seed) / study.name, [], content_vectors(job, paths)
    for number, variant in enumerate(selection, 1):
        log.info("study %s of %s, %s of %s: %s", study.name, config.name, number, len(selection), variant.name)
        rows.append(_row(variant, replace(job, config=variant.config), folder, vectors))
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


def content_vectors(job: TrainingJob, paths: DataPaths) -> Vectors | None:
    """Read item vectors (text, else images) for diversity, the same for all variants; None where none are on disk."""
    from recpipe.content.embeddings import Embeddings
    from recpipe.semantic_ids.vector_rows import VectorRows

    for modality in ("text", "image"):
        if (file := paths.features / f"{modality}_embeddings.parquet").is_file():
            embeddings = Embeddings.read(file)
            rows = embeddings.rows(job.data.vocabulary.ids)
            return VectorRows(embeddings.vectors, rows), (rows >= 0) & embeddings.present[rows]
    log.info("no item vectors on disk, so diversity is left out; `kedro run --pipelines=embed` makes them")
    return None


def _row(variant: Variant, job: TrainingJob, folder: Path, vectors: Vectors | None) -> dict[str, Any]:
    """Train a variant, or read its row from a file with the same settings and data."""
    variant_folder = folder / "".join(sign if sign.isalnum() else "_" for sign in variant.name)
    result, identity = variant_folder / "result.json", json.loads(json.dumps(job.identity()))
    if result.is_file() and (saved := json.loads(verified(result).read_text()))["about"] == identity:
        if "lists" not in saved["row"]:
            log.info("%s of %s was measured without lists; delete %s to train it again", variant.name, folder, result)
        return dict(saved["row"])
    bundle = job.train(folder=variant_folder, keep_checkpoints=True)
    numbers = _numbers(bundle, job, vectors)
    row = {"name": variant.name, "value": variant.value, "changed": dict(variant.overrides), **numbers}
    with atomic_file(result) as part:
        part.write_text(json.dumps({"about": identity, "row": row}))
    bundle.remove_checkpoints()
    return row


def _numbers(bundle: Bundle, job: TrainingJob, vectors: Vectors | None) -> dict[str, Any]:
    """Validation metric, lists, cost, gradient norms, and effective dimensions of the item vectors.

    ``lists`` are the measures of ``list_metrics`` on the validation fold; ``popularity`` is recall and NDCG by
    popularity of the target. Gradient norms are those before clipping, of every tenth step.
    """
    from recpipe.evaluation.geometry.measures import participation_ratio, spectrum

    try:
        item_vectors = bundle.model.item_vectors()[1:].detach().cpu().double().numpy()
        dimensions = participation_ratio(spectrum(item_vectors))
    except ValueError:  # no item vectors
        dimensions = None
    keys = ("train_seconds", "seconds_per_epoch", "tokens_per_second", "epochs", "best_epoch", "parameters")
    cost = bundle.training["cost"]
    norms = [row["gradient_norm"] for row in bundle.curve]
    return {
        **_list_numbers(bundle, job, vectors),
        "used_dimensions": dimensions,
        "gradient_norm": sum(norms) / len(norms) if norms else None,
        "gradient_norm_max": max((row["gradient_norm_max"] for row in bundle.curve), default=None),
        **{key: cost.get(key) for key in keys},
    }


def _list_numbers(bundle: Bundle, job: TrainingJob, vectors: Vectors | None) -> dict[str, Any]:
    """Rank the validation fold: the metric of the training, measures of the lists, and recall by popularity."""
    from recpipe.evaluation.lists import Lists, Popularity, list_metrics
    from recpipe.evaluation.metrics import metric_value
    from recpipe.evaluation.ranking import rank_fold
    from recpipe.evaluation.segments import segments

    metric, protocol, ids = job.settings.metric, job.data.protocol, bundle.vocabulary.ids
    length = int(metric.partition("@")[2])
    k = min(length, getattr(bundle.model.config, "beam", length))  # a beam search finds no more items
    fold = job.data.valid_set.with_query_times(protocol)
    ranking = rank_fold(bundle.model, fold, exclude_seen=protocol.exclude_seen, k=k)
    ranks = ranking.table(fold, bundle.vocabulary)
    lists = Lists.of(ranking.recommendations(fold, bundle, k), ids, k)
    popularity = Popularity.of(job.data.train_set, len(ids))
    by_popularity = [
        {key: row[key] for key in ("segment", "targets", "recall", "ndcg")}
        for row in segments(ranks, item_ids=ids, train_events=popularity.events, k=length).to_pylist()
        if row["by"] == "popularity"
    ]
    return {
        metric: metric_value(ranks, metric),
        "lists": {"length": k, **list_metrics(lists, popularity, ranks, item_ids=ids, vectors=vectors)},
        "popularity": by_popularity,
    }


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create ``vary_model`` in the namespace of every model, and the shared split where that on disk is another."""
    study = {"study": f"params:studies.{wiring.study}"}
    split = [] if wiring.has_split else [split_node()]
    runs = wiring.runs.items()
    nodes = (create_node(vary_model, study | training_inputs(run), f"{model}_study", model) for model, run in runs)
    return Pipeline([*split, *nodes])
