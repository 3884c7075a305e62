"""The wiring: what is built for a command, in which order, and a catalog entry for everything that flows."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project

from recpipe.config import ID_KINDS, ConfigError, Configuration
from recpipe.kedro_compat import file_of, reload_pipelines
from recpipe.pipelines.register import MLFLOW_RUN
from recpipe.pipelines.wiring import ON_REQUEST, STAGES, command_wiring, model_info, remember, use_wiring

MOST_PARAMETERS = 8  # of a node
LAYERS = ["01_raw", "03_primary", "04_feature", "05_model_input", "06_models", "07_model_output", "08_reporting"]


@pytest.fixture
def registered(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Pipelines of a copy without a command, as kedro-viz sees them: the developer's conf/local may hold models."""
    monkeypatch.chdir(project_copy)
    bootstrap_project(project_copy)
    remember(Configuration.read(project_copy / "conf", None, {}, model_info))
    return dict(pipelines)


@pytest.fixture
def built(project_copy: Path):
    """`built(params, *pipelines)`: the pipelines that a command builds."""

    def build(params: dict, *requested: str) -> dict:
        configuration = Configuration.read(project_copy / "conf", None, params, model_info)
        with use_wiring(command_wiring(configuration, requested)):
            reload_pipelines()
            return dict(pipelines)

    yield build
    reload_pipelines()


@pytest.fixture
def catalog(project_copy, session_in):
    with session_in(project_copy) as session:
        yield session.load_context().catalog


def models_on_disk(project: Path) -> set[str]:
    return {file.stem for file in (project / "conf" / "base" / "parameters" / "models").glob("*.yml")}


def before(pipeline, name: str) -> set[str]:
    """Names of the nodes that come before a node because it needs what they write."""
    parents = {node: set(found) for node, found in pipeline.node_dependencies.items()}
    seen: set = set()
    waiting = [node for node in pipeline.nodes if node.name == name]
    while waiting:
        for parent in parents[waiting.pop()] - seen:
            seen.add(parent)
            waiting.append(parent)
    return {node.name for node in seen}


def test_each_model_file_holds_the_block_of_its_name(project: Path) -> None:
    for file in (project / "conf" / "base" / "parameters" / "models").glob("*.yml"):
        assert list(yaml.safe_load(file.read_text())) == ["models"]
        assert list(yaml.safe_load(file.read_text())["models"]) == [file.stem]


def test_stages_and_every_model_have_a_pipeline(project: Path, registered) -> None:
    assert set(registered) == {*STAGES, *ON_REQUEST, "__default__"} | models_on_disk(project)
    assert all(pipeline.nodes for pipeline in registered.values())


def test_without_a_command_stages_are_those_of_the_default_model_and_its_baselines(registered) -> None:
    groups = {node.namespace for node in registered["train"].nodes if node.namespace}
    assert groups == {"sasrec", "popular", "popular_recent", "markov"}


def test_a_models_pipeline_is_its_whole_path_and_nothing_else(registered) -> None:
    names = {node.name.split(".")[-1] for node in registered["tiger"].nodes}
    assert {"fetch_source", "embed_text", "fit_quantizer", "build_tree", "train_model", "write_report"} <= names
    groups = {node.namespace.split(".")[0] for node in registered["tiger"].nodes if node.namespace}
    assert groups - {"ingest", "report"} == {"text", "tiger"}
    names = {node.name.split(".")[-1] for node in registered["svd"].nodes}
    assert not {"embed_text", "fit_quantizer"} & names


def test_a_command_builds_its_models_only(built) -> None:
    found = built({"model": "svd+popular"}, "train", "evaluate")
    for name in ("train", "evaluate"):
        assert {node.namespace for node in found[name].nodes if node.namespace} == {"svd", "popular"}


def test_models_are_wired_to_what_they_read(built) -> None:
    def inputs(params: dict, model: str) -> set[str]:
        (node,) = (node for node in built(params, "train")["train"].nodes if node.namespace == model)
        return set(node.inputs)

    assert "text_embeddings" in inputs({"model": "text_knn"}, "text_knn")
    assert not {"text_embeddings", "text_semantic_ids"} & inputs({"model": "sasrec"}, "sasrec")
    side = {"models": {"sasrec": {"side": {"vectors": "text"}}}}
    assert "text_embeddings" in inputs({"model": "sasrec", **side}, "sasrec")
    both = {"model": "sasrec+popular", "side": {"vectors": "text+image"}}
    assert {"text_embeddings", "image_embeddings"} <= inputs(both, "sasrec")
    assert not {"text_embeddings", "image_embeddings"} & inputs(both, "popular")
    assert {"text_semantic_ids", "text_prefix_tree"} <= inputs({"model": "tiger"}, "tiger")
    assert {"text_parts_semantic_ids", "text_parts_prefix_tree"} <= inputs(
        {"model": "parallel_tiger"}, "parallel_tiger"
    )
    assert {"sasrec_bundle", "text_embeddings"} <= inputs({"model": "setrec"}, "setrec")
    assert "start" in inputs({"model": "sasrec", "init_from": "a/sasrec/seed_1"}, "sasrec")
    assert "start" not in inputs({"model": "sasrec"}, "sasrec")


def every_node(registered: dict, built) -> list:
    images = built({"dataset": "ml-1m", "modality": "text+image+text_image+text_parts", "model": "all"})
    return [node for pipeline in (*registered.values(), *images.values()) for node in pipeline.nodes]


def test_nodes_have_few_parameters_of_known_types(registered, built) -> None:
    for node in every_node(registered, built):
        parameters = inspect.signature(node.func).parameters
        assert len(parameters) <= MOST_PARAMETERS, node.name
        hints = get_type_hints(node.func)
        named = inspect.get_annotations(node.func)
        for parameter in parameters.values():
            assert parameter.name in hints, (node.name, parameter.name)
            assert parameter.kind is parameter.VAR_KEYWORD or named[parameter.name] != "Any", node.name


def test_kedro_gives_every_parameter_to_the_argument_that_it_is_meant_for(registered, built) -> None:
    """Kedro reads types by position, also where inputs are given by name: the order must be that of the signature."""
    for node in every_node(registered, built):
        named = [
            name for name, each in inspect.signature(node.func).parameters.items() if each.kind is not each.VAR_KEYWORD
        ]
        given = list(node._inputs) if isinstance(node._inputs, dict) else named[: len(node.inputs)]
        assert given[: len(named)] == named[: len(given)], node.name


def test_the_report_comes_after_all_that_this_command_writes_for_it(built) -> None:
    requested = ("train", "evaluate", "ensemble", "ties", "context", "semantic_ids", "embed", "report")
    params = {"model": "sasrec+svd", "ensemble": {"members": "sasrec+svd"}, "modality": "text"}
    found = built(params, *requested)
    pipeline = sum((found[name] for name in requested[1:]), start=found["train"])
    names = before(pipeline, "report.analyse_runs")
    for model in ("sasrec", "svd"):
        assert {f"{model}.{node}" for node in ("evaluate_model", "permute_ties", "measure_context")} <= names
    assert {"ensemble.evaluate_ensemble", "text.measure_ids", "text.embed_text"} <= names


def test_a_refit_comes_after_the_measurement_and_the_refit_of_the_model_whose_vectors_it_reads(built) -> None:
    found = built({"model": "setrec+sasrec"}, "train", "evaluate", "refit")
    pipeline = found["train"] + found["evaluate"] + found["refit"]
    assert {"setrec.evaluate_model", "sasrec.refit_model"} <= before(pipeline, "setrec.refit_model")
    alone = built({"model": "setrec"}, "refit")["refit"]
    assert {"setrec_bundle", "setrec_evaluation", "sasrec_bundle", "sasrec_production"} <= alone.inputs()
    assert alone.outputs() == {"setrec_production"}


def test_without_held_out_events_stages_that_measure_are_left_out_and_refused_by_name(built) -> None:
    params = {"model": "svd", "protocol": {"split": "none"}}
    names = {node.name.split(".")[-1] for node in built(params)["__default__"].nodes}
    assert {"split_sequences", "train_model"} <= names
    assert not {"evaluate_model", "collect_runs", "write_report"} & names
    for name in ("evaluate", "report", "ensemble", "ties", "context", "study", "refit"):
        with pytest.raises(ConfigError, match=f"protocol.split is none.* {name} cannot run"):
            built(params, "train", name)


def test_geometry_comes_after_the_bundles_of_this_command_and_before_what_shows_it(built) -> None:
    found = built({"model": "sasrec"}, "train", "evaluate", "geometry", "report")
    pipeline = found["train"] + found["evaluate"] + found["geometry"] + found["report"]
    assert {"sasrec.train_model", "sasrec.evaluate_model"} <= before(pipeline, "report.measure_geometry")
    for name in ("report.draw_figures", "report.write_report"):
        assert "report.measure_geometry" in before(pipeline, name)


def test_content_slots_add_the_content_model_to_the_inputs_of_evaluate_and_ensemble(built) -> None:
    for share, expected in ((0.0, False), (0.2, True)):
        params = {"model": "sasrec+svd", "evaluate": {"content_slots": {"share": share, "model": "item_knn"}}}
        pipelines = built(params, "evaluate", "ensemble")
        nodes = [*pipelines["evaluate"].nodes, *pipelines["ensemble"].nodes]
        assert {node.name for node in nodes if "item_knn_bundle" in node.inputs} == (
            {node.name for node in nodes} if expected else set()
        )
    with pytest.raises(ConfigError, match="item_kn"):
        built({"model": "svd", "evaluate": {"content_slots": {"share": 0.2, "model": "item_kn"}}}, "evaluate")


def test_an_ensemble_reads_its_members_and_waits_for_those_of_this_command(built) -> None:
    found = built({"model": "sasrec", "ensemble": {"members": "sasrec+svd"}}, "train", "ensemble")
    pipeline = found["train"] + found["ensemble"]
    assert "sasrec.train_model" in before(pipeline, "ensemble.evaluate_ensemble")
    assert "svd_bundle" in pipeline.inputs()


def test_everything_that_flows_has_an_entry_and_every_path_is_the_projects(catalog, registered, project_copy) -> None:
    everything = {name for pipeline in registered.values() for name in pipeline.datasets()}
    for name in (name for name in everything - {MLFLOW_RUN} if not name.startswith("params:")):
        dataset = catalog.get(name)
        assert dataset is not None, name
        assert type(dataset).__name__ != "MemoryDataset", name
        folder = "conf/local" if name.endswith("_tuned_model") else "data"
        for path in paths_of(dataset):
            assert path.is_relative_to(project_copy / folder), name
    for name in (name for name in everything if name.startswith("params:")):
        assert name in catalog


def paths_of(dataset: Any) -> list[Path]:
    described = dataset._describe()
    found = [Path(str(value)) for value in described.values() if "/" in str(value)]
    assert found, dataset
    return found


def test_bundles_and_evaluations_are_versioned_and_paths_name_dataset_model_and_seed(project_copy, session_in) -> None:
    params = {"dataset": "ml-1m", "seed": 7, "model": "popular"}
    with session_in(project_copy, runtime_params=params) as session:
        catalog = session.load_context().catalog
        for name in ("popular_bundle", "popular_evaluation"):
            dataset = catalog.get(name)
            assert dataset._version is not None
            assert "/ml-1m/popular/seed_7/" in str(file_of(dataset))
        assert "/ml-1m/" in str(file_of(catalog.get("interactions")))


def test_a_kind_of_ids_brings_all_that_it_needs_and_nothing_else(built) -> None:
    file = {"kinds": {"foreign": {"source": {"file": "index.json"}}}}
    for kind in ID_KINDS:
        params = {"dataset": "ml-1m", "modality": kind, "model": "popular", "semantic_ids": file}
        found = built(params, "embed", "semantic_ids")
        pipeline = found["embed"] + found["semantic_ids"]
        outside = {name for name in pipeline.inputs() if not name.startswith("params:")}
        assert outside == {"items"} | ({"sasrec_bundle", "training_data"} if kind == "text_collaborative" else set())
        assert {f"{kind}_prefix_tree", f"{kind}_semantic_ids"} <= pipeline.all_outputs()
        assert {node.namespace for node in found["semantic_ids"].nodes} == {kind}


def test_layers_never_turn_back(catalog, registered) -> None:
    """kedro-viz draws no layers at all if one node reads from a layer that comes after one it writes to."""

    def layers(names: list[str]) -> list[int]:
        stored = (name for name in names if not name.startswith("params:") and name != MLFLOW_RUN)
        metadata = [catalog.get(name).metadata or {} for name in stored]
        return [LAYERS.index(each["kedro-viz"]["layer"]) for each in metadata if "kedro-viz" in each]

    for node in (node for pipeline in registered.values() for node in pipeline.nodes):
        assert max(layers(node.inputs), default=0) <= min(layers(node.outputs), default=9), node.name


def test_what_mlflow_gets_of_each_entry_is_of_a_known_kind(catalog, registered) -> None:
    kinds = {"metrics", "protocol", "numbers", "audit", "lists", "curves", "production", "artifact", "figures"}
    names = {name for pipeline in registered.values() for name in pipeline.all_outputs()}
    tracked = {name: (catalog.get(name).metadata or {}).get("mlflow") for name in names}
    assert {kind for kind in tracked.values() if kind is not None} == kinds
    expected = {
        "training_data": "protocol",
        "sasrec_bundle": "curves",
        "sasrec_production": "production",
        "sasrec_evaluation": "metrics",
        "sasrec_tie_sensitivity": "numbers",
        "text_ids_quality": "numbers",
        "text.id_figures": "figures",
        "figures": "figures",
        "report_html": "artifact",
    }
    assert {name: tracked[name] for name in expected} == expected


def test_the_test_environment_writes_beside(project_copy, session_in) -> None:
    with session_in(project_copy, env="test") as session:
        path = file_of(session.load_context().catalog.get("sasrec_bundle"))
    assert path is not None and path.is_relative_to(project_copy / "data" / "test")


PIPELINES = """
import sys
from pathlib import Path
from kedro.framework.startup import bootstrap_project
from kedro.framework.project import pipelines
bootstrap_project(Path.cwd())
assert len(dict(pipelines)) > 40
heavy = {"torch", "mlflow", "lightning", "transformers", "plotly", "ibis", "duckdb", "sklearn", "pandas"}
print(sorted(heavy & set(sys.modules)))
"""
FIRST_NODE = """
import os, sys
from kedro.pipeline.node import Node
from kedro.framework.cli import main
heavy = {"torch", "lightning", "transformers", "plotly", "sklearn"}  # a thread imports mlflow meanwhile
def run(node, *_, **__):
    print(sorted(heavy & set(sys.modules)), flush=True)
    os._exit(0)
Node.run = run
sys.argv = ["kedro", "run", "--pipelines=ingest"]
main()
"""


@pytest.mark.parametrize("program", [PIPELINES, FIRST_NODE], ids=["pipelines", "first node"])
def test_nothing_heavy_is_imported_before_a_node_needs_it(project_copy: Path, program: str) -> None:
    """In a process of its own, as other tests import what they like."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=project_copy, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
