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

import recpipe.experiments.__main__ as command
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import rank_fold
from recpipe.experiments.__main__ import changes_of, main
from recpipe.experiments.prepared import Conf, Prepared
from recpipe.training.bundle import Bundle, load_bundle

DATASET = "online_retail"
TINY = {"dim": 16, "heads": 1, "head_dim": 16, "feed_forward": 32, "layers": 1, "decoder_layers": 1}
SETTINGS = {  # of conf/test, which only Kedro merges into conf/base
    "sasrec": {"dim": 16, "layers": 1, "train.max_epochs": 2},
    "setrec": {**TINY, "tokens": 2, "train.max_epochs": 1},
    "tiger": {**TINY, "train.max_epochs": 1, "train.batch_tokens": 4000},
    "popular": {},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, whole_run) -> Path:
    """A project in which Kedro has trained a SASRec and baselines, beside ids and vectors that others can read."""
    folder = tmp_path_factory.mktemp("experiments") / "project"
    shutil.copytree(whole_run[0], folder, symlinks=True)
    return folder


def train(folder: Path, into: Path, *models: str, more: tuple[str, ...] = ()) -> int:
    said = [f"{name}.{key}={json.dumps(value)}" for name in models for key, value in SETTINGS[name].items()]
    places = ["--data", str(folder / "data/test"), "--conf", str(folder / "conf/base/parameters")]
    return main(
        [*places, "--into", str(into), "--dataset", DATASET, "--models", *models, "--set", *said, *more]
    )


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
    if model == "popular":  # a SASRec of conf/test has other training settings
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
        assert pq.read_table(reporting / "curves.parquet")["epoch"].to_pylist() == [1]
        found = json.loads(max(reporting.glob("metrics.json/*/metrics.json")).read_text())
        bundle = latest(into, model)
        again = rank_fold(bundle.model, Prepared(into, DATASET).test(), exclude_seen=False, k=10).ranks()
        assert found["test"]["ndcg@10"] == pytest.approx(metrics_from_ranks(again, cutoffs=[10])["ndcg@10"])
        assert latest(into, model).training["cost"]["device"] == "cpu"


def test_what_time_cut_off_goes_on_with_what_is_not_done(prepared, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    models = ("popular", "sasrec")
    assert train(prepared, tmp_path, *models, more=("--minutes", "0")) == 1
    assert "the same command goes on with popular, sasrec" in caplog.text
    monkeypatch.setattr(command, "told", lambda name, ends: lambda row: True)
    with pytest.raises(KeyboardInterrupt):  # as of Ctrl-C: no other model is begun
        train(prepared, tmp_path, *models)
    monkeypatch.undo()
    first = latest_folder(tmp_path, "popular")
    assert train(prepared, tmp_path, *models) == 0
    assert latest_folder(tmp_path, "popular") == first  # not made twice
    assert latest(tmp_path, "sasrec").training["cost"]["epochs"] == 2
    train(prepared, tmp_path, "popular", more=("--set", "popular.train.patience=3"))
    assert latest_folder(tmp_path, "popular") != first  # other settings are another training


def test_what_is_missing_is_named(prepared, tmp_path):
    conf = Conf(prepared / "conf/base/parameters", DATASET)
    spec, other = conf.model("popular")
    with pytest.raises(ValueError, match="holds no split; run `kedro run"):
        Prepared(tmp_path, DATASET).material("popular", spec, other, conf)
    with pytest.raises(ValueError, match="is missing; give the folder"):
        Conf(tmp_path, DATASET).model("popular")
    with pytest.raises(ValueError, match=r"has no 'tgier' \(did you mean 'tiger'\?\)"):
        conf.model("tgier")
    with pytest.raises(ValueError, match="dropuot"):
        conf.model("tiger", {"dropuot": 0.3})
    with pytest.raises(ValueError, match="optimiser.name cannot be set"):
        conf.model("sasrec", {"optimiser.name": "adam"})
    spec, other = conf.model("setrec")
    with pytest.raises(ValueError, match="has no trained sasrec of seed 7"):
        Prepared(prepared / "data/test", DATASET, seed=7).material("setrec", spec, other, conf)
    with pytest.raises(SystemExit):
        main(["--dataset", DATASET, "--models", "popular", "--set", "sasrec.dim=3"])


def test_changes_are_yaml_and_each_models_own():
    said = [
        "tiger.dropout=.3",
        "sasrec.dim=8",
        "tiger.train.optimiser={learning_rate: 1e-3}",
        "tiger.one_pass=false",
    ]
    changes = changes_of("tiger", said)
    assert changes == {"dropout": 0.3, "train.optimiser": {"learning_rate": 0.001}, "one_pass": False}


def test_it_needs_no_kedro():
    refused = ("kedro", "polars", "mlflow", "omegaconf", "pydantic", "duckdb", "ibis")
    program = (
        f"import sys\nfor name in {refused}: sys.modules[name] = None\nimport recpipe.experiments.__main__"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
