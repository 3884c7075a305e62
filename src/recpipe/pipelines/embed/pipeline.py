"""Wiring of embed: a node per modality in the namespace of its semantic ids, and one that joins text and image."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.content_kinds import BOTH, IMAGE, TEXT
from recpipe.pipelines.embed.nodes import embed_images, embed_text, join_embeddings
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Nodes for the modalities whose vectors the command needs."""
    shared = ["items", f"params:datasets.{wiring.dataset}", "params:embed"]
    texts = [*shared, "params:text_encoders", "params:paths"]
    images = [*shared, "params:image_encoders", "params:paths"]
    nodes = {
        TEXT: Node(embed_text, texts, "text_embeddings", name="embed_text", namespace=TEXT, tags=TEXT),
        IMAGE: Node(
            embed_images,
            images,
            ["image_quarantine", "image_embeddings"],
            name="embed_images",
            namespace=IMAGE,
            tags=IMAGE,
        ),
        BOTH: Node(
            join_embeddings,
            ["text_embeddings", "image_embeddings"],
            "text_image_embeddings",
            name="join_embeddings",
            namespace=BOTH,
            tags=BOTH,
        ),
    }
    return Pipeline([nodes[modality] for modality in wiring.vectors])
