"""Wiring of report: leaderboard first, from every run on disk; figures, page and summary after it.

`runs` gives no edge to training or evaluation, so the leaderboard also takes every model's metrics, which
load as None where there are none: in one combined run it comes last, and alone it needs only what is on disk. So
does the page with the quality of semantic ids.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.modalities import MODALITIES, group
from recpipe.pipelines.report.nodes import FIGURES, draw_figures, rank_runs, write_report
from recpipe.pipelines.zoo import SHARED, models

DRAWN = ["leaderboard", "runs", "run_curves", "data_profile", "ingest_steps", "params:report"]
TOLD = {
    "leaderboard": "leaderboard",
    "runs": "runs",
    "run_curves": "run_curves",
    "run_ranks": "run_ranks",
    "run_recommendations": "run_recommendations",
    "data_profile": "data_profile",
    "ingest_steps": "ingest_steps",
    "test_set": "test_set",
    "vocabulary": "vocabulary",
    "items": "items",
    "protocol": "protocol",
    "id_figures": "id_figures",
    "datasets": "params:datasets",
    "dataset": "params:dataset",
    "model": "params:model",
    "seed": "params:seed",
    "report": "params:report",
}
QUALITIES = {name: f"{name}.quality" for name in map(group, MODALITIES)}


def create_pipeline() -> Pipeline:
    """Three nodes that every model shares."""
    figures = {name: f"figure_{name}" for name in FIGURES}
    return Pipeline(
        [
            _with_dots(_rank_node),
            Node(draw_figures, DRAWN, figures, name="draw_figures"),
            _with_dots(
                lambda: Node(write_report, TOLD | QUALITIES, ["report_html", "summary"], name="write_report")
            ),
        ],
        tags=SHARED,
    )


def _rank_node() -> Node:
    inputs = ["runs", "params:report", *(f"{model}.metrics" for model in models())]
    return Node(rank_runs, inputs, ["leaderboard", "leaderboard_markdown"], name="rank_runs")


def _with_dots(make: Callable[[], Node]) -> Node:
    """Kedro warns of dots in names of inputs; these are what it keeps dots for, the namespaces of groups of nodes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One or more dataset names contain", category=UserWarning)
        return make()
