"""Wiring of context: the same node for every model, from its bundle."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from recpipe.pipelines.context.nodes import measure_context
from recpipe.pipelines.evaluate.pipeline import bundle_pipeline
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``measure_context`` in the namespace of every model."""
    return bundle_pipeline(
        wiring, measure_context, "context", evaluate="params:evaluate", context="params:context"
    )
