"""From a raw log to cleaned, sampled interactions with their items, users, quarantine and step table."""

from recpipe.pipelines.ingest.pipeline import create_pipeline

__all__ = ["create_pipeline"]
