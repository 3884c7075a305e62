"""Wiring of study: the same node for every model, with the inputs of ``train_model``."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.config import RunConfig
from recpipe.pipelines.study.nodes import vary_model
from recpipe.pipelines.train.pipeline import training_inputs
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``vary_model`` in the namespace of every model."""
    return Pipeline([_study_node(run, wiring.study) for run in wiring.runs.values()])


def _study_node(run: RunConfig, study: str) -> Node:
    training = training_inputs(run)
    inputs = {"study": f"params:studies.{study}", **training}
    return Node(vary_model, inputs, f"{run.name}_study", name="vary_model", namespace=run.name, tags=run.name)
