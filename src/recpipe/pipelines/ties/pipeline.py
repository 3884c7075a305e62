"""Wiring of ties: the same node for every model, from its bundle."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.ties.nodes import permute_ties
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``permute_ties`` in the namespace of every model."""
    return Pipeline([_ties_node(model) for model in wiring.models])


def _ties_node(model: str) -> Node:
    inputs = {
        "bundle": f"{model}_bundle",
        "training_data": "training_data",
        "test_set": "test_set",
        "evaluate": "params:evaluate",
        "ties": "params:ties",
    }
    return Node(
        permute_ties, inputs, f"{model}_tie_sensitivity", name="permute_ties", namespace=model, tags=model
    )
