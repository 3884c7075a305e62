"""Node of geometry: a call into recpipe.reporting.geometry.

Wiring of geometry: one node over all bundles on disk, after the results of this command.

Pipeline geometry: how item vectors of trained models and encoders fill their space.
"""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config.schema import GeometryConfig, ReportConfig
from recpipe.pipelines.report import GROUP, collect_node
from recpipe.pipelines.types import DataFrame, RunStore, TrainingData
from recpipe.pipelines.wiring import Wiring


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
        training_data.protocol_fields,
        config=geometry,
        metric=report.metric,
        seed=seed,
    )


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``collect_runs``, as in the report, and ``measure_geometry``, whose output the report shows."""
    inputs = {
        "runs": "runs",
        "training_data": "training_data",
        "items": "items",
        "geometry": "params:geometry",
        "report": "params:report",
        "seed": "params:seed",
    }
    return Pipeline(
        [
            collect_node(wiring),
            Node(measure_geometry, inputs, "geometry", name="measure_geometry", namespace=GROUP),
        ]
    )


__all__ = ["create_pipeline"]
