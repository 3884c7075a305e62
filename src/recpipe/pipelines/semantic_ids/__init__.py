"""Pipeline semantic_ids: quantizer, semantic ids, quality gate and prefix tree from item vectors."""

from recpipe.pipelines.semantic_ids.pipeline import create_pipeline

__all__ = ["create_pipeline"]
