"""Wiring of train: one split for all, then a group of nodes per model."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines import zoo
from recpipe.pipelines.train.nodes import split_sequences, train_model
from recpipe.pipelines.zoo import SHARED, for_every_model, named

LOG = ["interactions", "users", "ingest_steps", "params:datasets", "params:dataset", "params:protocol"]
# Saved in this order: after a crash in between, evaluate refuses older bundles, as the protocol is not theirs.
PARTS = ["protocol", "vocabulary", "train_set", "valid_set", "test_set", "split_sizes"]
READ_BY_MODELS = {"train_set", "valid_set", "vocabulary", "items", "protocol", "start"}


def create_pipeline() -> Pipeline:
    """The shared split, and `train_model` in the namespace of every model in the conf."""
    split = Pipeline([Node(split_sequences, LOG, PARTS, name="split_sequences")], tags=SHARED)
    reads = zoo.reads()
    asked = {name: reads.get(name, zoo.Asked()).inputs for name in zoo.models()}
    return split + for_every_model(
        lambda name: _template(name, asked[name]), inputs=READ_BY_MODELS, others=asked
    )


def _template(model: str, more: Iterable[str]) -> Pipeline:
    node = Node(named(train_model, model), inputs_of(model, more), ["bundle", "curves"], name="train_model")
    return Pipeline([node])


def inputs_of(model: str, more: Iterable[str]) -> dict[str, str]:
    """Those of `train_model`, in the order of its signature, from which Kedro takes their types."""
    return {
        "train_set": "train_set",
        "valid_set": "valid_set",
        "vocabulary": "vocabulary",
        "items": "items",
        "protocol": "protocol",
        "model": f"params:models.{model}",
        "train": "params:train",
        "side": "params:side",
        "dataset": "params:dataset",
        "seed": "params:seed",
        "work_folder": "work_folder",
        "cold_users": "params:cold_users",
        "datasets": "params:datasets",
        "init_from": "params:init_from",
        "start": "start",
        **{name: name for name in more},
    }
