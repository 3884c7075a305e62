"""Wiring of report: the results of this command first, then everything that is on disk.

Evaluation writes files of single runs; ``collect_runs`` takes them and gives the dataset ``runs``, so that in a
combined run the report comes last. Alone it needs only what is on disk.
"""

from __future__ import annotations

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.report import nodes
from recpipe.pipelines.wiring import Wiring

GROUP = "report"
ANALYSED = {name: name for name in ("runs", "training_data")}
RANKED = {name: name for name in ("runs", "insights")}
SHOWN = {name: name for name in ("runs", "insights", "leaderboard")}
DATA = {name: name for name in ("data_profile", "ingest_steps")}


def create_pipeline(wiring: Wiring) -> Pipeline:
    """Six nodes that every model shares."""
    report = {"report": "params:report"}
    choice = {"model": "params:model", "seed": "params:seed"}
    users = {name: name for name in ("training_data", "test_set", "items")}
    drawn = {**SHOWN, **DATA, **report}
    written = {**SHOWN, "examples": "examples", **DATA, "dataset": f"params:datasets.{wiring.dataset}"}
    if "geometry" in wiring.requested:  # else that of an earlier run is on disk, or none
        written |= {"geometry": "geometry"}
        drawn |= {"geometry": "geometry"}
    board, page = ["leaderboard", "leaderboard_markdown"], ["report_html", "summary"]
    return Pipeline(
        [
            collecting(wiring),
            Node(
                nodes.analyse_runs,
                {**ANALYSED, **choice, **report},
                "insights",
                name="analyse_runs",
                namespace=GROUP,
            ),
            Node(nodes.rank_runs, {**RANKED, **report}, board, name="rank_runs", namespace=GROUP),
            Node(nodes.draw_figures, drawn, "figures", name="draw_figures", namespace=GROUP),
            Node(
                nodes.pick_examples,
                {**SHOWN, **users, **report},
                "examples",
                name="pick_examples",
                namespace=GROUP,
            ),
            Node(nodes.write_report, written, page, name="write_report", namespace=GROUP),
        ]
    )


def collecting(wiring: Wiring) -> Node:
    """The node ``collect_runs``, equal in all pipelines that read ``runs``, so that a command has it once."""
    results = {name: name for name in wiring.results}
    return Node(nodes.collect_runs, results, "runs", name="collect_runs", namespace=GROUP)
