"""Node of ties: a call into recpipe.evaluation.

Wiring of ties: the same node for every model, from its bundle.

Pipeline ties: sensitivity of a metric to the order of events with equal timestamps.
"""

from __future__ import annotations

import logging
from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config.schema import EvaluateConfig, TiesConfig
from recpipe.pipelines.evaluate import bundle_pipeline, prepare
from recpipe.pipelines.types import Bundle, Fold, TrainingData
from recpipe.pipelines.wiring import Wiring

log = logging.getLogger(__name__)


def permute_ties(
    bundle: Bundle,
    training_data: TrainingData,
    test_set: Fold,
    evaluate: EvaluateConfig,
    ties: TiesConfig,
) -> dict[str, Any]:
    """Evaluate a bundle under seeded permutations of events with equal timestamps."""
    from dataclasses import asdict

    from recpipe.data.splits import with_validation
    from recpipe.evaluation.ranking import tie_sensitivity

    protocol = prepare(bundle, training_data, evaluate)
    fitting_set = training_data.train_set
    if bundle.put_back:
        fitting_set = with_validation(fitting_set, training_data.valid_set)
    result = tie_sensitivity(
        bundle,
        test_set,
        fitting_set,
        protocol,
        metric=ties.metric,
        permutations=ties.permutations,
        seed=ties.seed,
    )
    log.info(
        "%s: test %s %.4f as ordered, %.4f to %.4f over %s permutations of equal timestamps",
        bundle.name,
        ties.metric,
        result.as_ordered,
        result.low,
        result.high,
        ties.permutations,
    )
    about = {"model": bundle.name, "seed": bundle.training.get("seed"), "protocol": protocol.id}
    return {**about, **asdict(result), "values": list(result.values)}


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``permute_ties`` in the namespace of every model."""
    inputs = {"test_set": "test_set", "evaluate": "params:evaluate", "ties": "params:ties"}
    return bundle_pipeline(wiring, permute_ties, "tie_sensitivity", **inputs)


__all__ = ["create_pipeline"]
