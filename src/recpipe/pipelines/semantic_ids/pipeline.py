"""Wiring of semantic_ids: the same five nodes for every kind of ids, each kind in a namespace such as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.content_kinds import embeddings_of
from recpipe.pipelines.semantic_ids import nodes
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Five nodes for each kind of ids that the command needs."""
    return Pipeline([node for kind in wiring.kinds for node in _nodes(kind, wiring.dataset)])


def _nodes(kind: str, dataset: str) -> list[Node]:
    """Datasets that other groups read have no dot in their names, which Kedro keeps for those of the group."""
    ids, tree, quality = f"{kind}_semantic_ids", f"{kind}_prefix_tree", f"{kind}_ids_quality"
    quantizer, gate = f"{kind}.quantizer", f"{kind}.gate"
    made_from = {"embeddings": embeddings_of(kind), "config": f"params:semantic_ids.kinds.{kind}"}
    fitting = {**made_from, "paths": "params:paths"}
    assigning = {**fitting, "quantizer": quantizer}
    measuring = {**made_from, "quantizer": quantizer, "ids": ids}
    measuring |= {"items": "items", "dataset": f"params:datasets.{dataset}"}
    checking = {"quality": quality, "dataset_name": "params:dataset"}
    measured = [
        f"{kind}.id_figures",
        quality,
    ]  # the report takes the quality as a sign that the figures are there

    def node(function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str]) -> Node:
        return Node(function, inputs, outputs, name=function.__name__, namespace=kind, tags=kind)

    return [
        node(nodes.fit_quantizer, fitting, quantizer),
        node(nodes.assign_ids, assigning, ids),
        node(nodes.measure_ids, measuring, measured),
        node(nodes.check_ids, checking, gate),
        node(nodes.build_tree, {"ids": ids, "gate": gate}, tree),
    ]
