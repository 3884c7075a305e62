"""From a bundle to what of a history the model uses."""

from recpipe.pipelines.context.pipeline import create_pipeline

__all__ = ["create_pipeline"]
