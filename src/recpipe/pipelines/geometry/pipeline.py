"""Wiring of geometry: one node over all bundles on disk, after the results of this command."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.geometry.nodes import measure_geometry
from recpipe.pipelines.report.pipeline import GROUP, collect_node
from recpipe.pipelines.wiring import Wiring


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
