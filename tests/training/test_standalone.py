"""Training without Kedro, on data that Kedro prepared: the same bundles, in the same places."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import recpipe.training.standalone as command
from recpipe.config import ConfigError, Configuration
from recpipe.evaluation.evaluate import validator
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.registry import model_info
from recpipe.training.bundle import Bundle, load_bundle
from recpipe.training.standalone import DataFolder, main

pytestmark = pytest.mark.slow

DATASET = "online_retail"


@pytest.fixture(scope="module")
def project_folder(tmp_path_factory, whole_run_with_ids) -> Path:
    """A project with a SASRec and baselines trained by Kedro, embeddings and semantic ids."""
    folder = tmp_path_factory.mktemp("standalone") / "project"
    shutil.copytree(whole_run_with_ids[0], folder, symlinks=True)
    return folder


def train(folder: Path, into: Path, *models: str, options: tuple[str, ...] = ()) -> int:
    paths = ["--data", str(folder / "data/test"), "--conf", str(folder / "conf"), "--env", "test"]
    return main([*paths, "--into", str(into), "--dataset", DATASET, "--models", *models, *options])


def latest_bundle(root: Path, model: str) -> Bundle:
    return load_bundle(latest_folder(root, model))


def latest_folder(root: Path, model: str) -> Path:
    return max((root / "06_models" / DATASET / model / "seed_42/bundle").glob("*/bundle"))


def test_a_profile_that_only_kedro_resolves_is_refused(tmp_path, project):
    folder = ["--data", str(tmp_path), "--conf", str(project / "conf"), "--dataset", DATASET, "--models", "popular"]
    with pytest.raises(ConfigError, match=r"profile is auto, which `kedro run` resolves.*profile=sparse"):
        main([*folder, "--params", f"datasets.{DATASET}.profile=auto"])


@pytest.mark.parametrize("model", ["popular", "sasrec"])
def test_the_bundle_equals_that_of_kedro(project_folder, tmp_path, model):
    train(project_folder, tmp_path, model)
    ours, theirs = latest_bundle(tmp_path, model), latest_bundle(project_folder / "data/test", model)
    assert ours.protocol.id == theirs.protocol.id
    assert ours.titles == theirs.titles
    np.testing.assert_array_equal(ours.train_events, theirs.train_events)
    assert ours.model.config == theirs.model.config
    tensors, expected = ours.model.state_dict(), theirs.model.state_dict()
    assert list(tensors) == list(expected)
    assert all(tensor.equal(expected[name]) for name, tensor in tensors.items())
    assert ours.training["settings"] == theirs.training["settings"]


def test_a_refit_equals_that_of_kedro_and_is_made_once(project_folder, tmp_path, session_in, caplog):
    caplog.set_level(logging.INFO)
    with session_in(project_folder, env="test", runtime_params={"model": "sasrec+popular"}) as session:
        session.run(pipeline_names=["refit"])
    for _ in range(2):
        assert train(project_folder, tmp_path, "sasrec", "popular", options=("--refit",)) == 0
    assert caplog.text.count("was trained with the same settings before") == 2
    for model in ("sasrec", "popular"):
        folders = [
            root / "06_models" / DATASET / model / "seed_42" for root in (tmp_path, project_folder / "data/test")
        ]
        (ours,), (theirs,) = ([*folder.glob("production/*/production")] for folder in folders)
        ours, theirs = load_bundle(ours), load_bundle(theirs)
        expected = theirs.model.state_dict()
        assert all(tensor.equal(expected[name]) for name, tensor in ours.model.state_dict().items())
        assert ours.training["production"] == theirs.training["production"]
    with pytest.raises(ValueError, match=r"refit needs online_retail/svd/seed_42 trained .* and evaluated"):
        train(project_folder, tmp_path, "svd", options=("--refit",))


def test_models_trained_without_kedro_are_evaluated_by_it_and_refitted_without_it(project_folder, tmp_path, session_in):
    into = project_folder / "data/test"
    train(project_folder, into, "tiger")
    train(project_folder, into, "setrec")  # reads the item vectors of the SASRec that Kedro trained
    with session_in(project_folder, env="test", runtime_params={"model": "tiger+setrec"}) as session:
        session.run(pipeline_names=["evaluate"])
    for model in ("tiger", "setrec"):
        reporting = into / "08_reporting" / DATASET / model / "seed_42"
        assert pq.read_table(reporting / "curves.parquet")["epoch"].to_pylist() == [1, 2]
        metrics = json.loads(max(reporting.glob("metrics.json/*/metrics.json")).read_text())
        bundle = latest_bundle(into, model)
        ranks = rank_fold(bundle.model, DataFolder(into, DATASET).test(), exclude_seen=False, k=10).ranks()
        assert metrics["test"]["ndcg@10"] == pytest.approx(metrics_from_ranks(ranks, cutoffs=[10])["ndcg@10"])
        assert latest_bundle(into, model).training["cost"]["device"] == "cpu"
    production = tmp_path / "06_models" / DATASET / "setrec/seed_42/production"
    for models, versions in ((["setrec"], 1), (["setrec"], 1), (["sasrec", "setrec"], 2)):
        train(project_folder, tmp_path, *models, options=("--refit",))
        assert len([*production.glob("*/production")]) == versions  # anew where the SASRec that it reads is newer


def test_the_same_command_continues_after_time_was_up(project_folder, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    models = ("popular", "sasrec")
    assert train(project_folder, tmp_path, *models, options=("--minutes", "0")) == 1
    assert "the same command continues with popular, sasrec" in caplog.text
    monkeypatch.setattr(command, "epoch_logger", lambda name, ends: lambda row: True)
    with pytest.raises(KeyboardInterrupt):  # as Ctrl-C: no other model is started
        train(project_folder, tmp_path, *models)
    monkeypatch.undo()
    first = latest_folder(tmp_path, "popular")
    assert train(project_folder, tmp_path, *models) == 0
    assert latest_folder(tmp_path, "popular") == first  # not trained again
    assert latest_bundle(tmp_path, "sasrec").training["cost"]["epochs"] == 2
    train(project_folder, tmp_path, "popular", options=("--params", "cold_users.novelty=.5"))
    assert latest_folder(tmp_path, "popular") != first  # other settings


def test_missing_files_and_bad_settings_are_refused_by_name(project_folder, tmp_path):
    configuration = Configuration.read(project_folder / "conf", "test", {"seed": 7}, model_info)
    with pytest.raises(ValueError, match="holds no split; run `kedro run"):
        DataFolder(tmp_path, DATASET).job(configuration.run("popular"), validator)
    with pytest.raises(ValueError, match="has no trained sasrec of seed 7"):
        DataFolder(project_folder / "data/test", DATASET, seed=7).job(configuration.run("setrec"), validator)
    with pytest.raises(ValueError, match="has no folder 'base'"):
        main(["--dataset", DATASET, "--models", "popular", "--conf", str(tmp_path)])
    for params, message in (
        ("models.tiger.dropuot=.3", r"did you mean 'dropout'"),
        ("models.tiger.train.max_epochs=many", "cannot be 'many'"),
        ("init_from=a/b/seed_1", "only `kedro run` begins with another run's weights"),
    ):
        with pytest.raises(ValueError, match=message):
            train(project_folder, tmp_path, "tiger", options=("--params", params))
    with pytest.raises(ValueError, match=r"unknown model 'tgier' \(did you mean 'tiger'"):
        train(project_folder, tmp_path, "tgier")


def test_kedro_and_its_libraries_are_not_imported():
    blocked = ("kedro", "polars", "mlflow", "omegaconf", "pydantic", "duckdb", "ibis")
    program = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport recpipe.training.standalone"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_torchrun_trains_by_two_processes_and_writes_one_bundle(project_folder, tmp_path):
    """`torchrun --nproc-per-node=2 -m recpipe.training.standalone`, against one process with the same steps."""
    still = "models.sasrec.dropout=0,train.max_epochs=2,train.device=cpu"
    train(project_folder, tmp_path / "one", "sasrec", options=("--params", still))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "recpipe.training.standalone"]
    paths = ["--data", str(project_folder / "data/test"), "--conf", str(project_folder / "conf"), "--env", "test"]
    arguments = ["--into", str(tmp_path / "two"), "--dataset", DATASET, "--models", "popular", "sasrec", "--params"]
    started = [*command, *paths, *arguments]
    refused = subprocess.run([*started, still], capture_output=True, text=True, check=False)
    assert "2 processes were started" in refused.stderr and "set train.devices=2" in refused.stderr
    assert refused.returncode != 0 and not (tmp_path / "two").exists()
    subprocess.run([*started, f"{still},train.devices=2"], capture_output=True, text=True, check=True)
    one, two = (latest_bundle(tmp_path / name, "sasrec") for name in ("one", "two"))
    assert len(list((tmp_path / "two/06_models" / DATASET / "sasrec/seed_42/bundle").glob("*/bundle"))) == 1
    assert [row["loss"] for row in two.curve] == pytest.approx([row["loss"] for row in one.curve], rel=1e-5)
    assert two.training["cost"]["devices"] == 2
    for name, tensor in one.model.state_dict().items():
        torch.testing.assert_close(two.model.state_dict()[name], tensor, atol=1e-5, rtol=0)
    assert latest_bundle(tmp_path / "two", "popular").train_events.sum() == two.train_events.sum()
