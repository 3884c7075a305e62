"""Wiring of semantic_ids: per kind of ids a quantizer, the ids, their quality, the gate, and the tree behind it.

The quantizer and the ids of an earlier run are read where there are any, under names of their own, since a node
cannot read what it writes.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.modalities import embeddings_of, for_every_kind
from recpipe.pipelines.semantic_ids import nodes
from recpipe.pipelines.zoo import named

BLOCKS = ["params:datasets", "params:dataset", "params:semantic_ids"]


def create_pipeline() -> Pipeline:
    """Five nodes for each of text, its parts, image and both."""
    return for_every_kind(_template, inputs={"items"})


def _template(kind: str) -> Pipeline:
    embeddings = embeddings_of(kind)
    return Pipeline(
        [
            Node(
                named(nodes.fit_quantizer, kind),
                [
                    embeddings,
                    "earlier_quantizer",
                    *BLOCKS,
                    "params:quantizer_from",
                    "lent_quantizer",
                    f"{embeddings}_of_others",
                ],
                ["quantizer", "quantizer_curves"],
                name="fit_quantizer",
            ),
            Node(
                named(nodes.assign_ids, kind),
                [embeddings, "quantizer", "earlier_ids", *BLOCKS],
                "semantic_ids",
                name="assign_ids",
            ),
            Node(
                named(nodes.measure_ids, kind),
                [embeddings, "quantizer", "semantic_ids", "items", *BLOCKS],
                # The quality last: the report takes it as a sign that the figures are there.
                ["usage_figure", "sunburst_figure", "quality_checks", "quality"],
                name="measure_ids",
            ),
            Node(nodes.check_ids, ["quality", "params:dataset"], "gate", name="check_ids"),
            Node(nodes.build_tree, ["semantic_ids", "gate"], "prefix_tree", name="build_tree"),
        ]
    )
