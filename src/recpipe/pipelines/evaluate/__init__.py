"""Pipeline evaluate: ranks, metrics, recommendations and a submission file of a trained model."""

from recpipe.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
