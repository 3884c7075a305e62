"""Pipeline ties: sensitivity of a metric to the order of events with equal timestamps."""

from recpipe.pipelines.ties.pipeline import create_pipeline

__all__ = ["create_pipeline"]
