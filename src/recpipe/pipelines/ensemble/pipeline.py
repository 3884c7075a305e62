"""Wiring of ensemble: one node that reads the bundles of its members."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.ensemble.nodes import evaluate_ensemble
from recpipe.pipelines.wiring import Wiring

NAME = "ensemble"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``evaluate_ensemble`` in a namespace of its own; its results are stored like those of a model."""
    inputs = {
        "training_data": "training_data",
        "test_set": "test_set",
        "evaluate": "params:evaluate",
        "ensemble": "params:ensemble",
        **{name: f"{name}_bundle" for name in wiring.members},
    }
    node = Node(
        evaluate_ensemble, inputs, f"{NAME}_evaluation", name="evaluate_ensemble", namespace=NAME, tags=NAME
    )
    return Pipeline([node])
