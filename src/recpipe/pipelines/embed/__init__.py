"""Pipeline embed: item vectors from texts and images, cached by content."""

from recpipe.pipelines.embed.pipeline import create_pipeline

__all__ = ["create_pipeline"]
