"""Wiring of report: after the results of this command, nodes over all runs on disk.

``collect_runs`` takes the results of this command and gives ``runs``, which the other nodes read. So the report comes
last in a combined run, and alone it needs only what is on disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from kedro.pipeline import Node, Pipeline

from recpipe.pipelines.report import nodes
from recpipe.pipelines.wiring import Wiring

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
                nodes.analyse_runs,
                _inputs("runs", "training_data", params=("model", "seed", "report")),
                "insights",
            ),
            _node(
                nodes.rank_runs,
                _inputs("runs", "insights", params=("report",)),
                ["leaderboard", "leaderboard_markdown"],
            ),
            _node(nodes.draw_figures, _inputs(*ranking, *data, params=("report",)) | geometry, "figures"),
            _node(
                nodes.pick_examples,
                _inputs(*ranking, "training_data", "test_set", "items", params=("report",)),
                "examples",
            ),
            _node(
                nodes.write_report,
                _inputs(*ranking, "examples", *data) | dataset | geometry,
                ["report_html", "summary"],
            ),
        ]
    )


def collect_node(wiring: Wiring) -> Node:
    """The node ``collect_runs``, equal in all pipelines that read ``runs``, so that a command has it once."""
    return _node(nodes.collect_runs, _inputs(*wiring.results), "runs")


def _inputs(*datasets: str, params: Iterable[str] = ()) -> dict[str, str]:
    """Datasets and parameters by argument of the same name."""
    return {**{name: name for name in datasets}, **{name: f"params:{name}" for name in params}}


def _node(function: Callable[..., Any], inputs: dict[str, str], outputs: str | list[str]) -> Node:
    return Node(function, inputs, outputs, name=function.__name__, namespace=GROUP)
