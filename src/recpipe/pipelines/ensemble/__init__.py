"""Pipeline ensemble: several trained models combined and evaluated like one."""

from recpipe.pipelines.ensemble.pipeline import create_pipeline

__all__ = ["create_pipeline"]
