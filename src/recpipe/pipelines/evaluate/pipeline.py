"""Wiring of evaluate: the same node for every model, from its bundle alone."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.evaluate.nodes import evaluate_model
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``evaluate_model`` in the namespace of every model."""
    return Pipeline([_evaluate_node(model) for model in wiring.models])


def _evaluate_node(model: str) -> Node:
    inputs = {
        "bundle": f"{model}_bundle",
        "training_data": "training_data",
        "test_set": "test_set",
        "evaluate": "params:evaluate",
    }
    return Node(
        evaluate_model, inputs, f"{model}_evaluation", name="evaluate_model", namespace=model, tags=model
    )
