"""Node of ensemble: members by name from disk, weights from the validation fold, then what every model goes through."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from recpipe.pipelines.blocks import EnsembleBlock, EvaluateBlock, judged_under, protocol_of
from recpipe.pipelines.evaluate.nodes import evaluate_model

log = logging.getLogger(__name__)


def evaluate_ensemble(
    bundles: Mapping[str, Callable[[], Any]],
    vocabulary: Any,
    valid_set: Any,
    test_set: Any,
    split_protocol: dict[str, Any],
    protocol: dict[str, Any],
    datasets: dict[str, Any],
    dataset: str,
    evaluate: EvaluateBlock,
    ensemble: EnsembleBlock,
    seed: int,
    *after: Any,
) -> tuple[Any, Any, str, dict[str, Any]]:
    """What `evaluate_model` gives, of the members as one model, and the weights; `after` is waited for."""
    from recpipe.data.protocol import Protocol
    from recpipe.evaluation.ensembles import ensemble_bundle
    from recpipe.evaluation.evaluate import check_catalogue
    from recpipe.training.settings import choose_device

    names = ensemble.names()
    members = [_member(name, seed, bundles, dataset) for name in names]
    for member in members:
        check_catalogue(member, vocabulary)
        member.model.to(choose_device(evaluate.device))
    under = judged_under(Protocol.from_dict(split_protocol), protocol_of(protocol, datasets, dataset))
    fused, about = ensemble_bundle(
        members,
        valid_set,
        under,
        method=ensemble.method,
        weights=ensemble.given_weights(),
        constant=ensemble.constant,
        metric=ensemble.metric,
    )
    told = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, about["weights"], strict=True))
    log.info("ensemble by %s: %s", ensemble.method, told)
    ranks, recommendations, submission, metrics = evaluate_model(
        fused, vocabulary, valid_set, test_set, split_protocol, protocol, datasets, dataset, evaluate
    )
    return ranks, recommendations, submission, {**metrics, "ensemble": about}


def _member(name: str, seed: int, bundles: Mapping[str, Callable[[], Any]], dataset: str) -> Any:
    """Raises ValueError that says which models there are, and how to get the one that is not."""
    if (key := f"{name}/seed_{seed}") not in bundles:
        there = sorted(run.split("/")[0] for run in bundles if run.endswith(f"/seed_{seed}"))
        raise ValueError(
            f"there is no trained {name} of {dataset} with seed {seed}, only {', '.join(there) or 'nothing'}: "
            f"`kedro run --pipelines=train,evaluate --params dataset={dataset},model={name},seed={seed}` makes it"
        )
    return bundles[key]()
