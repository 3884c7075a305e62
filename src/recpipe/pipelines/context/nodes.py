"""Node of context: a short call into recpipe.evaluation."""

from __future__ import annotations

from typing import Any

from recpipe.pipelines.blocks import ContextBlock, EvaluateBlock, ReportBlock, judged_under, protocol_of


def question_model(
    bundle: Any,
    vocabulary: Any,
    train_set: Any,
    valid_set: Any,
    split_protocol: dict[str, Any],
    protocol: dict[str, Any],
    datasets: dict[str, Any],
    dataset: str,
    evaluate: EvaluateBlock,
    report: ReportBlock,
    context: ContextBlock,
) -> dict[str, Any]:
    """How much of a history the model uses, with the id of the protocol it was asked under.

    Raises ValueError for a model that was trained on the validation events too: there is nobody left to ask.
    """
    from recpipe.data.protocol import Protocol
    from recpipe.evaluation.context import context_study
    from recpipe.evaluation.evaluate import check_catalogue
    from recpipe.training.settings import choose_device

    check_catalogue(bundle, vocabulary)
    if bundle.put_back:
        raise ValueError(
            f"{bundle.name} was trained on the validation events (train.put_back), which the questions are about; "
            "choose another model"
        )
    bundle.model.to(choose_device(evaluate.device))
    under = judged_under(Protocol.from_dict(split_protocol), protocol_of(protocol, datasets, dataset))
    if differing := bundle.protocol.same_data(under):
        raise ValueError(
            f"{bundle.name} was trained on another split ({', '.join(differing)} differ): run "
            f"`kedro run --pipelines=train,evaluate --params model={bundle.name}`"
        )
    found = context_study(
        bundle.model, train_set, valid_set, under, metric=report.metric, users=context.users
    )
    return {"model": bundle.name, "seed": bundle.training.get("seed"), "protocol": under.id, **found}
