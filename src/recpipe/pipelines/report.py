"""Nodes of report: calls into recpipe.reporting.page; ``runs`` are all finished runs of the data set.

Pipeline report: leaderboard, figures, HTML page and summary of all runs of a data set.

Wiring of report: after the results of this command, nodes over all runs on disk.

``collect_runs`` takes the results of this command and gives ``runs``, which the other nodes read. So the report comes
last in a combined run, and alone it needs only what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.config import split_names
from recpipe.config.schema import DatasetConfig, ReportConfig
from recpipe.pipelines.types import DataFrame, Figure, Fold, RunStore, TrainingData
from recpipe.pipelines.wiring import Wiring


def collect_runs(**results: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Metrics of this command by run name.

    Other ``results``, such as the quality of ids, only make this node wait; the report reads them from disk.
    """
    from recpipe.reporting.run_store import problem

    metrics = [each for each in results.values() if isinstance(each, dict) and problem(each) is None]
    return {f"{each['model']}/seed_{each['seed']}": each for each in metrics}


def analyse_runs(
    runs: RunStore, training_data: TrainingData, model: str, seed: int, report: ReportConfig
) -> dict[str, Any]:
    """Compute confidence intervals, metrics per user segment and properties of the recommended lists."""
    from recpipe.reporting import page

    data = training_data
    return page.analyse(
        runs, data.train_set, data.vocabulary, data.split, models=split_names(model), seed=seed, report=report
    )


def rank_runs(runs: RunStore, insights: dict[str, Any], report: ReportConfig) -> tuple[DataFrame, str]:
    """Build the leaderboard, as a table and as Markdown."""
    from recpipe.reporting import page

    return page.rank(runs, insights, metric=report.metric)


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
    from recpipe.reporting import page

    return page.draw(
        runs,
        insights,
        leaderboard,
        profile=data_profile,
        steps=ingest_steps,
        geometry=geometry or runs.geometry,
        metric=report.metric,
    )


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
    from recpipe.reporting import examples, page

    users = page.pick(
        runs, insights, leaderboard, test_set, training_data.vocabulary, items.to_arrow(), report
    )
    return examples.to_json(users)


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
    from recpipe.reporting import page
    from recpipe.reporting.examples import from_json

    return page.write(
        runs,
        insights,
        leaderboard,
        from_json(examples),
        dataset=dataset,
        profile=data_profile,
        steps=ingest_steps,
        geometry=geometry or runs.geometry,
    )


__all__ = ["create_pipeline"]


GROUP = "report"


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Six nodes that all models share."""
    geometry = {}  # the report reads it from disk
    if "geometry" in wiring.requested:
        geometry = {"geometry": "geometry"}
    data = ["data_profile", "ingest_steps"]
    ranking = ["runs", "insights", "leaderboard"]
    dataset = {"dataset": f"params:datasets.{wiring.dataset}"}
    return Pipeline(
        [
            collect_node(wiring),
            _node(
                analyse_runs,
                _inputs("runs", "training_data", params=("model", "seed", "report")),
                "insights",
            ),
            _node(
                rank_runs,
                _inputs("runs", "insights", params=("report",)),
                ["leaderboard", "leaderboard_markdown"],
            ),
            _node(draw_figures, _inputs(*ranking, *data, params=("report",)) | geometry, "figures"),
            _node(
                pick_examples,
                _inputs(*ranking, "training_data", "test_set", "items", params=("report",)),
                "examples",
            ),
            _node(
                write_report,
                _inputs(*ranking, "examples", *data) | dataset | geometry,
                ["report_html", "summary"],
            ),
        ]
    )


def collect_node(wiring: Wiring) -> Node:
    """The node ``collect_runs``, equal in all pipelines that read ``runs``, so that a command has it once."""
    return _node(collect_runs, _inputs(*wiring.results), "runs")


def _inputs(*datasets: str, params: Iterable[str] = ()) -> dict[str, str]:
    """Datasets and parameters by argument of the same name."""
    return {**{name: name for name in datasets}, **{name: f"params:{name}" for name in params}}


def _node(function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str]) -> Node:
    return Node(function, inputs, outputs, name=function.__name__, namespace=GROUP)
