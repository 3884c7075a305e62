"""Pipeline geometry: how item vectors of trained models and encoders fill their space."""

from recpipe.pipelines.geometry.pipeline import create_pipeline

__all__ = ["create_pipeline"]
