"""Pipeline context: how much of a user's history a trained model uses."""

from recpipe.pipelines.context.pipeline import create_pipeline

__all__ = ["create_pipeline"]
