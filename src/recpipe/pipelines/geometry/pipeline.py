"""Wiring of geometry: one node over every bundle on disk.

As in the ensemble, bundles are read from disk, whatever made them; so that those of the same run are, every model's
metrics, None where there are none, are waited for, and the quality of semantic ids, which comes after the vectors.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.dots import with_dots
from recpipe.pipelines.geometry.nodes import measure_geometry
from recpipe.pipelines.modalities import KINDS, group
from recpipe.pipelines.zoo import SHARED, models

READ = ["bundles", "runs", "vocabulary", "train_set", "items", "protocol", "text_vectors", "image_vectors"]
ASKED = ["dataset", "report", "geometry", "seed"]


def create_pipeline() -> Pipeline:
    """`measure_geometry`, whose output the report shows where there is one."""
    return Pipeline([with_dots(_node)], tags=SHARED)


def _node() -> Node:
    after = [f"{model}.metrics" for model in models()] + [f"{group(name)}.quality" for name in KINDS]
    inputs = [*READ, *(f"params:{name}" for name in ASKED), *after]
    return Node(measure_geometry, inputs, "geometry", name="measure_geometry")
