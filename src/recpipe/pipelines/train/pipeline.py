"""Wiring of train: one split for all, then a node per model."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.config import COLLABORATIVE, ID_KINDS, VECTORS, RunConfig
from recpipe.pipelines.train.nodes import split_sequences, train_model
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """The shared split, and ``train_model`` in the namespace of every model."""
    log = ["interactions", "users", "ingest_steps", "params:protocol"]
    split = Node(split_sequences, log, ["training_data", "test_set"], name="split_sequences")
    return Pipeline([split, *(_train_node(run) for run in wiring.runs.values())])


def _train_node(run: RunConfig) -> Node:
    inputs, name = training_inputs(run), run.name
    return Node(train_model, inputs, f"{name}_bundle", name="train_model", namespace=name, tags=name)


def training_inputs(run: RunConfig) -> dict[str, str]:
    """Datasets by argument of ``train_model``: the split, and the item inputs that this model reads."""
    inputs = {
        "config": f"params:models.{run.name}",
        "training_data": "training_data",
        "paths": "params:paths",
        "items": "items",
    }
    inputs |= {f"{name}_embeddings": f"{name}_embeddings" for name in VECTORS if name in run.vectors}
    for kind in (kind for kind in ID_KINDS if kind in run.ids):
        inputs |= {f"{kind}_ids": f"{kind}_semantic_ids", f"{kind}_tree": f"{kind}_prefix_tree"}
    if run.item_model is not None:
        inputs[COLLABORATIVE] = f"{run.item_model}_bundle"
    if run.init_from != "none":
        inputs["start"] = "start"
    return inputs
