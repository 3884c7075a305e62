"""Wiring of report: insights first, from every run on disk; leaderboard, figures, page and summary after them.

`runs` gives no edge to training or evaluation, so the insights also take every model's metrics, which load as None
where there are none: in one combined run they come last, and alone they need only what is on disk. So it is with the
quality of semantic ids, and the geometry of items.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.dots import with_dots
from recpipe.pipelines.modalities import KINDS, group
from recpipe.pipelines.report.nodes import FIGURES, draw_figures, rank_runs, study_runs, write_report
from recpipe.pipelines.zoo import SHARED, models

STUDIED = ["runs", "run_ranks", "run_recommendations", "run_ties"]
STUDIED += ["train_set", "vocabulary", "protocol", "text_vectors", "image_vectors"]
STUDIED += ["params:model", "params:seed", "params:report"]
DRAWN = ["leaderboard", "insights", "runs", "run_curves", "data_profile", "ingest_steps"]
DRAWN += ["run_contexts", "run_studies", "geometry", "params:report"]
TOLD = {
    "leaderboard": "leaderboard",
    "insights": "insights",
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
    "run_contexts": "run_contexts",
    "run_studies": "run_studies",
    "datasets": "params:datasets",
    "dataset": "params:dataset",
    "model": "params:model",
    "seed": "params:seed",
    "report": "params:report",
    "geometry": "geometry",
}
AFTER = ("metrics", "tie_sensitivity", "context", "study")
QUALITIES = {name: f"{name}.quality" for name in map(group, KINDS)}


def create_pipeline() -> Pipeline:
    """Four nodes that every model shares."""
    figures = {name: f"figure_{name}" for name in FIGURES}
    board = ["leaderboard", "leaderboard_markdown"]
    return Pipeline(
        [
            with_dots(_study_node),
            Node(rank_runs, ["runs", "insights", "params:report"], board, name="rank_runs"),
            Node(draw_figures, DRAWN, figures, name="draw_figures"),
            with_dots(
                lambda: Node(write_report, TOLD | QUALITIES, ["report_html", "summary"], name="write_report")
            ),
        ],
        tags=SHARED,
    )


def _study_node() -> Node:
    """Waits for all that it reads from disk, or those after it: metrics, what models were asked besides, and vectors,
    which ids are made of.
    """
    after = [f"{model}.{name}" for model in models() for name in AFTER]
    inputs = [*STUDIED, *after, "ensemble.metrics", *QUALITIES.values()]
    return Node(study_runs, inputs, "insights", name="study_runs")
