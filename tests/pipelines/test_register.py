"""`kedro run --pipeline=register` on trained models of the bundled log, and what stops it before it starts."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
import pytest
from kedro.runner import ParallelRunner
from mlflow import MlflowClient

import recpipe
from recpipe.config.schema import RegisterConfig
from recpipe.training.bundle import load_bundle, save_bundle
from recpipe.training.bundle_folders import newest_bundle

pytestmark = pytest.mark.slow

DATASET = "online_retail"
BLOCK = {"name": "{dataset}-{model}", "bundle": "newest", "champion": "better", "metric": "ndcg@10", "level": 0.95}
FRAME = pd.DataFrame({"user_id": ["ann", "new"], "items": [["22423", "21754"], []]})


@pytest.fixture(scope="module")
def project(tmp_path_factory, project_copier) -> Path:
    """A copy of the project, with two models after the first test."""
    return project_copier(tmp_path_factory.mktemp("register") / "project")


def run(folder: Path, session_in, *pipelines: str, runner=None, **params: object) -> None:
    with session_in(folder, env="test", runtime_params={"register": {"name": "shop"}, **params}) as session:
        session.run(pipeline_names=list(pipelines), **({"runner": runner} if runner else {}))


def registration(folder: Path, model: str) -> dict:
    return json.loads((folder / "data/test/08_reporting" / DATASET / model / "seed_42/registration.json").read_text())


def store(folder: Path) -> MlflowClient:
    return MlflowClient(tracking_uri=f"sqlite:///{folder / 'data/test/mlflow.db'}")


def test_models_of_one_name_compete_for_the_alias(project, session_in) -> None:
    run(project, session_in, "ingest", "train", "evaluate", "register", model="popular")
    run(project, session_in, "train", "evaluate", "register", model="item_knn")
    first, second = registration(project, "popular"), registration(project, "item_knn")
    assert (first["version"], first["alias"], first["champion_before"]) == ("1", "champion", None)
    metrics = {}
    for model in ("popular", "item_knn"):
        (file,) = (project / "data/test/08_reporting" / DATASET / model / "seed_42/metrics.json").glob("*/metrics.json")
        metrics[model] = json.loads(file.read_text())["test"]["ndcg@10"]
    assert second["difference"] == pytest.approx(metrics["item_knn"] - metrics["popular"])
    assert second["alias"] == ("champion" if second["difference"] > 0 and second["p"] < 0.05 else "challenger")
    assert second["p"] < 0.05  # of the two, item_knn is far better


def test_the_registered_model_recommends_what_the_bundle_does(project) -> None:
    version = store(project).get_model_version_by_alias("shop", "champion")
    assert version.tags["model"] == "item_knn" and version.tags["made_by"] == "train"
    run = store(project).get_run(version.run_id)
    assert run.info.run_name == "item_knn" and run.info.status == "FINISHED"
    assert (project / "data/test/mlruns").as_uri() in version.source
    found = mlflow.pyfunc.load_model(version.source).predict(FRAME, params={"k": 5})
    bundle = recpipe.load_bundle(project / "data/test/06_models" / DATASET / "item_knn")
    expected = bundle.recommend(dict(zip(FRAME["user_id"], FRAME["items"], strict=True)), k=5)
    assert found["item_id"].tolist() == expected["item_id"].to_pylist()


def test_a_refit_of_the_champion_is_the_newest_bundle_and_takes_its_place(project, session_in) -> None:
    run_folder = project / "data/test/06_models" / DATASET / "item_knn/seed_42"
    measured = newest_bundle(run_folder)
    bundle, tags = load_bundle(measured), store(project).get_model_version_by_alias("shop", "champion").tags
    bundle.training["production"] = {
        "made_by": "refit",
        "stands_for": {
            "run": f"{DATASET}/item_knn/seed_42",
            "version": measured.parent.name,
            "protocol": tags["protocol"],
            "metrics": {"ndcg@10": registration(project, "item_knn")["difference"]},
        },
    }
    refit = run_folder / "production/2099-01-01T00.00.00.000Z/production"
    refit.mkdir(parents=True)
    save_bundle(bundle, refit)
    run(project, session_in, "register", model="item_knn")
    found = registration(project, "item_knn")
    assert (found["alias"], found["champion_before"], found["made_by"]) == ("champion", "2", "refit")
    assert found["reason"] == f"made by refit from {DATASET}/item_knn/seed_42, the run that the champion stands for"
    version = store(project).get_model_version_by_alias("shop", "champion")
    assert version.tags["bundle_version"] == refit.parent.name
    assert version.tags["measured_version"] == measured.parent.name


def test_a_bundle_without_an_evaluation_of_its_own_is_refused(project, session_in) -> None:
    run(project, session_in, "train", model="popular")
    with pytest.raises(ValueError, match="has no evaluation of its own: run `kedro run --pipelines=evaluate,register"):
        run(project, session_in, "register", model="popular")


def test_a_model_without_a_bundle_is_named_with_the_command(project, session_in) -> None:
    with pytest.raises(ValueError, match="no newest bundle in .*`kedro run --pipelines=train,evaluate --params "):
        run(project, session_in, "register", model="svd")
    with pytest.raises(ValueError, match="no production bundle in .*`kedro run --pipelines=refit --params "):
        run(project, session_in, "register", model="popular", register={"bundle": "production"})


def test_a_store_that_does_not_open_is_an_error_of_the_command(project, session_in) -> None:
    conf = project / "conf" / "test" / "mlflow.yml"
    text = conf.read_text()
    conf.write_text("tracking_uri: sqlite:///conf/base/mlflow.yml/m.db\n")  # a folder that is a file
    with pytest.raises(ValueError, match="MLflow has no run for item_knn: tracking failed"):
        run(project, session_in, "register", model="item_knn")
    conf.write_text(text)


def test_without_mlflow_nothing_starts(project_copy, session_in) -> None:
    with pytest.raises(ValueError, match="omit --runner"):
        run(project_copy, session_in, "register", model="popular", runner=ParallelRunner())
    conf = project_copy / "conf" / "test" / "mlflow.yml"
    conf.write_text(conf.read_text() + "enabled: false\n")
    with pytest.raises(ValueError, match="set enabled: true in conf/base/mlflow.yml"):
        run(project_copy, session_in, "register", model="popular")


def test_names_are_those_that_mlflow_allows() -> None:
    def name(text: str) -> str:
        return RegisterConfig(**BLOCK | {"name": text, "resamples": 10}).model_name("shop", "svd")

    assert (name("{dataset}-{model}"), name("Best of {dataset}")) == ("shop-svd", "Best of shop")
    for text in ("", " ", "a/b", "a:b", "{seed}", ".."):
        with pytest.raises(ValueError, match="register.name is"):
            name(text)
