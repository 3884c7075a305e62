"""Pipeline train: the split, and a trained model (bundle) per model."""

from recpipe.pipelines.train.pipeline import create_pipeline

__all__ = ["create_pipeline"]
