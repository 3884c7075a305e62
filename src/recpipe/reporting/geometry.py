"""Measurement of the item vectors of all bundles and encoders of a data set, for the pipeline geometry."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from recpipe.config import split_names
from recpipe.data.protocol import Protocol
from recpipe.evaluation.geometry.study import Items, measure_geometry
from recpipe.evaluation.geometry.tables import VectorSource, encoder_source
from recpipe.evaluation.lists import Popularity
from recpipe.reporting.run_store import DamagedFileError, RunStore
from recpipe.reporting.runs import check_metrics

if TYPE_CHECKING:
    from recpipe.config.schema import GeometryConfig
    from recpipe.data.sequences import Sequences, Vocabulary

log = logging.getLogger(__name__)


def geometry_of_runs(
    runs: RunStore,
    vocabulary: Vocabulary,
    train_set: Sequences,
    items: pa.Table,
    protocol: dict[str, Any],
    *,
    config: GeometryConfig,
    metric: str,
    seed: int,
) -> dict[str, Any]:
    """Measure all item tables (see ``recpipe.evaluation.geometry.study``) as JSON, the best model by ``metric`` first.

    ``protocol`` is that of the split. Raises ValueError for models in the config that are not trained.
    """
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    names = [titles.get(item) or str(item) for item in vocabulary.ids]
    events = Popularity.of(train_set, len(vocabulary)).events
    catalogue = Items(vocabulary, names, events, Protocol.from_dict(protocol))
    models = _model_names(runs, config.models, str(protocol["dataset"]))
    encoders, problems = _encoders(runs, vocabulary)
    bundles = {run: load for run, load in runs.bundles.loaders().items() if run.split("/")[0] in models}
    quality = _quality(runs, metric, protocol["id"])
    result = measure_geometry(bundles, encoders, catalogue, quality=quality, seed=seed, settings=config)
    result |= {"protocol": protocol["id"], "seed": seed, "problems": [*problems, *result["problems"]]}
    for problem in result["problems"]:
        log.warning("%s", problem)
    return result


def _model_names(runs: RunStore, models: str, dataset: str) -> list[str]:
    """Names in ``models``, ``all`` for those on disk. Raises ValueError for one without a bundle."""
    trained = sorted({run.split("/")[0] for run in runs.bundles})
    names = trained if models == "all" else list(split_names(models))
    for name in names:
        if name not in trained:
            raise ValueError(
                f"there is no trained {name} of {dataset}, only {', '.join(trained) or 'nothing'}: "
                f"`kedro run --pipelines=train,evaluate --params dataset={dataset},model={name}` trains it"
            )
    return names


def _encoders(runs: RunStore, vocabulary: Vocabulary) -> tuple[list[VectorSource], list[str]]:
    """Item vectors of text and image encoders, and messages of files that cannot be read."""
    sources, problems = [], []
    for modality in ("text", "image"):
        if modality not in runs.vectors:
            continue
        try:
            embeddings = runs.vectors[modality]
        except DamagedFileError as error:
            problems.append(f"the {modality} vectors are left out: {error}")
            continue
        rows = embeddings.rows(vocabulary.ids)
        present = (rows >= 0) & embeddings.present[rows]
        sources.append(encoder_source(f"{modality} encoder", embeddings.vectors[rows], present))
    return sources, problems


def _quality(runs: RunStore, metric: str, protocol: str) -> dict[str, float]:
    """Validation metric by run under ``protocol``; the test metric for models without a validation fold."""
    quality = {}
    for metrics in runs.metrics.readable().values():
        if check_metrics(metrics) or metrics["protocol"]["id"] != protocol:
            continue
        value = (metrics.get("valid") or {}).get(metric, metrics["test"].get(metric))
        if value is not None:
            quality[f"{metrics['model']}/seed_{metrics['seed']}"] = float(value)
    return quality
