"""Node of ties: a short call into recpipe.evaluation."""

from __future__ import annotations

import logging
from typing import Any

from recpipe.pipelines.blocks import EvaluateBlock, ReportBlock, TiesBlock, judged_under, protocol_of

log = logging.getLogger(__name__)


def permute_ties(
    bundle: Any,
    vocabulary: Any,
    train_set: Any,
    valid_set: Any,
    test_set: Any,
    split_protocol: dict[str, Any],
    protocol: dict[str, Any],
    datasets: dict[str, Any],
    dataset: str,
    evaluate: EvaluateBlock,
    report: ReportBlock,
    ties: TiesBlock,
) -> dict[str, Any]:
    """The report's metric under seeded permutations, with the id of the protocol it belongs to."""
    from dataclasses import asdict

    from recpipe.data.protocol import Protocol
    from recpipe.data.splits import with_validation
    from recpipe.evaluation.evaluate import check_catalogue
    from recpipe.evaluation.ties import tie_sensitivity
    from recpipe.training.settings import choose_device

    check_catalogue(bundle, vocabulary)
    bundle.model.to(choose_device(evaluate.device))
    under = judged_under(Protocol.from_dict(split_protocol), protocol_of(protocol, datasets, dataset))
    trained_on = with_validation(train_set, valid_set) if bundle.put_back else train_set
    found = tie_sensitivity(
        bundle,
        test_set,
        trained_on,
        under,
        metric=report.metric,
        permutations=ties.permutations,
        seed=ties.seed,
    )
    log.info(
        "%s: test %s %.4f as ordered, %.4f to %.4f over %s permutations of equal timestamps",
        bundle.name,
        report.metric,
        found.as_ordered,
        found.low,
        found.high,
        ties.permutations,
    )
    about = {"model": bundle.name, "seed": bundle.training.get("seed"), "protocol": under.id}
    return {**about, **asdict(found), "values": list(found.values)}
