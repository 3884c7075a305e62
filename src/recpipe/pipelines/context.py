"""Node of context: a call into recpipe.evaluation.

Wiring of context: the same node for every model, from its bundle.

Pipeline context: how much of a user's history a trained model uses.
"""

from __future__ import annotations

from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config.schema import ContextConfig, EvaluateConfig
from recpipe.pipelines.evaluate import bundle_pipeline, prepare
from recpipe.pipelines.types import Bundle, TrainingData
from recpipe.pipelines.wiring import Wiring


def measure_context(
    bundle: Bundle, training_data: TrainingData, evaluate: EvaluateConfig, context: ContextConfig
) -> dict[str, Any]:
    """Measure how much of a history the model uses, on the validation fold.

    Raises ValueError for a model that was trained on the validation events too, and for one of another split.
    """
    from recpipe.evaluation.context import context_study

    protocol = prepare(bundle, training_data, evaluate)
    if bundle.put_back:
        raise ValueError(
            f"{bundle.name} was trained on the validation events (train.put_back), which context is measured on; "
            "choose another model"
        )
    if differing := bundle.protocol.data_differences(protocol):
        raise ValueError(
            f"{bundle.name} was trained on another split ({', '.join(differing)} differ): run "
            f"`kedro run --pipelines=train,evaluate --params model={bundle.name}`"
        )
    result = context_study(
        bundle.model,
        training_data.train_set,
        training_data.valid_set,
        protocol,
        metric=context.metric,
        users=context.users,
    )
    return {"model": bundle.name, "seed": bundle.training.get("seed"), "protocol": protocol.id, **result}


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``measure_context`` in the namespace of every model."""
    return bundle_pipeline(
        wiring, measure_context, "context", evaluate="params:evaluate", context="params:context"
    )


__all__ = ["create_pipeline"]
