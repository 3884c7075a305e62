"""From bundles and encoders on disk to what their tables of items look like, without training."""

from recpipe.pipelines.geometry.pipeline import create_pipeline

__all__ = ["create_pipeline"]
