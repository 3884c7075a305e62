"""Wiring of report, geometry and semantic ids: what comes before the report, and nodes that two pipelines share."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from kedro.pipeline import Pipeline

from recpipe.pipelines import geometry, report, semantic_ids
from recpipe.pipelines.report import collect_runs


@dataclass(frozen=True)
class PartialWiring:
    """As much of a Wiring as these pipelines read."""

    dataset: str = "shop"
    models: tuple[str, ...] = ("sasrec",)
    kinds: tuple[str, ...] = ("text", "text_parts")
    results: tuple[str, ...] = ("sasrec_evaluation", "text_ids_quality", "text_parts_ids_quality")
    requested: tuple[str, ...] = ("semantic_ids", "geometry", "report")


def whole(wiring: PartialWiring) -> Pipeline:
    return sum((each.create_pipeline(wiring) for each in (semantic_ids, geometry, report)), Pipeline([]))


def test_metrics_of_this_command_are_named_by_their_runs_and_other_results_only_waited_for() -> None:
    metrics = {"dataset": "shop", "model": "sasrec", "seed": 42, "protocol": {"id": "x"}, "test": {}}
    quality, ties = {"passed": True}, {"model": "sasrec", "seed": 42, "protocol": "x"}
    found = collect_runs(
        sasrec_evaluation=metrics, text_ids_quality=quality, sasrec_tie_sensitivity=ties, b=None
    )
    assert found == {"sasrec/seed_42": metrics}
    assert collect_runs() == {}


@pytest.mark.filterwarnings("error")  # Kedro warns of dots outside of namespaces
@pytest.mark.parametrize("results", [(), PartialWiring.results])
def test_one_node_collects_for_all_that_read_runs(results) -> None:
    pipeline = whole(PartialWiring(results=results))
    (collecting,) = [node for node in pipeline.nodes if node.name == "report.collect_runs"]
    assert collecting.outputs == ["runs"] and set(collecting.inputs) == set(results)
    before = pipeline.to_nodes("report.analyse_runs")
    assert {node.name for node in before.nodes} >= {"report.collect_runs", "report.analyse_runs"}
    made = {node.name for node in before.nodes if node.name.endswith("measure_ids")}
    assert made == ({f"{kind}.measure_ids" for kind in PartialWiring.kinds} if results else set())


def test_semantic_ids_are_wired_for_the_kinds_of_the_command_only() -> None:
    nodes = semantic_ids.create_pipeline(PartialWiring(kinds=("image",))).nodes
    assert [node.namespace for node in nodes] == ["image"] * 5
    assert semantic_ids.create_pipeline(PartialWiring(kinds=())).nodes == []
    parts = semantic_ids.create_pipeline(PartialWiring(kinds=("text_parts",)))
    assert parts.inputs() == {
        "text_embeddings",
        "params:paths",
        "items",
        "params:semantic_ids.kinds.text_parts",
        "params:datasets.shop",
        "params:dataset",
    }


def test_figures_of_ids_are_saved_before_the_quality_that_the_report_reads() -> None:
    """Kedro saves in the order of the outputs."""
    (node,) = [
        node
        for node in semantic_ids.create_pipeline(PartialWiring(kinds=("text",))).nodes
        if node.name == "text.measure_ids"
    ]
    assert node.outputs == ["text.id_figures", "text_ids_quality"]


def test_the_report_reads_geometry_only_where_this_command_measures_it() -> None:
    assert "geometry" not in report.create_pipeline(PartialWiring(requested=("report",))).inputs()
    assert "geometry" in report.create_pipeline(PartialWiring()).inputs()
