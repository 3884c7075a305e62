"""Node of ensemble: member weights from the validation fold, then the evaluation of every model."""

from __future__ import annotations

import logging

from recpipe.config.schema import EnsembleConfig, EvaluateConfig
from recpipe.pipelines.evaluate.nodes import evaluate_model, prepare
from recpipe.pipelines.types import Bundle, Evaluation, Fold, TrainingData

log = logging.getLogger(__name__)


def evaluate_ensemble(
    training_data: TrainingData,
    test_set: Fold,
    evaluate: EvaluateConfig,
    ensemble: EnsembleConfig,
    **members: Bundle,
) -> Evaluation:
    """Evaluate the members as one model; metrics include the weights."""
    from dataclasses import replace

    from recpipe.evaluation.ensembles import ensemble_bundle

    bundles = [members[name] for name in ensemble.names()]
    protocol = [prepare(bundle, training_data, evaluate) for bundle in bundles][-1]
    bundle, description = ensemble_bundle(
        bundles,
        training_data.valid_set,
        protocol,
        method=ensemble.method,
        weights=ensemble.member_weights(),
        constant=ensemble.constant,
        metric=ensemble.metric,
    )
    weights = zip(ensemble.names(), description["weights"], strict=True)
    log.info(
        "ensemble by %s: %s", ensemble.method, ", ".join(f"{name} {weight:.2f}" for name, weight in weights)
    )
    evaluation = evaluate_model(bundle, training_data, test_set, evaluate)
    return replace(evaluation, metrics={**evaluation.metrics, "ensemble": description})
