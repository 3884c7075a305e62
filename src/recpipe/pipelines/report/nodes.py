"""Nodes of report: calls into recpipe.reporting.page; ``runs`` are all finished runs of the data set."""

from __future__ import annotations

from typing import Any

from recpipe.config import split_names
from recpipe.config.schema import DatasetConfig, ReportConfig
from recpipe.pipelines.types import DataFrame, Figure, Fold, RunStore, TrainingData


def collect_runs(**results: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Metrics of this command by run name.

    Other ``results``, such as the quality of ids, only make this node wait; the report reads them from disk.
    """
    from recpipe.reporting.runs import problem

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
