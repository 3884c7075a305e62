"""Pipelines that read trained models: evaluate, ensemble, ties, context and geometry."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

from kedro.pipeline import Pipeline

from recpipe.config import RunConfig, build_config, schema
from recpipe.config.schema import EvaluateConfig
from recpipe.data.protocol import Protocol
from recpipe.pipelines.report import collect_node, report_node
from recpipe.pipelines.types import Bundle, DataFrame, Evaluation, Fold, RunStore, TrainingData
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs

log = logging.getLogger(__name__)

LOG_METRICS = ("ndcg@10", "recall@10", "coverage@10")


def create_evaluate(wiring: Wiring) -> Pipeline:
    """Create ``evaluate_model`` in the namespace of every model."""
    inputs = node_inputs("training_data", "test_set", params=("evaluate",)) | _content_model(wiring)
    return _model_nodes(wiring, evaluate_model, "evaluation", inputs)


def create_ensemble(wiring: Wiring) -> Pipeline:
    """Create ``evaluate_ensemble`` in a namespace of its own; its results are stored like those of a model."""
    inputs = node_inputs("training_data", "test_set", params=("evaluate", "ensemble")) | _content_model(wiring)
    inputs |= {"configs": "params:models"}
    inputs |= {name: f"{name}_bundle" for name in wiring.members}
    return Pipeline([create_node(evaluate_ensemble, inputs, "ensemble_evaluation", "ensemble")])


def create_ties(wiring: Wiring) -> Pipeline:
    """Create ``permute_ties`` in the namespace of every model."""
    inputs = node_inputs("training_data", "test_set", params=("evaluate", "ties"))
    return _model_nodes(wiring, permute_ties, "tie_sensitivity", inputs)


def create_context(wiring: Wiring) -> Pipeline:
    """Create ``measure_context`` in the namespace of every model."""
    inputs = node_inputs("training_data", params=("evaluate", "context"))
    return _model_nodes(wiring, measure_context, "context", inputs)


def create_geometry(wiring: Wiring) -> Pipeline:
    """Create ``collect_runs``, as in the report, and ``measure_geometry``, whose output the report shows."""
    inputs = node_inputs("runs", "training_data", "items", params=("geometry", "report", "seed"))
    return Pipeline([collect_node(wiring), report_node(measure_geometry, inputs, "geometry")])


def _model_nodes(wiring: Wiring, function: Callable[..., Any], output: str, inputs: dict[str, str]) -> Pipeline:
    """Create a node per model that reads its bundle, its configuration and ``inputs``."""
    nodes = []
    for model in wiring.models:
        own = {"bundle": f"{model}_bundle", "config": f"params:models.{model}"}
        nodes.append(create_node(function, {**own, **inputs}, f"{model}_{output}", model))
    return Pipeline(nodes)


def _content_model(wiring: Wiring) -> dict[str, str]:
    return {"content_model": f"{wiring.content_model}_bundle"} if wiring.content_model else {}


def evaluate_model(
    bundle: Bundle,
    training_data: TrainingData,
    test_set: Fold,
    evaluate: EvaluateConfig,
    config: RunConfig,
    content_model: Bundle | None = None,
) -> Evaluation:
    """Evaluate a trained model with the search settings of ``config``, and ``content_model`` for content slots."""
    bundle = _with_search_settings(bundle, config)
    return _evaluate(bundle, training_data, test_set, evaluate, content_model)


def _evaluate(
    bundle: Bundle, training_data: TrainingData, test_set: Fold, evaluate: EvaluateConfig, content_model: Bundle | None
) -> Evaluation:
    from recpipe.evaluation.content_slots import ContentSlots
    from recpipe.evaluation.evaluate import evaluate as evaluate_bundle
    from recpipe.evaluation.recommendations import SeparatorError, SubmissionLayout, submission_csv

    training_data.check_test_set(test_set)
    layout = build_config(SubmissionLayout, evaluate.submission, where="evaluate.submission")
    protocol = _prepare(bundle, training_data, evaluate)
    slots = None
    if content_model is not None:
        _prepare(content_model, training_data, evaluate)
        slots = ContentSlots(evaluate.content_slots.share, content_model)
    evaluation = evaluate_bundle(
        bundle,
        training_data.valid_set,
        test_set,
        protocol,
        k=max(evaluate.recommend, layout.top),
        slots=slots,
        train=training_data.train_set,
    )
    evaluation.metrics["commit"] = commit()
    for part in ("test", "warm_items", "cold_items", "memorised", "generalised"):
        values = evaluation.metrics.get(part, {})
        if texts := [f"{name} {values[name]:.4f}" for name in LOG_METRICS if name in values]:
            log.info("%s, %s, %s targets: %s", bundle.name, part, f"{values['targets']:,}", ", ".join(texts))
    users, ids = test_set.histories.users, bundle.vocabulary.ids
    try:
        submission = submission_csv(evaluation.recommendations, layout, users=users, item_ids=ids)
    except SeparatorError as error:
        log.warning("%s has no submission.csv: %s", bundle.name, error)
        return evaluation
    return replace(evaluation, submission=submission)


@cache
def commit() -> str | None:
    """Return the short commit of the code, with + where tracked files differ from it; None outside a git checkout."""
    try:
        head = _git("rev-parse", "--short", "HEAD")
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", "../../../src", "../../../conf")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if changes else "")


def _git(*words: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *words]
    return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()


def _with_search_settings(bundle: Bundle, config: RunConfig | dict[str, Any]) -> Bundle:
    """Apply the settings of the configuration that only a search reads; those of training are the bundle's."""
    changed = bundle.with_search_settings(config["settings"] if isinstance(config, dict) else config.settings)
    for name in changed.model.search_settings if changed is not bundle else ():
        new, old = (getattr(each.model.config, name, None) for each in (changed, bundle))
        if new != old:
            log.info("%s: %s is %s as configured; it was %s in training", bundle.name, name, new, old)
    return changed


def _prepare(bundle: Bundle, training_data: TrainingData, evaluate: EvaluateConfig) -> Protocol:
    """Move the model to its device; return the protocol of the evaluation. Raises ValueError for other data."""
    from recpipe.training.settings import choose_device

    bundle.check_catalogue(training_data.vocabulary)
    bundle.model.to(choose_device(evaluate.device, setting="evaluate.device"))
    return training_data.protocol.with_evaluation_fields(Protocol.from_dict(evaluate.protocol))


def evaluate_ensemble(
    training_data: TrainingData,
    test_set: Fold,
    evaluate: EvaluateConfig,
    ensemble: schema.EnsembleConfig,
    configs: dict[str, Any],
    **models: Bundle,
) -> Evaluation:
    """Choose weights on the validation fold and evaluate the members, and ``content_model``, as one model."""
    from recpipe.evaluation.ensembles import ensemble_bundle

    bundles = [_with_search_settings(models[name], configs[name]) for name in ensemble.names()]
    protocol = [_prepare(bundle, training_data, evaluate) for bundle in bundles][-1]
    bundle, description = ensemble_bundle(
        bundles,
        training_data.valid_set,
        protocol,
        method=ensemble.method,
        weights=ensemble.member_weights(),
        constant=ensemble.constant,
        metric=ensemble.metric,
        train=training_data.train_set,
    )
    weights = zip(ensemble.names(), description["weights"], strict=True)
    log.info("ensemble by %s: %s", ensemble.method, ", ".join(f"{name} {weight:.2f}" for name, weight in weights))
    evaluation = _evaluate(bundle, training_data, test_set, evaluate, models.get("content_model"))
    return replace(evaluation, metrics={**evaluation.metrics, "ensemble": description})


def permute_ties(
    bundle: Bundle,
    training_data: TrainingData,
    test_set: Fold,
    evaluate: EvaluateConfig,
    ties: schema.TiesConfig,
    config: RunConfig,
) -> dict[str, Any]:
    """Evaluate a trained model under seeded permutations of events with equal timestamps."""
    from recpipe.data.splits import with_validation
    from recpipe.evaluation.ranking import tie_sensitivity

    training_data.check_test_set(test_set)
    bundle = _with_search_settings(bundle, config)
    protocol = _prepare(bundle, training_data, evaluate)
    train = training_data.train_set
    train = with_validation(train, training_data.valid_set) if bundle.train_on_validation else train
    result = tie_sensitivity(
        bundle, test_set, train, protocol, metric=ties.metric, permutations=ties.permutations, seed=ties.seed
    )
    values = (bundle.name, ties.metric, result.as_ordered, result.low, result.high, ties.permutations)
    log.info("%s: test %s %.4f as ordered, %.4f to %.4f over %s permutations of equal timestamps", *values)
    return {**_run_of(bundle, protocol), **asdict(result), "values": list(result.values)}


def measure_context(
    bundle: Bundle,
    training_data: TrainingData,
    evaluate: EvaluateConfig,
    context: schema.ContextConfig,
    config: RunConfig,
) -> dict[str, Any]:
    """Measure how much of a history the model uses, on the validation fold, which it must not be trained on.

    Raises ValueError for such a model.
    """
    from recpipe.evaluation.context import context_study

    bundle = _with_search_settings(bundle, config)
    protocol = _prepare(bundle, training_data, evaluate)
    if bundle.train_on_validation:
        raise ValueError(
            f"{bundle.name} was trained on the validation events (train.train_on_validation), which context is "
            "measured on; choose another model"
        )
    bundle.check_split(protocol)
    train, valid = training_data.train_set, training_data.valid_set
    result = context_study(bundle.model, train, valid, protocol, metric=context.metric, users=context.users)
    return {**_run_of(bundle, protocol), **result}


def _run_of(bundle: Bundle, protocol: Protocol) -> dict[str, Any]:
    return {"model": bundle.name, "seed": bundle.training.get("seed"), "protocol": protocol.id}


def measure_geometry(
    runs: RunStore,
    training_data: TrainingData,
    items: DataFrame,
    geometry: schema.GeometryConfig,
    report: schema.ReportConfig,
    seed: int,
) -> dict[str, Any]:
    """Measure the item vectors of every model and encoder on disk, and random ones for comparison."""
    from recpipe.reporting.geometry import geometry_of_runs

    data = training_data
    inputs = data.vocabulary, data.train_set, items.to_arrow(), data.protocol_fields
    return geometry_of_runs(runs, *inputs, config=geometry, metric=report.metric, seed=seed)
