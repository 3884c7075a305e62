"""Node of ties: a call into recpipe.evaluation."""

from __future__ import annotations

import logging
from typing import Any

from recpipe.config.schema import EvaluateConfig, TiesConfig
from recpipe.pipelines.evaluate.nodes import prepare
from recpipe.pipelines.types import Bundle, Fold, TrainingData

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
    from recpipe.evaluation.ties import tie_sensitivity

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
