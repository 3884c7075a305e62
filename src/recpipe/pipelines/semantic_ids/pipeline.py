"""Wiring of semantic_ids: per modality a quantizer, the ids, their quality, the gate, and the tree behind it.

The quantizer and the ids of an earlier run are read where there are any, under names of their own, since a node
cannot read what it writes.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.modalities import for_every_modality
from recpipe.pipelines.semantic_ids import nodes

BLOCKS = ["params:datasets", "params:dataset", "params:semantic_ids"]


def create_pipeline() -> Pipeline:
    """Five nodes for each of text, image and both."""
    return for_every_modality(_template, inputs={"items"})


def _template(modality: str) -> Pipeline:
    embeddings = f"{modality}_embeddings"
    return Pipeline(
        [
            Node(
                nodes.fit_quantizer,
                [embeddings, "earlier_quantizer", *BLOCKS, "params:quantizer_from", "lent_quantizer"],
                ["quantizer", "quantizer_curves"],
                name="fit_quantizer",
            ),
            Node(
                nodes.assign_ids,
                [embeddings, "quantizer", "earlier_ids", *BLOCKS],
                "semantic_ids",
                name="assign_ids",
            ),
            Node(
                nodes.measure_ids,
                [embeddings, "quantizer", "semantic_ids", "items", *BLOCKS],
                # The quality last: the report takes it as a sign that the figures are there.
                ["usage_figure", "sunburst_figure", "quality_checks", "quality"],
                name="measure_ids",
            ),
            Node(nodes.check_ids, ["quality", "params:dataset"], "gate", name="check_ids"),
            Node(nodes.build_tree, ["semantic_ids", "gate"], "prefix_tree", name="build_tree"),
        ]
    )
