"""From interactions to sequences, a split and, per model, a bundle with its training curve."""

from recpipe.pipelines.train.pipeline import create_pipeline

__all__ = ["create_pipeline"]
