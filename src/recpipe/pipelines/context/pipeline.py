"""Wiring of context: the same node for every model, from its bundle."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.context.nodes import question_model
from recpipe.pipelines.zoo import for_every_model

FOLDS = ["vocabulary", "train_set", "valid_set", "protocol"]
ASKED = ["protocol", "datasets", "dataset", "evaluate", "report", "context"]


def create_pipeline() -> Pipeline:
    """`question_model` in the namespace of every model in the conf."""
    return for_every_model(_template, inputs=set(FOLDS))


def _template(model: str) -> Pipeline:
    """The name is not used: a bundle knows what it is."""
    inputs = ["bundle", *FOLDS, *(f"params:{name}" for name in ASKED)]
    return Pipeline([Node(question_model, inputs, "context", name="question_model")])
