"""Wiring of evaluate: the same node for every model, from its bundle alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.evaluate.nodes import evaluate_model
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``evaluate_model`` in the namespace of every model."""
    return bundle_pipeline(
        wiring, evaluate_model, "evaluation", test_set="test_set", evaluate="params:evaluate"
    )


def bundle_pipeline(wiring: Wiring, function: Callable[..., Any], output: str, **inputs: str) -> Pipeline:
    """A node per model from its bundle, the training data and ``inputs``, in the order of the function's arguments."""
    return Pipeline(
        [
            Node(
                function,
                {"bundle": f"{model}_bundle", "training_data": "training_data", **inputs},
                f"{model}_{output}",
                name=function.__name__,
                namespace=model,
                tags=model,
            )
            for model in wiring.models
        ]
    )
