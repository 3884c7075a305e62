"""Training without Kedro: on what Kedro prepared, to the same bundle, left where Kedro looks for it."""

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

import recpipe.training.standalone as command
from recpipe.config import Configuration
from recpipe.evaluation.evaluate import validator
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.registry import model_info
from recpipe.training.bundle import Bundle, load_bundle
from recpipe.training.standalone import DataFolder, main

DATASET = "online_retail"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, whole_run) -> Path:
    """A project in which Kedro has trained a SASRec and baselines, beside ids and vectors that others can read."""
    folder = tmp_path_factory.mktemp("standalone") / "project"
    shutil.copytree(whole_run[0], folder, symlinks=True)
    return folder


def train(folder: Path, into: Path, *models: str, more: tuple[str, ...] = ()) -> int:
    places = ["--data", str(folder / "data/test"), "--conf", str(folder / "conf"), "--env", "test"]
    return main([*places, "--into", str(into), "--dataset", DATASET, "--models", *models, *more])


def latest(root: Path, model: str) -> Bundle:
    """Of Kedro's own place for bundles."""
    return load_bundle(latest_folder(root, model))


def latest_folder(root: Path, model: str) -> Path:
    return max((root / "06_models" / DATASET / model / "seed_42/bundle").glob("*/bundle"))


@pytest.mark.parametrize("model", ["popular", "sasrec"])
def test_it_is_the_bundle_that_kedro_makes(prepared, tmp_path, model):
    train(prepared, tmp_path, model)
    made, expected = latest(tmp_path, model), latest(prepared / "data/test", model)
    assert made.protocol.id == expected.protocol.id
    assert made.titles == expected.titles
    np.testing.assert_array_equal(made.train_events, expected.train_events)
    assert made.model.config == expected.model.config
    mine, other = made.model.state_dict(), expected.model.state_dict()
    assert list(mine) == list(other)
    for name, tensor in mine.items():
        assert tensor.equal(other[name]), name
    assert made.training["settings"] == expected.training["settings"]


def test_kedro_judges_what_was_trained_elsewhere(prepared, tmp_path, session_in):
    into = prepared / "data/test"
    train(prepared, into, "tiger")
    train(prepared, into, "setrec")  # which reads the items of the SASRec that Kedro trained
    with session_in(prepared, env="test", runtime_params={"model": "tiger+setrec"}) as session:
        session.run(pipeline_names=["evaluate"])
    for model in ("tiger", "setrec"):
        reporting = into / "08_reporting" / DATASET / model / "seed_42"
        assert pq.read_table(reporting / "curves.parquet")["epoch"].to_pylist() == [1, 2]
        found = json.loads(max(reporting.glob("metrics.json/*/metrics.json")).read_text())
        bundle = latest(into, model)
        again = rank_fold(bundle.model, DataFolder(into, DATASET).test(), exclude_seen=False, k=10).ranks()
        assert found["test"]["ndcg@10"] == pytest.approx(metrics_from_ranks(again, cutoffs=[10])["ndcg@10"])
        assert latest(into, model).training["cost"]["device"] == "cpu"


def test_what_time_cut_off_goes_on_with_what_is_not_done(prepared, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    models = ("popular", "sasrec")
    assert train(prepared, tmp_path, *models, more=("--minutes", "0")) == 1
    assert "the same command goes on with popular, sasrec" in caplog.text
    monkeypatch.setattr(command, "epoch_logger", lambda name, ends: lambda row: True)
    with pytest.raises(KeyboardInterrupt):  # as of Ctrl-C: no other model is begun
        train(prepared, tmp_path, *models)
    monkeypatch.undo()
    first = latest_folder(tmp_path, "popular")
    assert train(prepared, tmp_path, *models) == 0
    assert latest_folder(tmp_path, "popular") == first  # not made twice
    assert latest(tmp_path, "sasrec").training["cost"]["epochs"] == 2
    train(prepared, tmp_path, "popular", more=("--params", "cold_users.novelty=.5"))
    assert latest_folder(tmp_path, "popular") != first  # other settings are another training


def test_what_is_missing_is_named(prepared, tmp_path):
    configuration = Configuration.read(prepared / "conf", "test", {"seed": 7}, model_info)
    with pytest.raises(ValueError, match="holds no split; run `kedro run"):
        DataFolder(tmp_path, DATASET).job(configuration.run("popular"), validator)
    with pytest.raises(ValueError, match="has no trained sasrec of seed 7"):
        DataFolder(prepared / "data/test", DATASET, seed=7).job(configuration.run("setrec"), validator)
    with pytest.raises(ValueError, match="has no folder 'base'"):
        main(["--dataset", DATASET, "--models", "popular", "--conf", str(tmp_path)])
    for params, message in (
        ("models.tiger.dropuot=.3", r"did you mean 'dropout'"),
        ("models.tiger.train.max_epochs=many", "cannot be 'many'"),
        ("init_from=a/b/seed_1", "only `kedro run` begins with another run's weights"),
    ):
        with pytest.raises(ValueError, match=message):
            train(prepared, tmp_path, "tiger", more=("--params", params))
    with pytest.raises(ValueError, match=r"unknown model 'tgier' \(did you mean 'tiger'"):
        train(prepared, tmp_path, "tgier")


def test_it_needs_no_kedro():
    refused = ("kedro", "polars", "mlflow", "omegaconf", "pydantic", "duckdb", "ibis")
    program = (
        f"import sys\nfor name in {refused}: sys.modules[name] = None\nimport recpipe.training.standalone"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
