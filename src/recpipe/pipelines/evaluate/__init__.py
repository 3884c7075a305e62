"""From a bundle to ranks, metrics, recommendations and a submission file."""

from recpipe.pipelines.evaluate.pipeline import create_pipeline

__all__ = ["create_pipeline"]
