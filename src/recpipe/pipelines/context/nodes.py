"""Node of context: a call into recpipe.evaluation."""

from __future__ import annotations

from typing import Any

from recpipe.config.schema import ContextConfig, EvaluateConfig
from recpipe.pipelines.evaluate.nodes import prepare
from recpipe.pipelines.types import Bundle, TrainingData


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
    if differing := bundle.protocol.same_data(protocol):
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
