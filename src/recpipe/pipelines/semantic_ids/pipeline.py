"""Wiring of semantic_ids: the same five nodes for every kind of ids, each kind in a namespace such as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.content_kinds import embeddings_of
from recpipe.pipelines.semantic_ids import nodes
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Five nodes for each kind of ids of the command."""
    return Pipeline([node for kind in wiring.kinds for node in _nodes(kind, wiring.dataset)])


def _nodes(kind: str, dataset: str) -> list[Node]:
    """Nodes of one kind. Datasets with a dot belong to the namespace; other namespaces read those without."""
    ids, tree, quality = f"{kind}_semantic_ids", f"{kind}_prefix_tree", f"{kind}_ids_quality"
    quantizer, gate = f"{kind}.quantizer", f"{kind}.gate"
    common = {"embeddings": embeddings_of(kind), "config": f"params:semantic_ids.kinds.{kind}"}
    paths = {"paths": "params:paths"}
    table = {"items": "items", "dataset": f"params:datasets.{dataset}"}
    # The quality comes second: the report waits for it and then reads the figures.
    results = [f"{kind}.id_figures", quality]

    def node(function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str]) -> Node:
        return Node(function, inputs, outputs, name=function.__name__, namespace=kind, tags=kind)

    return [
        node(nodes.fit_quantizer, {**common, **paths}, quantizer),
        node(nodes.assign_ids, {**common, **paths, "quantizer": quantizer}, ids),
        node(nodes.measure_ids, {**common, "quantizer": quantizer, "ids": ids, **table}, results),
        node(nodes.check_ids, {"quality": quality, "dataset_name": "params:dataset"}, gate),
        node(nodes.build_tree, {"ids": ids, "gate": gate}, tree),
    ]
