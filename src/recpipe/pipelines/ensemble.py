"""Node of ensemble: member weights from the validation fold, then the evaluation of every model.

Wiring of ensemble: one node that reads the bundles of its members.

Pipeline ensemble: several trained models combined and evaluated like one.
"""

from __future__ import annotations

import logging

from kedro.pipeline import Node, Pipeline

from recpipe.config.schema import EnsembleConfig, EvaluateConfig
from recpipe.pipelines.evaluate import evaluate_model, prepare
from recpipe.pipelines.types import Bundle, Evaluation, Fold, TrainingData
from recpipe.pipelines.wiring import Wiring

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


NAME = "ensemble"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``evaluate_ensemble`` in a namespace of its own; its results are stored like those of a model."""
    inputs = {
        "training_data": "training_data",
        "test_set": "test_set",
        "evaluate": "params:evaluate",
        "ensemble": "params:ensemble",
        **{name: f"{name}_bundle" for name in wiring.members},
    }
    node = Node(
        evaluate_ensemble, inputs, f"{NAME}_evaluation", name="evaluate_ensemble", namespace=NAME, tags=NAME
    )
    return Pipeline([node])


__all__ = ["create_pipeline"]
