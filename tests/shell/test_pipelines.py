"""The wiring: tags, order, one group of nodes per model, and a catalog entry for everything that flows."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import yaml
from kedro.framework.project import pipelines
from kedro.framework.startup import bootstrap_project

from recpipe.pipelines import zoo
from recpipe.pipelines.modalities import KINDS, READS, embeddings_of

ASKED_FOR = {"ensemble", "ties", "context", "study", "geometry"}  # no part of a run of the whole project


@pytest.fixture
def registered(project_copy: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Pipelines of a copy: the developer's own conf/local may hold models of theirs."""
    monkeypatch.chdir(project_copy)
    monkeypatch.setattr(zoo, "_declared", [])
    bootstrap_project(project_copy)
    return dict(pipelines)


@pytest.fixture
def catalog(project_copy, session_in):
    with session_in(project_copy) as session:
        yield session.load_context().catalog


def on_disk(project: Path) -> set[str]:
    return {file.stem for file in (project / "conf" / "base" / "parameters" / "models").glob("*.yml")}


def test_models_are_the_files_and_each_file_holds_the_block_of_its_name(project: Path, registered) -> None:
    assert set(zoo.models()) == on_disk(project) > set()
    for file in (project / "conf" / "base" / "parameters" / "models").glob("*.yml"):
        assert list(yaml.safe_load(file.read_text())) == ["models"]
        assert list(yaml.safe_load(file.read_text())["models"]) == [file.stem]


def test_every_node_is_tagged_shared_with_its_model_or_with_modalities_and_nothing_else(registered) -> None:
    stages = {"ingest", "embed", "semantic_ids", "train", "evaluate", "report"}
    assert set(registered) == stages | ASKED_FOR | {"__default__"}
    for name in stages | ASKED_FOR - {"embed", "semantic_ids"}:
        assert registered[name].nodes, name
    for name in {"ties", "context", "study", *stages} - {"embed", "semantic_ids"}:
        for node in registered[name].nodes:
            assert node.tags == {node.namespace or "shared"}, node.name
    assert {(node.namespace, *node.tags) for node in registered["ensemble"].nodes} == {("ensemble", "shared")}
    assert {(node.namespace, *node.tags) for node in registered["geometry"].nodes} == {(None, "shared")}
    tags = {node.name: node.tags for node in registered["embed"].nodes}
    assert tags == {
        "embed_text": {"text", "text_image", "text_parts"},
        "embed_images": {"image", "text_image"},
        "join_embeddings": {"text_image"},
    }
    for node in registered["semantic_ids"].nodes:
        assert node.tags == {node.namespace.removesuffix("_ids")} < set(KINDS), node.name
    assert {node.name for node in registered["__default__"].nodes} == {
        node.name for name in stages for node in registered[name].nodes
    }


def test_every_model_has_its_own_train_and_evaluate(project: Path, registered) -> None:
    for name in ("train", "evaluate", "ties"):
        found = {node.namespace for node in registered[name].nodes if node.namespace}
        assert found == on_disk(project)


def test_a_run_that_is_cut_off_while_saving_leaves_nothing_that_looks_consistent(registered) -> None:
    """Kedro saves in the order of the outputs: a new protocol refuses old bundles; metrics make a run count."""
    split = next(node for node in registered["train"].nodes if node.name == "split_sequences")
    assert split.outputs[0] == "protocol"
    for node in registered["evaluate"].nodes:
        assert node.outputs[-1] == f"{node.namespace}.metrics"


def test_declared_models_replace_those_of_the_project_folder(registered) -> None:
    zoo.declare(["one", "two"])
    assert {node.namespace for node in pipelines["evaluate"].nodes} == {"one", "two"}
    assert {"params:models.one", "params:models.two"} <= pipelines["train"].inputs()
    assert {"one.metrics", "two.metrics"} <= pipelines["report"].inputs()


def test_inputs_stand_in_the_order_of_the_signature(registered) -> None:
    """Kedro takes the type of a parameter by position, also where inputs are given by name."""
    for node in (node for pipeline in registered.values() for node in pipeline.nodes):
        arguments = inspect.signature(node.func).parameters
        for argument, dataset in zip(arguments, node.inputs, strict=False):
            if dataset.startswith("params:") and argument != "model":
                assert dataset == f"params:{argument}", node.name


def test_the_leaderboard_comes_after_every_evaluation(registered) -> None:
    pipeline = registered["__default__"]
    order = [node.name for node in pipeline.nodes]
    evaluations = [order.index(node.name) for node in registered["evaluate"].nodes]
    reports = [order.index(node.name) for node in registered["report"].nodes]
    assert max(evaluations) < min(reports)
    study = next(node for node in pipeline.nodes if node.name == "study_runs")
    edges = pipeline.node_dependencies[study]
    assert {node.name for node in registered["evaluate"].nodes} <= {node.name for node in edges}
    every = registered["report"] + registered["ensemble"] + registered["ties"]
    asked_for = {node.name for node in (*registered["ensemble"].nodes, *registered["ties"].nodes)}
    assert asked_for <= {node.name for node in every.node_dependencies[study]}


def test_geometry_comes_after_what_it_reads_from_disk_and_before_what_shows_it(registered) -> None:
    every = registered["__default__"] + registered["geometry"]
    named = {node.name: node for node in every.nodes}
    before = {node.name for node in every.node_dependencies[named["measure_geometry"]]}
    assert {node.name for node in registered["evaluate"].nodes} <= before
    assert {f"{kind}_ids.measure_ids" for kind in KINDS} <= before
    for name in ("draw_figures", "write_report"):
        assert "measure_geometry" in {node.name for node in every.node_dependencies[named[name]]}


def test_everything_that_flows_has_an_entry_and_every_path_is_the_projects(
    catalog, registered, project_copy
) -> None:
    everything = {name for pipeline in registered.values() for name in pipeline.datasets()}
    for name in (name for name in everything if not name.startswith("params:")):
        dataset = catalog.get(name)
        assert dataset is not None, name
        assert type(dataset).__name__ != "MemoryDataset", name
        path = getattr(dataset, "_filepath", None) or dataset._path
        assert Path(path).is_relative_to(project_copy / "data"), name
        assert dataset.metadata["kedro-viz"]["layer"], name
    for name in (name for name in everything if name.startswith("params:")):
        assert name in catalog


def test_bundles_metrics_and_recommendations_are_versioned_and_paths_name_dataset_model_and_seed(
    project_copy, session_in
) -> None:
    params = {"dataset": "ml-1m", "seed": 7, "model": "popular"}
    with session_in(project_copy, runtime_params=params) as session:
        catalog = session.load_context().catalog
        for name in ("bundle", "metrics", "recommendations"):
            dataset = catalog.get(f"popular.{name}")
            assert dataset._version is not None
            assert "/ml-1m/popular/seed_7/" in str(dataset._filepath)
        assert "/ml-1m/" in str(catalog.get("interactions")._filepath)


def test_a_kind_of_ids_brings_all_that_it_needs_and_nothing_else(registered) -> None:
    pipeline = registered["embed"] + registered["semantic_ids"]
    for kind in KINDS:
        part = pipeline.only_nodes_with_tags(kind)
        from_outside = {name for name in part.inputs() if not name.startswith("params:")}
        optional = ("earlier_quantizer", "lent_quantizer", "earlier_ids")
        read_anew = {f"{kind}_ids.{name}" for name in optional}
        caches = {f"{name}_cache" for name in READS[kind]}
        of_others = f"{embeddings_of(kind)}_of_others"
        assert from_outside == {"items", "raw_folder", of_others} | read_anew | caches
        assert {f"{kind}_ids.prefix_tree"} <= part.outputs()


def test_the_report_comes_after_the_quality_of_every_kind_of_ids(registered) -> None:
    pipeline = registered["__default__"]
    page = next(node for node in pipeline.nodes if node.name == "write_report")
    before = {node.name for node in pipeline.node_dependencies[page]}
    assert {f"{kind}_ids.measure_ids" for kind in KINDS} <= before
    for kind in KINDS:
        measure = next(node for node in pipeline.nodes if node.name == f"{kind}_ids.measure_ids")
        assert measure.outputs[-1] == f"{kind}_ids.quality"  # figures are on disk when it is


def test_whole_blocks_survive_one_runtime_parameter(project_copy, session_in) -> None:
    with session_in(project_copy, runtime_params={"train": {"patience": 3}}) as session:
        found = session.load_context().params["train"]
    expected = yaml.safe_load((project_copy / "conf/base/parameters/train.yml").read_text())["train"]
    assert found == expected | {"patience": 3}


def test_the_test_environment_writes_beside_and_overrides_key_by_key(project_copy, session_in) -> None:
    with session_in(project_copy, env="test") as session:
        context = session.load_context()
        base = yaml.safe_load((project_copy / "conf/base/parameters/models/sasrec.yml").read_text())
        assert set(context.params["models"]["sasrec"]) == set(base["models"]["sasrec"])
        assert context.params["models"]["sasrec"] != base["models"]["sasrec"]
        assert context.params["datasets"]["online_retail"]["source"] == "online_retail"
        path = Path(context.catalog.get("sasrec.bundle")._filepath)
    assert path.is_relative_to(project_copy / "data" / "test")


def test_layers_never_turn_back(catalog, registered) -> None:
    """kedro-viz draws no layers at all if one node reads from a layer that comes after one it writes to."""
    order = [
        "raw",
        "intermediate",
        "primary",
        "feature",
        "model_input",
        "models",
        "model_output",
        "reporting",
    ]

    def layer(name: str) -> int:
        return order.index(catalog.get(name).metadata["kedro-viz"]["layer"])

    for node in (node for pipeline in registered.values() for node in pipeline.nodes):
        read = [layer(name) for name in node.inputs if not name.startswith("params:")]
        written = [layer(name) for name in node.outputs]
        assert max(read, default=0) <= min(written), node.name
