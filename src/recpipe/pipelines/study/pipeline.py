"""Wiring of study: the same node for every model, with the inputs of `train_model`."""

from __future__ import annotations

from collections.abc import Iterable

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines import zoo
from recpipe.pipelines.study.nodes import vary_model
from recpipe.pipelines.train.pipeline import READ_BY_MODELS, inputs_of
from recpipe.pipelines.zoo import for_every_model, named


def create_pipeline() -> Pipeline:
    """`vary_model` in the namespace of every model in the conf."""
    reads = zoo.reads()
    asked = {name: reads.get(name, zoo.Asked()).inputs for name in zoo.models()}
    return for_every_model(lambda name: _template(name, asked[name]), inputs=READ_BY_MODELS, others=asked)


def _template(model: str, more: Iterable[str]) -> Pipeline:
    asked = {"study": "params:study", "studies": "params:studies"}
    inputs = asked | inputs_of(model, more) | {"work_folder": "study_folder"}
    return Pipeline([Node(named(vary_model, model), inputs, "study", name="vary_model")])
