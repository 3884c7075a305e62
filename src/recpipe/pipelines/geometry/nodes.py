"""Node of geometry: a call into recpipe.reporting.geometry."""

from __future__ import annotations

from typing import Any

from recpipe.config.schema import GeometryConfig, ReportConfig
from recpipe.pipelines.types import DataFrame, RunStore, TrainingData


def measure_geometry(
    runs: RunStore,
    training_data: TrainingData,
    items: DataFrame,
    geometry: GeometryConfig,
    report: ReportConfig,
    seed: int,
) -> dict[str, Any]:
    """Measure the item vectors of every model and encoder on disk, and random ones for comparison."""
    from recpipe.reporting.geometry import geometry_of_runs

    return geometry_of_runs(
        runs,
        training_data.vocabulary,
        training_data.train_set,
        items.to_arrow(),
        training_data.split,
        config=geometry,
        metric=report.metric,
        seed=seed,
    )
