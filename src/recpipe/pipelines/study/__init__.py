"""A model trained several times, with one setting changed: what length, width or a part of it is worth."""

from recpipe.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
