"""Tuning from the command line: a study, the tuned model in the conf and its training, the report, MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recpipe.config import Configuration
from recpipe.training.variants import with_overrides

pytestmark = pytest.mark.slow

DATASET = "online_retail"
LOCAL = "conf/local/parameters/models"
SVD = {"model": "svd", "tune": {"trials": 4}}


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, project_copier) -> Path:
    """A copy of the project, with studies once the first test has run."""
    return project_copier(tmp_path_factory.mktemp("tune") / "project")


def run(folder: Path, session_in, *pipelines: str, env: str = "test", **params) -> None:
    with session_in(folder, env=env, runtime_params=params) as session:
        session.run(pipeline_names=list(pipelines))


def result(folder: Path, model: str) -> dict:
    return json.loads((folder / f"data/test/08_reporting/{DATASET}/{model}/seed_42/tuning.json").read_text())


def test_the_best_settings_are_a_model_and_the_report_shows_the_study(tuned, session_in):
    from mlflow import MlflowClient

    run(tuned, session_in, "ingest", "train", "evaluate", "tune", "report", **SVD)
    study = result(tuned, "svd")
    assert len(study["trials"]) == 4
    assert study["trials"][0]["configured"]
    best = next(row for row in study["trials"] if row["number"] == study["best"])
    assert best["value"] == max(row["value"] for row in study["trials"])
    configuration = Configuration.read(tuned / "conf", overrides={"dataset": DATASET})
    config = configuration.run("svd_tuned")
    assert config.settings == with_overrides(configuration.run("svd"), best["settings"]).settings
    page = (tuned / f"data/test/08_reporting/{DATASET}/report.html").read_text()
    assert 'id="tuning_history_svd_seed_42-data"' in page
    assert study["command"].endswith(f"--params dataset={DATASET},model=svd_tuned,seeds=42+123+2023")

    client = MlflowClient(tracking_uri=f"sqlite:///{tuned}/data/test/mlflow.db")
    experiments = [each.experiment_id for each in client.search_experiments()]
    trials = client.search_runs(experiments, "tags.trial != ''")
    parents = {each.data.tags["mlflow.parentRunId"] for each in trials}
    assert [client.get_run(parent).data.tags["model"] for parent in parents] == ["svd"]
    logged = {int(each.data.tags["trial"]): each.data for each in trials}
    assert {number: data.metrics["value"] for number, data in logged.items()} == {
        row["number"]: row["value"] for row in study["trials"]
    }
    assert logged[best["number"]].params == {name: str(value) for name, value in best["settings"].items()}
    assert {each.info.status for each in trials} == {"FINISHED"}


def test_the_same_command_tells_mlflow_only_of_new_trials(tuned, session_in):
    from mlflow import MlflowClient

    run(tuned, session_in, "tune", model="svd", tune={"trials": 5})
    client = MlflowClient(tracking_uri=f"sqlite:///{tuned}/data/test/mlflow.db")
    trials = client.search_runs([each.experiment_id for each in client.search_experiments()], "tags.trial != ''")
    assert sorted(int(each.data.tags["trial"]) for each in trials) == [0, 1, 2, 3, 4]


def test_tuning_splits_a_log_that_is_not_split(tuned, session_in):
    for name in ("protocol.json", "train_set.arrow", "valid_set.arrow", "test_set.arrow", "vocabulary.parquet"):
        (tuned / f"data/test/05_model_input/{DATASET}/{name}").unlink(missing_ok=True)
    run(tuned, session_in, "tune", model="svd", tune={"trials": 5})  # the study is finished
    assert len(result(tuned, "svd")["trials"]) == 5


def test_tuning_splits_a_log_that_is_split_by_another_protocol(tuned, session_in):
    protocol = tuned / f"data/test/05_model_input/{DATASET}/protocol.json"
    for split in ("ratio", "leave_one_out"):
        run(tuned, session_in, "tune", model="svd", tune={"trials": 1}, protocol={"split": split})
        stored = json.loads(protocol.read_text())
        assert stored["split"] == split
        assert result(tuned, "svd")["protocol"] == stored["id"]


def test_the_tuned_model_is_trained_like_any_other(tuned, session_in):
    """The environment local has no small settings, so that a closed-form model is taken."""
    run(tuned, session_in, "ingest", "train", env="local", model="svd_tuned", data="data/local")
    bundles = (tuned / f"data/local/06_models/{DATASET}/svd_tuned/seed_42/bundle").glob("*/bundle/config.json")
    (config,) = [json.loads(path.read_text()) for path in bundles]
    expected = Configuration.read(tuned / "conf", overrides={"dataset": DATASET}).run("svd_tuned").settings
    assert config["config"].items() >= expected.items()


def test_a_model_trained_by_gradient_is_pruned_on_its_curve_and_overrides_are_in_the_tuned_model(tuned, session_in):
    window = {"sasrec": {"train": {"window": 7}}}
    run(tuned, session_in, "tune", model="sasrec", tune={"trials": 3}, models=window)
    rows = result(tuned, "sasrec")["trials"]
    assert {row["state"] for row in rows} <= {"complete", "pruned"}
    assert all(row["curve"] and row["epochs"] <= 2 for row in rows)
    best = next(row for row in rows if row["number"] == result(tuned, "sasrec")["best"])
    trial = Configuration.read(tuned / "conf", "test", overrides={"dataset": DATASET, "models": window}).run("sasrec")
    trial = with_overrides(trial, best["settings"])
    config = Configuration.read(tuned / "conf", overrides={"dataset": DATASET}).run("sasrec_tuned")
    assert config.train == trial.train
    assert config.train["window"] == 7
    assert {"attention_dropout": 0.0, **config.settings}.items() >= trial.settings.items()  # the default


def test_mistakes_are_errors_before_anything_is_trained(tuned, session_in):
    def tune(message: str, **params) -> None:
        with pytest.raises(ValueError, match=message):
            run(tuned, session_in, "tune", **params)

    wrong = {"factor": {"low": 1, "high": 2}}
    tune(r"unknown setting in models.svd.search_space 'factor' \(did you mean 'factors'", model="svd",
         models={"svd": {"search_space": wrong}})  # fmt: skip
    tune(r"unknown parameter 'tune.trails'", model="svd", tune={"trails": 3})
    tune(r"mysql://me:\*\*\*@127.0.0.1:9/x .*cannot be reached", model="svd",
         tune={"storage": "mysql://me:secret@127.0.0.1:9/x"})  # fmt: skip
    tune(r"the study .* was begun with another configuration: .*factors.high was 350 and is 128", model="svd",
         models={"svd": {"search_space": {"factors": {"high": 20}}}})  # fmt: skip
    tune(r"protocol.split is none", model="svd", protocol={"split": "none"})
    file = tuned / LOCAL / "svd_tuned.yml"
    file.write_text("models: {svd_tuned: {extends: svd, factors: 3}}\n")
    tune(r"svd_tuned.yml was not written by the pipeline tune", model="svd")
    file.unlink()
    (file.parent / "mine.yml").write_text("models: {svd_tuned: {extends: svd, factors: 3}}\n")
    with pytest.raises(ValueError, match=r"there is a model svd_tuned already .*mine.yml"):
        run(tuned, session_in, "tune", env="local", model="svd", data="data/local")
