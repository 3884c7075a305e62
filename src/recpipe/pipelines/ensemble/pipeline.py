"""Wiring of ensemble: one node, in the place of a model.

Bundles are read from disk, whatever made them; so that members trained in the same run are, every model's metrics, None
where there are none, are waited for.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.dots import with_dots
from recpipe.pipelines.ensemble.nodes import evaluate_ensemble
from recpipe.pipelines.zoo import SHARED, models

NAME = "ensemble"
ASKED = ["protocol", "datasets", "dataset", "evaluate", "ensemble", "seed"]
OUTPUTS = ["ranks", "recommendations", "submission", "metrics"]  # a run counts once its metrics are saved


def create_pipeline() -> Pipeline:
    """`evaluate_ensemble` in a namespace like that of a model, so that its results lie where those of models do."""
    return Pipeline([with_dots(_node)], tags=SHARED)


def _node() -> Node:
    inputs = ["bundles", "vocabulary", "valid_set", "test_set", "protocol"]
    inputs += [f"params:{name}" for name in ASKED]
    inputs += [f"{model}.metrics" for model in models()]
    outputs = [f"{NAME}.{name}" for name in OUTPUTS]
    return Node(evaluate_ensemble, inputs, outputs, name="evaluate_ensemble", namespace=NAME)
