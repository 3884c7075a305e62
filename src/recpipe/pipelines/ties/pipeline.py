"""Wiring of ties: the same node for every model, from its bundle."""

from __future__ import annotations

from kedro.pipeline import Pipeline

from recpipe.pipelines.evaluate.pipeline import bundle_pipeline
from recpipe.pipelines.ties.nodes import permute_ties
from recpipe.pipelines.wiring import Wiring


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``permute_ties`` in the namespace of every model."""
    inputs = {"test_set": "test_set", "evaluate": "params:evaluate", "ties": "params:ties"}
    return bundle_pipeline(wiring, permute_ties, "tie_sensitivity", **inputs)
