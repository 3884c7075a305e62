"""Node of evaluate: a bundle on both folds, and its recommendations as a file to hand in."""

from __future__ import annotations

import logging
from typing import Any

from recpipe.pipelines.blocks import EvaluateBlock, judged_under, protocol_of
from recpipe.pipelines.provenance import commit

log = logging.getLogger(__name__)


def evaluate_model(
    bundle: Any,
    vocabulary: Any,
    valid_set: Any,
    test_set: Any,
    split_protocol: dict[str, Any],
    protocol: dict[str, Any],
    datasets: dict[str, Any],
    dataset: str,
    evaluate: EvaluateBlock,
) -> tuple[Any, Any, str, dict[str, Any]]:
    """Ranks of the test fold, recommendations for its users, these as a submission file, and metrics."""
    import polars as pl

    from recpipe.data.protocol import Protocol
    from recpipe.evaluation.evaluate import check_catalogue
    from recpipe.evaluation.evaluate import evaluate as judge
    from recpipe.evaluation.recommendations import SubmissionLayout, submission_csv
    from recpipe.training.settings import choose_device

    layout = SubmissionLayout.from_conf(evaluate.submission)
    check_catalogue(bundle, vocabulary)
    bundle.model.to(choose_device(evaluate.device))
    top = max(evaluate.recommend, layout.top)
    under = judged_under(Protocol.from_dict(split_protocol), protocol_of(protocol, datasets, dataset))
    found = judge(bundle, valid_set, test_set, under, top=top)
    found.metrics["commit"] = commit()
    for part in ("test", "warm_items", "cold_items"):
        values = found.metrics.get(part, {})
        if shown := {name: round(value, 4) for name, value in values.items() if name.endswith("@10")}:
            log.info("%s on %s, %s targets: %s", bundle.name, part, values["targets"], shown)
    submission = submission_csv(found.recommendations, layout, users=list(test_set.histories.users))
    return pl.from_arrow(found.ranks), pl.from_arrow(found.recommendations), submission, found.metrics
