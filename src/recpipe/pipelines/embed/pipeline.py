"""Wiring of embed: a node per modality, and one that lays text and image vectors side by side."""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.embed.nodes import embed_images, embed_text, join_embeddings
from recpipe.pipelines.modalities import BOTH, IMAGE, PARTS, TEXT

CONF = ["params:datasets", "params:dataset", "params:embed"]
TEXTS = ["items", "raw_folder", *CONF, "params:text_encoders", "text_cache"]
IMAGES = ["items", "raw_folder", *CONF, "params:image_encoders", "image_cache"]


def create_pipeline() -> Pipeline:
    """Tagged with the modalities that need the node."""
    return Pipeline(
        [
            Node(embed_text, TEXTS, "text_embeddings", name="embed_text", tags=[TEXT, BOTH, PARTS]),
            Node(
                embed_images,
                IMAGES,
                ["image_quarantine", "image_embeddings"],
                name="embed_images",
                tags=[IMAGE, BOTH],
            ),
            Node(
                join_embeddings,
                ["text_embeddings", "image_embeddings"],
                "text_image_embeddings",
                name="join_embeddings",
                tags=BOTH,
            ),
        ]
    )
