"""Pipeline report: leaderboard, figures, HTML page and terminal summary of all runs of a data set.

``collect_runs`` waits for the results of this command and returns ``runs``, which the other nodes read. So the report
comes last in a combined command, and alone it needs only the files on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import split_names
from recpipe.config.schema import DatasetConfig, EvaluateConfig, ReportConfig
from recpipe.pipelines.types import DataFrame, Figure, Fold, RunStore, TrainingData
from recpipe.pipelines.wiring import Wiring, create_node, node_inputs


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Create the seven nodes that all models share."""
    # without the pipeline geometry in this command, the report reads its results from disk
    geometry = {"geometry": "geometry"} if "geometry" in wiring.requested else {}
    dataset = {"dataset": f"params:datasets.{wiring.dataset}"}
    data, ranking, report = ("data_profile", "ingest_steps"), ("runs", "insights", "leaderboard"), ("report",)
    analysis = node_inputs("runs", "audit", "training_data", params=("model", "seed", "report", "evaluate"))
    boards = node_inputs("runs", "insights", params=report)
    figures = node_inputs(*ranking, *data, params=report) | geometry
    examples = node_inputs(*ranking, "training_data", "test_set", "items", params=report)
    page = node_inputs(*ranking, "examples", *data) | dataset | geometry
    return Pipeline(
        [
            collect_node(wiring),
            report_node(audit_split, node_inputs("training_data", "test_set"), "audit"),
            report_node(analyse_runs, analysis, "insights"),
            report_node(rank_runs, boards, ["leaderboard", "leaderboard_markdown"]),
            report_node(draw_figures, figures, "figures"),
            report_node(pick_examples, examples, "examples"),
            report_node(write_report, page, ["report_html", "summary"]),
        ]
    )


def collect_node(wiring: Wiring) -> Node:
    """Create ``collect_runs``, equal in all pipelines that read ``runs``, so that a command has it once."""
    return report_node(collect_runs, node_inputs(*wiring.results), "runs")


def report_node(function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str]) -> Node:
    """Create a node of the group ``report``."""
    return create_node(function, inputs, outputs, "report", tag=False)


def collect_runs(**results: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Collect the metrics of this command by key of the run; other ``results`` only make this node wait."""
    from recpipe.reporting.runs import check_metrics, run_key

    return {
        run_key(f"{result['model']}/seed_{result['seed']}", result): result
        for result in results.values()
        if isinstance(result, dict) and check_metrics(result) is None
    }


def analyse_runs(
    runs: RunStore,
    audit: dict[str, Any],
    training_data: TrainingData,
    model: str,
    seed: int,
    report: ReportConfig,
    evaluate: EvaluateConfig,
) -> dict[str, Any]:
    """Compute confidence intervals, metrics per user segment and properties of lists; add the audit of the split."""
    from recpipe.data.protocol import Protocol
    from recpipe.reporting.report import analyse

    inputs = training_data.train_set, training_data.vocabulary, training_data.protocol_fields
    requested = None
    with suppress(ValueError):  # of another split than the one on disk, which the page is of
        requested = training_data.protocol.with_evaluation_fields(Protocol.from_dict(evaluate.protocol)).id
    insights = analyse(runs, *inputs, models=split_names(model), seed=seed, report=report, requested=requested)
    return {**insights, "audit": audit}


def audit_split(training_data: TrainingData, test_set: Fold) -> dict[str, Any]:
    """Audit the test targets of the split: popularity, transitions seen in training, ties, leakage over time."""
    from recpipe.evaluation.audit import audit

    training_data.check_test_set(test_set)
    return audit(training_data, test_set)


def rank_runs(runs: RunStore, insights: dict[str, Any], report: ReportConfig) -> tuple[DataFrame, str]:
    """Build the leaderboard, as a table and as Markdown."""
    from recpipe.reporting.report import rank

    return rank(runs, insights, metric=report.metric)


def draw_figures(
    runs: RunStore,
    insights: dict[str, Any],
    leaderboard: DataFrame,
    data_profile: dict[str, Any],
    ingest_steps: DataFrame,
    report: ReportConfig,
    geometry: dict[str, Any] | None = None,
) -> dict[str, Figure]:
    """Draw the figures of the report by name; those without data are empty."""
    from recpipe.reporting.report import draw

    geometry, metric = geometry or runs.geometry, report.metric
    return draw(runs, insights, leaderboard, profile=data_profile, steps=ingest_steps, geometry=geometry, metric=metric)


def pick_examples(
    runs: RunStore,
    insights: dict[str, Any],
    leaderboard: DataFrame,
    training_data: TrainingData,
    test_set: Fold,
    items: DataFrame,
    report: ReportConfig,
) -> list[dict[str, Any]]:
    """Pick example users, with histories and recommendations of each model."""
    from recpipe.reporting.examples import to_json
    from recpipe.reporting.report import pick

    vocabulary = training_data.vocabulary
    return to_json(pick(runs, insights, leaderboard, test_set, vocabulary, items.to_arrow(), report))


def write_report(
    runs: RunStore,
    insights: dict[str, Any],
    leaderboard: DataFrame,
    examples: list[dict[str, Any]],
    data_profile: dict[str, Any],
    ingest_steps: DataFrame,
    dataset: DatasetConfig,
    geometry: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """Write the HTML page of the data set and the summary for the terminal."""
    from recpipe.reporting.examples import from_json
    from recpipe.reporting.report import write

    results, geometry = (runs, insights, leaderboard, from_json(examples)), geometry or runs.geometry
    return write(*results, dataset=dataset, profile=data_profile, steps=ingest_steps, geometry=geometry)
