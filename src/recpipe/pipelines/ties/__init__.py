"""From a bundle to what its metric owes to the order of events at one second."""

from recpipe.pipelines.ties.pipeline import create_pipeline

__all__ = ["create_pipeline"]
