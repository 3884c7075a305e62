"""Pipeline ingest: clean and sampled interactions, items and users from a raw log."""

from recpipe.pipelines.ingest.pipeline import create_pipeline

__all__ = ["create_pipeline"]
