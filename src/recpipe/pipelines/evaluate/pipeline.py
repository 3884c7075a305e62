"""Wiring of evaluate: the same node for every model, from its bundle alone."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.evaluate.nodes import evaluate_model
from recpipe.pipelines.zoo import for_every_model


def create_pipeline() -> Pipeline:
    """`evaluate_model` in the namespace of every model in the conf."""
    return for_every_model(_template, inputs={"vocabulary", "valid_set", "test_set", "protocol"})


def _template(model: str) -> Pipeline:
    """The name is not used: a bundle knows what it is."""
    asked = ["params:protocol", "params:datasets", "params:dataset", "params:evaluate"]
    inputs = ["bundle", "vocabulary", "valid_set", "test_set", "protocol", *asked]
    outputs = ["ranks", "recommendations", "submission", "metrics"]  # a run counts once its metrics are saved
    return Pipeline([Node(evaluate_model, inputs, outputs, name="evaluate_model")])
