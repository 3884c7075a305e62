"""Runs of small pipelines, as MLflow's own client finds them in SQLite afterwards."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
import plotly.io as pio
import polars as pl
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import SequentialRunner
from pydantic import BaseModel

from recpipe.hooks import TrackingHooks
from recpipe.hooks.values import allowed, flat, metric_values
from recpipe.io.files import FigureDataset, TextDataset
from recpipe.pipelines.progress import tell

METRICS = {
    "dataset": "shop",
    "model": "m",
    "seed": 3,
    "protocol": {"id": "abcd1234", "split": "ratio"},
    "test": {"ndcg@10": 0.25, "users": 7, "recall@5": float("nan")},
    "valid": {"ndcg@10": 0.5},
    "cost": {"train_seconds": 1.5, "device": "cpu"},
    "commit": None,
}
CURVE = [{"epoch": 1, "step": 5, "loss": 2.0, "valid_ndcg@10": None}, {"epoch": 2, "step": 10, "loss": 1.0}]


class Block(BaseModel):
    size: int = 4


def train(params: dict, block: Block) -> tuple[str, pl.DataFrame]:
    tell(CURVE[0])
    return "bundle", pl.DataFrame(CURVE)


def evaluate(bundle: str, params: dict) -> dict:
    return METRICS


def fail(params: dict) -> str:
    raise RuntimeError("no such luck")


def models_of(*names: str) -> Pipeline:
    nodes = [
        Node(train, ["params:train", "params:block"], ["bundle", "curves"], name="train"),
        Node(evaluate, ["bundle", "params:train"], "metrics", name="evaluate"),
    ]
    parameters = {"params:train", "params:block"}
    return sum((Pipeline(nodes, namespace=name, parameters=parameters) for name in names), start=Pipeline([]))


@pytest.fixture
def conf() -> dict:
    return {
        "enabled": True,
        "tracking_uri": "sqlite:///db/m.db",
        "artifacts": "mlruns",
        "experiment_prefix": "t-",
    }


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """One migrated, empty database, copied by every test: MLflow takes seconds to make one."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "m.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def place(tmp_path: Path, database: Path) -> Path:
    (tmp_path / "db").mkdir()
    (tmp_path / "db" / "m.db").write_bytes(database.read_bytes())
    return tmp_path


def catalog_in(folder: Path) -> DataCatalog:
    entries = {
        "params:dataset": MemoryDataset("shop"),
        "params:train": MemoryDataset({"lr": 0.1, "loss": {"name": "full"}}),
        "params:block": MemoryDataset(Block()),
        "params:datasets": MemoryDataset({"shop": {"title": "Shop"}, "other": {"title": "Other"}}),
        "steps": TextDataset(filepath=str(folder / "steps.txt"), metadata={"mlflow": "artifact"}),
        "bars": FigureDataset(filepath=str(folder / "bars.json"), metadata={"mlflow": "figure"}),
        "nothing": FigureDataset(filepath=str(folder / "nothing.json"), metadata={"mlflow": "figure"}),
    }
    for name in ("one", "two"):
        entries[f"{name}.metrics"] = MemoryDataset(metadata={"mlflow": "metrics"})
        entries[f"{name}.curves"] = MemoryDataset(metadata={"mlflow": "curves"})
    return DataCatalog(entries)


def run(pipeline: Pipeline, conf: dict, place: Path, *, hooks: TrackingHooks | None = None) -> TrackingHooks:
    hooks = hooks or TrackingHooks()
    manager = _create_hook_manager()
    manager.register(hooks)
    manager.hook.after_context_created(
        context=SimpleNamespace(project_path=place, config_loader={"mlflow": conf})
    )
    catalog = catalog_in(place)
    params = {"pipeline_names": ["train", "evaluate"], "env": "test", "run_id": "r1"}
    manager.hook.before_pipeline_run(run_params=params, pipeline=pipeline, catalog=catalog)
    try:
        result = SequentialRunner().run(pipeline, catalog, manager)
    except Exception as error:
        manager.hook.on_pipeline_error(error=error, run_params=params, pipeline=pipeline, catalog=catalog)
        raise
    manager.hook.after_pipeline_run(run_params=params, run_result=result, pipeline=pipeline, catalog=catalog)
    return hooks


def found(place: Path, experiment: str = "t-shop") -> tuple[object, list]:
    """The client, and all runs of the experiment, oldest first."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{place / 'db' / 'm.db'}")
    known = client.get_experiment_by_name(experiment)
    runs = client.search_runs([known.experiment_id], order_by=["attributes.start_time ASC"]) if known else []
    return client, runs


def test_a_parent_and_one_nested_run_per_model_for_train_and_evaluate_together(place, conf) -> None:
    steps = Node(
        lambda datasets, dataset: "text", ["params:datasets", "params:dataset"], "steps", name="shared"
    )
    run(Pipeline([steps]) + models_of("one", "two"), conf, place)
    client, runs = found(place)
    by_name = {each.info.run_name: each for each in runs}
    assert set(by_name) == {"train+evaluate one+two", "one", "two"}
    parent, one = by_name["train+evaluate one+two"], by_name["one"]
    assert {each.info.status for each in runs} == {"FINISHED"}
    assert one.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert one.data.params == {"train.lr": "0.1", "train.loss.name": "full", "block.size": "4"}
    assert parent.data.params == {"dataset": "shop", "datasets.shop.title": "Shop"}
    expected = {"test/ndcg_at_10": 0.25, "test/users": 7, "valid/ndcg_at_10": 0.5, "cost/train_seconds": 1.5}
    assert expected.items() <= one.data.metrics.items()
    assert not any(math.isnan(value) for value in one.data.metrics.values())
    assert {
        "protocol": "abcd1234",
        "seed": "3",
        "model": "one",
        "dataset": "shop",
    }.items() <= one.data.tags.items()
    assert "commit" not in one.data.tags
    losses = [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, "curve/loss")]
    assert losses == [(5, 2.0), (10, 1.0)]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["steps.txt"]
    assert (place / "mlruns").is_dir()


def test_figures_are_artifacts_in_a_folder_and_empty_ones_are_none(place, conf) -> None:
    def draw(dataset: str) -> tuple[go.Figure, go.Figure]:
        return go.Figure(go.Bar(y=[1, 2])), go.Figure()

    run(Pipeline([Node(draw, "params:dataset", ["bars", "nothing"], name="draw")]), conf, place)
    client, (parent,) = found(place)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["figures"]
    (file,) = client.list_artifacts(parent.info.run_id, "figures")
    assert file.path == "figures/bars.json"
    assert pio.read_json(client.download_artifacts(parent.info.run_id, file.path)).data[0].y == (1, 2)
    assert (place / "nothing.json").is_file()  # the catalog has it all the same


def test_the_settings_in_force_are_parameters_of_the_models_run(place, conf, monkeypatch) -> None:
    settings = {"type": "sasrec", "dim": 64, "train": {"max_epochs": 20}}
    monkeypatch.setitem(METRICS, "settings", settings)
    run(models_of("one"), conf, place)
    _, runs = found(place)
    params = next(each.data.params for each in runs if each.info.run_name == "one")
    expected = {"settings.type": "sasrec", "settings.dim": "64", "settings.train.max_epochs": "20"}
    assert expected.items() <= params.items()


def test_an_error_marks_all_runs_failed_with_its_reason_and_is_still_raised(place, conf) -> None:
    with pytest.raises(RuntimeError, match="no such luck"):
        run(models_of("one") + Pipeline([Node(fail, "one.metrics", "never", name="z_fail")]), conf, place)
    _, runs = found(place)
    assert [each.info.status for each in runs] == ["FAILED", "FAILED"]
    assert [each.data.tags.get("error") for each in runs] == ["RuntimeError: no such luck", None]


def test_several_runs_in_one_process_do_not_meet(place, conf) -> None:
    hooks = run(models_of("one"), conf, place)
    with pytest.raises(RuntimeError):
        run(Pipeline([Node(fail, "params:train", "never", name="fail")]), conf, place, hooks=hooks)
    run(models_of("one"), conf, place, hooks=hooks)
    _, runs = found(place)
    assert sorted(each.info.status for each in runs) == ["FAILED", *["FINISHED"] * 4]
    parents = [each.data.tags.get("mlflow.parentRunId") for each in runs if each.info.run_name == "one"]
    assert len(set(parents)) == 2


def test_a_server_that_is_down_costs_one_warning_and_not_the_run(place, conf, caplog) -> None:
    (place / "file").write_text("")
    with caplog.at_level(logging.WARNING, logger="recpipe"):
        run(models_of("one"), conf | {"tracking_uri": "sqlite:///file/m.db"}, place)
    assert [record.getMessage()[:23] for record in caplog.records] == ["MLflow tracking failed "]


def test_switched_off_it_does_nothing(place, conf) -> None:
    run(models_of("one"), conf | {"enabled": False}, place)
    assert found(place)[1] == []


def test_a_run_cut_off_without_an_error_is_marked_killed_at_exit(place, conf) -> None:
    hooks = TrackingHooks()
    hooks.after_context_created(SimpleNamespace(project_path=place, config_loader={"mlflow": conf}))
    hooks.before_pipeline_run(
        {"pipeline_names": None, "env": "", "run_id": ""}, Pipeline([]), catalog_in(place)
    )
    assert hooks._runs is not None
    hooks._runs.guard(hooks._runs._killed)
    _, runs = found(place)
    assert [each.info.status for each in runs] == ["KILLED"]


def test_an_unknown_kind_of_tracking_in_the_catalog_is_an_error(place, conf) -> None:
    hooks = TrackingHooks()
    hooks.after_context_created(SimpleNamespace(project_path=place, config_loader={"mlflow": conf}))
    catalog = catalog_in(place)
    catalog["odd"] = MemoryDataset(metadata={"mlflow": "metric"})
    hooks.before_pipeline_run({"pipeline_names": None, "env": "", "run_id": ""}, Pipeline([]), catalog)
    with pytest.raises(
        ValueError,
        match="of odd in the catalog is 'metric'; allowed: metrics, numbers, curves, artifact, figure",
    ):
        hooks.after_dataset_saved("odd", {})


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert flat({"a": {"b": [1, 2]}, "c": None}, "x") == {"x.a.b": "[1, 2]", "x.c": "None"}
    assert flat("v" * 600, "x@y")["x_at_y"] == "v" * 500
    assert allowed("hit@5 (all)") == "hit_at_5 _all_"
    assert metric_values({"test": {"a": True, "b": "x", "c": math.inf, "d": 1}}) == {"test/d": 1.0}
