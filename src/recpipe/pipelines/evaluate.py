"""Pipeline evaluate: ranks, metrics, recommendations and a submission file of each bundle."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config.schema import EvaluateConfig
from recpipe.data.protocol import Protocol
from recpipe.pipelines.types import Bundle, Evaluation, Fold, TrainingData
from recpipe.pipelines.wiring import Wiring


@cache
def commit() -> str | None:
    """Short commit of the code, with + where tracked files differ from it; None outside a git checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short", "HEAD")
        changes = _git(
            here, "status", "--porcelain", "--untracked-files=no", "--", "../../../src", "../../../conf"
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def _git(folder: Path, *words: str) -> str:
    process = subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True, timeout=10
    )
    return process.stdout.strip()


log = logging.getLogger(__name__)

LOG_METRICS = ("ndcg@10", "recall@10", "coverage@10")


def evaluate_model(
    bundle: Bundle, training_data: TrainingData, test_set: Fold, evaluate: EvaluateConfig
) -> Evaluation:
    """Evaluate a bundle: ranks of the test fold, recommendations for its users, a submission file, metrics."""
    from dataclasses import replace

    from recpipe.evaluation.evaluate import evaluate as evaluate_bundle
    from recpipe.evaluation.recommendations import SubmissionLayout, submission_csv

    layout = SubmissionLayout.from_conf(evaluate.submission)
    protocol = prepare(bundle, training_data, evaluate)
    top = max(evaluate.recommend, layout.top)
    evaluation = evaluate_bundle(bundle, training_data.valid_set, test_set, protocol, top=top)
    evaluation.metrics["commit"] = commit()
    for part in ("test", "warm_items", "cold_items"):
        values = evaluation.metrics.get(part, {})
        if texts := [f"{name} {values[name]:.4f}" for name in LOG_METRICS if name in values]:
            log.info("%s, %s, %s targets: %s", bundle.name, part, f"{values['targets']:,}", ", ".join(texts))
    submission = submission_csv(evaluation.recommendations, layout, users=list(test_set.histories.users))
    return replace(evaluation, submission=submission)


def prepare(bundle: Bundle, training_data: TrainingData, evaluate: EvaluateConfig) -> Protocol:
    """Move the bundle to the device of ``evaluate``; return the protocol that it is evaluated under.

    Raises ValueError for a bundle of another catalogue, and for a protocol that splits the data differently.
    """
    from recpipe.training.settings import choose_device

    bundle.check_catalogue(training_data.vocabulary)
    bundle.model.to(choose_device(evaluate.device))
    return training_data.protocol.with_evaluation_fields(Protocol.from_dict(evaluate.protocol))


def create_pipeline(wiring: Wiring) -> Pipeline:
    """``evaluate_model`` in the namespace of every model."""
    return bundle_pipeline(
        wiring, evaluate_model, "evaluation", test_set="test_set", evaluate="params:evaluate"
    )


def bundle_pipeline(wiring: Wiring, function: Callable[..., Any], output: str, **inputs: str) -> Pipeline:
    """A node per model from its bundle, the training data and ``inputs``, in the order of the function's arguments."""
    return Pipeline(
        [
            Node(
                function,
                {"bundle": f"{model}_bundle", "training_data": "training_data", **inputs},
                f"{model}_{output}",
                name=function.__name__,
                namespace=model,
                tags=model,
            )
            for model in wiring.models
        ]
    )
