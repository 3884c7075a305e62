"""Pipeline study: a model trained for several values of a setting, or with parts removed."""

from recpipe.pipelines.study.pipeline import create_pipeline

__all__ = ["create_pipeline"]
