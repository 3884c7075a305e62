"""Runs of small pipelines, as MLflow's own client finds them in SQLite afterwards."""

from __future__ import annotations

import logging
import math
import os
import platform
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import plotly.graph_objects as go
import plotly.io as pio
import pyarrow as pa
import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Node, Pipeline
from kedro.runner import ParallelRunner, SequentialRunner
from pydantic import BaseModel

from recpipe.config import RunConfig
from recpipe.data.atomic import process_start
from recpipe.evaluation.evaluate import Evaluation
from recpipe.hooks import TrackingHooks
from recpipe.hooks.mlflow_runs import allowed, flat, metric_values, numbers
from recpipe.io.datasets import FiguresDataset, TextDataset
from recpipe.progress import report_epoch

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


def train(params: dict, block: Block) -> SimpleNamespace:
    """As much of a bundle as is tracked; the first epoch was logged when it ended."""
    report_epoch(CURVE[0])
    return SimpleNamespace(curve=CURVE)


def evaluate(bundle: SimpleNamespace, params: dict) -> Evaluation:
    return Evaluation(METRICS, pa.table({}), pa.table({}))


def fail(params: dict) -> str:
    raise RuntimeError("no such luck")


def models_of(*names: str) -> Pipeline:
    """Wired as in recpipe: the names of datasets that cross groups have no dot."""
    return Pipeline([node for name in names for node in _nodes(name)])


def _nodes(name: str) -> list[Node]:
    bundle, evaluation = f"{name}_bundle", f"{name}_evaluation"
    return [
        Node(train, ["params:train", "params:block"], bundle, name="train", namespace=name),
        Node(evaluate, [bundle, "params:train"], evaluation, name="evaluate", namespace=name),
    ]


@pytest.fixture
def conf() -> dict:
    return {"enabled": True, "tracking_uri": "sqlite:///db/m.db", "artifacts": "mlruns", "experiment_prefix": "t-"}


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
        "params:datasets.shop": MemoryDataset({"title": "Shop"}),
        "steps": TextDataset(filepath=str(folder / "steps.txt"), metadata={"mlflow": "artifact"}),
        "figures": FiguresDataset(path=str(folder / "figures"), preview="bars", metadata={"mlflow": "figures"}),
        "protocol": MemoryDataset(metadata={"mlflow": "protocol"}),
        "quality": MemoryDataset(metadata={"mlflow": "numbers"}),
        "one_recommendations": MemoryDataset(metadata={"mlflow": "lists"}, copy_mode="assign"),
    }
    for name in ("one", "two"):
        entries[f"{name}_evaluation"] = MemoryDataset(metadata={"mlflow": "metrics"}, copy_mode="assign")
        entries[f"{name}_bundle"] = MemoryDataset(metadata={"mlflow": "curves"}, copy_mode="assign")
        entries[f"{name}_production"] = MemoryDataset(metadata={"mlflow": "production"}, copy_mode="assign")
    return DataCatalog(entries)


def run(pipeline: Pipeline, conf: dict, place: Path, *, hooks: TrackingHooks | None = None) -> TrackingHooks:
    hooks = hooks or TrackingHooks()
    manager = _create_hook_manager()
    manager.register(hooks)
    manager.hook.after_context_created(context=SimpleNamespace(project_path=place, config_loader={"mlflow": conf}))
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
    steps = Node(lambda datasets, dataset: "text", ["params:datasets.shop", "params:dataset"], "steps", name="shared")
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
    assert {"protocol": "abcd1234", "seed": "3", "model": "one", "dataset": "shop"}.items() <= one.data.tags.items()
    assert "commit" not in one.data.tags
    losses = [(point.step, point.value) for point in client.get_metric_history(one.info.run_id, "curve/loss")]
    assert losses == [(5, 2.0), (10, 1.0)]
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["steps.txt"]
    assert (place / "mlruns").is_dir()


def test_a_production_bundle_has_a_run_of_its_own_that_names_what_it_stands_for_and_has_no_metrics(place, conf) -> None:
    source = {"run": "shop/one/seed_3", "version": "v1", "protocol": "abcd1234", "metrics": {"ndcg@10": 0.25}}
    training = {
        "seed": 3,
        "cost": {"train_seconds": 2.5},
        "settings": {"dim": 8},
        "production": {"made_by": "refit", "stands_for": source},
    }

    def refit(bundle: SimpleNamespace) -> SimpleNamespace:
        report_epoch(CURVE[0])
        return SimpleNamespace(curve=[{"step": 5, "loss": 3.0}], training=training)

    run(
        models_of("one") + Pipeline([Node(refit, "one_bundle", "one_production", name="refit", namespace="one")]),
        conf,
        place,
    )
    by_name = {each.info.run_name: each for each in found(place)[1]}
    assert set(by_name) == {"train+evaluate one", "one", "one production"}
    production, measured = by_name["one production"], by_name["one"]
    assert {
        "refit_of": "shop/one/seed_3",
        "refit_of_version": "v1",
        "model": "one",
    }.items() <= production.data.tags.items()
    assert "refit_of" not in measured.data.tags
    assert set(production.data.metrics) == {"cost/train_seconds", "curve/loss"}
    assert production.data.params["settings.dim"] == "8"


def test_processes_of_a_parallel_runner_are_not_tracked_and_a_warning_says_so(place, conf, caplog) -> None:
    hooks = TrackingHooks()
    hooks.after_context_created(SimpleNamespace(project_path=place, config_loader={"mlflow": conf}))
    pipeline, params = models_of("one"), {"pipeline_names": ["train"], "runner": str(ParallelRunner())}
    hooks.before_pipeline_run(params, pipeline, catalog_in(place))
    hooks.before_node_run(pipeline.nodes[0], {})
    hooks.after_pipeline_run()
    assert "ParallelRunner: no MLflow tracking" in caplog.text
    assert found(place)[1] == []


def test_figures_are_artifacts_in_a_folder_and_empty_ones_are_none(place, conf) -> None:
    def draw(dataset: str) -> dict[str, go.Figure]:
        return {"bars": go.Figure(go.Bar(y=[1, 2])), "nothing": go.Figure()}

    run(Pipeline([Node(draw, "params:dataset", "figures", name="draw", namespace="report")]), conf, place)
    client, (parent,) = found(place)
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["figures"]
    (file,) = client.list_artifacts(parent.info.run_id, "figures")
    assert file.path == "figures/bars.json"
    assert pio.read_json(client.download_artifacts(parent.info.run_id, file.path)).data[0].y == (1, 2)
    assert (place / "figures" / "nothing.json").is_file()  # the catalog has it all the same


def test_ids_have_a_run_of_their_own_and_what_all_share_goes_to_the_parent(place, conf) -> None:
    def split(dataset: str) -> SimpleNamespace:
        return SimpleNamespace(protocol_fields={"id": "abcd1234", "sizes": {"users": 7}})

    def measure(dataset: str) -> dict:
        return {"levels": [{"usage": 0.9}, {"usage": 0.5}]}

    nodes = [
        Node(split, "params:dataset", "protocol", name="split"),
        Node(measure, "params:dataset", "quality", name="measure", namespace="text"),
    ]
    run(Pipeline(nodes), conf, place)
    client, runs = found(place)
    parent, text = sorted(runs, key=lambda each: "mlflow.parentRunId" in each.data.tags)
    assert text.info.run_name == "text"
    assert text.data.metrics == {"levels/1/usage": 0.9, "levels/2/usage": 0.5}
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["protocol.json"]


def test_numbers_of_batch_lists_are_metrics_of_the_models_run(place, conf) -> None:
    def lists(dataset: str) -> SimpleNamespace:
        return SimpleNamespace(summary={"model": "one", "users": 7, "users_per_second": 2.5})

    run(Pipeline([Node(lists, "params:dataset", "one_recommendations", name="lists", namespace="one")]), conf, place)
    _, runs = found(place)
    one = next(each for each in runs if each.info.run_name == "one")
    assert one.data.metrics == {"recommend/users": 7, "recommend/users_per_second": 2.5}


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
        run(models_of("one") + Pipeline([Node(fail, "one_evaluation", "never", name="z_fail")]), conf, place)
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
    hooks.before_pipeline_run({"pipeline_names": None, "env": "", "run_id": ""}, Pipeline([]), catalog_in(place))
    hooks.before_node_run(models_of("one").nodes[0], {"params:train": {"lr": 0.1}})
    runs = hooks._runs
    assert runs is not None
    runs._queue.shutdown()  # as at the end of the process
    runs._killed()
    _, runs = found(place)
    assert [each.info.status for each in runs] == ["KILLED"]


def test_runs_that_ctrl_c_left_open_are_marked_killed_by_the_next_run_of_the_process(place, conf) -> None:
    def stopped(params: dict) -> str:
        raise KeyboardInterrupt

    hooks = TrackingHooks()
    with pytest.raises(KeyboardInterrupt):
        run(Pipeline([Node(stopped, "params:train", "never", name="stop")]), conf, place, hooks=hooks)
    run(models_of("one"), conf, place, hooks=hooks)
    _, runs = found(place)
    assert sorted(each.info.status for each in runs) == ["FINISHED", "FINISHED", "KILLED"]


def test_runs_of_dead_processes_are_marked_killed_and_those_of_live_ones_are_not(place, conf, monkeypatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "gpu_1")
    run(models_of("one"), conf, place)
    client, (finished, *_) = found(place)
    here = platform.node()
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    processes = {
        "ended": f"{here} {ended.pid} 7",
        "another process under the same id": f"{here} {os.getpid()} 1",
        "live": f"{here} {os.getpid()} {process_start(os.getpid())}",
        "another machine": f"not-{here} {ended.pid} 7",
        "a machine of a similar name": f"gpu-1 {ended.pid} 7",
    }
    for name, process in processes.items():
        client.create_run(finished.info.experiment_id, run_name=name, tags={"process": process})
    client.create_run(finished.info.experiment_id, run_name="of an earlier version")
    run(models_of("one"), conf, place)
    status = {each.info.run_name: each.info.status for each in found(place)[1]}
    assert {name for name, value in status.items() if value == "KILLED"} == {*list(processes)[:2]}
    assert {name for name, value in status.items() if value == "RUNNING"} == {
        *list(processes)[2:],
        "of an earlier version",
    }


def test_a_deleted_experiment_says_how_to_restore_it(place, conf, caplog) -> None:
    run(models_of("one"), conf, place)
    client, runs = found(place)
    client.delete_experiment(runs[0].info.experiment_id)
    caplog.clear()
    run(models_of("one"), conf, place)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "mlflow experiments restore --experiment-id 1" in message and "tracking_uri in conf" not in message
    client.restore_experiment(runs[0].info.experiment_id)
    run(models_of("one"), conf, place)
    assert len(found(place)[1]) == 2 * len(runs)


@pytest.mark.parametrize("name", ["pct%41b", "q?x", "a#b c+d;e'f&g=ü", "a@b:c"])
def test_the_database_lies_in_the_project_whatever_its_name(tmp_path, database, conf, name) -> None:
    place = tmp_path / name
    (place / "db").mkdir(parents=True)
    (place / "db" / "m.db").write_bytes(database.read_bytes())
    run(models_of("one"), conf, place)
    rows = sqlite3.connect(place / "db" / "m.db").execute("SELECT name, status FROM runs").fetchall()
    assert sorted(rows) == [("one", "FINISHED"), ("train+evaluate one", "FINISHED")]
    assert sorted(each.name for each in tmp_path.iterdir()) == [name]


def test_an_unknown_kind_of_tracking_in_the_catalog_is_an_error(place, conf) -> None:
    hooks = TrackingHooks()
    hooks.after_context_created(SimpleNamespace(project_path=place, config_loader={"mlflow": conf}))
    catalog = catalog_in(place)
    catalog["odd"] = MemoryDataset(metadata={"mlflow": "metric"})
    hooks.before_pipeline_run({"pipeline_names": None, "env": "", "run_id": ""}, Pipeline([]), catalog)
    with pytest.raises(
        ValueError,
        match="of odd in the catalog is 'metric'; allowed: metrics, protocol, numbers, audit, lists, .*figures",
    ):
        hooks.after_dataset_saved("odd", {}, Node(fail, "params:train", "odd"))


def test_names_and_values_are_what_mlflow_takes() -> None:
    assert flat({"a": {"b": [1, 2]}, "c": None}, "x") == {"x.a.b": "[1, 2]", "x.c": "None"}
    assert flat("v" * 600, "x@y")["x_at_y"] == "v" * 500
    run_config = RunConfig(
        name="m", dataset="d", type="t", settings={"dim": 8}, train={"ema": None}, side={}, cold_users={}
    )
    found = flat(run_config, "models.m")
    assert (found["models.m.dim"], found["models.m.train.ema"]) == ("8", "None")
    assert allowed("hit@5 (all)") == "hit_at_5 _all_"
    assert metric_values({"test": {"a": True, "b": "x", "c": math.inf, "d": 1}}) == {"test/d": 1.0}
    assert numbers({"a": [{"b": 1}, {"b": True}], "c": {"d": 2.5, "e": "x"}}) == {"a/1/b": 1.0, "c/d": 2.5}


def test_an_address_where_no_server_listens_costs_a_warning_at_once(place, conf, caplog) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    run(models_of("one"), conf | {"tracking_uri": f"http://user:secret@127.0.0.1:{port}"}, place)
    assert f"no tracking server answers at 127.0.0.1:{port}" in caplog.text and "secret" not in caplog.text
    assert time.monotonic() - started < 60  # MLflow's own seven tries take minutes
