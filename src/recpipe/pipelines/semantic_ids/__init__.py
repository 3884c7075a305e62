"""From item vectors to semantic ids that passed the quality gate, and the prefix tree of the catalogue."""

from recpipe.pipelines.semantic_ids.pipeline import create_pipeline

__all__ = ["create_pipeline"]
