"""From item texts and images to vectors, only for items whose content or encoder changed."""

from recpipe.pipelines.embed.pipeline import create_pipeline

__all__ = ["create_pipeline"]
