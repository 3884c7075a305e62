"""From bundles on disk to an ensemble of them, evaluated like a model."""

from recpipe.pipelines.ensemble.pipeline import create_pipeline

__all__ = ["create_pipeline"]
