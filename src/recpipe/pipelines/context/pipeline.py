"""Wiring of context: the same node for every model, from its bundle."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.context.nodes import measure_context
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``measure_context`` in the namespace of every model."""
    return Pipeline([_context_node(model) for model in wiring.models])


def _context_node(model: str) -> Node:
    inputs = {
        "bundle": f"{model}_bundle",
        "training_data": "training_data",
        "evaluate": "params:evaluate",
        "context": "params:context",
    }
    return Node(
        measure_context, inputs, f"{model}_context", name="measure_context", namespace=model, tags=model
    )
