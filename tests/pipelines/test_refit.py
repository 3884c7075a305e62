"""`kedro run --pipelines=refit` on a finished project, and whole runs of a log with nothing to hold out."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from recpipe.config import ConfigError
from recpipe.data.atomic import latest_version
from recpipe.data.sequence_builder import build_sequences
from recpipe.reporting.run_store import RunStore
from recpipe.training.bundle import load_bundle

pytestmark = pytest.mark.slow

DATASET = "online_retail"


@pytest.fixture(scope="module")
def finished(whole_run, tmp_path_factory) -> Path:
    """A finished project, copied, since tests here add to it."""
    folder = tmp_path_factory.mktemp("refit") / "project"
    return shutil.copytree(whole_run[0], folder, symlinks=True)


def run_folder(project: Path, model: str) -> Path:
    return project / "data/test/06_models" / DATASET / model / "seed_42"


def store(project: Path) -> RunStore:
    layers = ("08_reporting", "07_model_output", "06_models", "04_feature")
    return RunStore(*(project / "data/test" / layer / DATASET for layer in layers))


def listed(runs: RunStore) -> dict[str, list[str]]:
    kinds = ("metrics", "ranks", "recommendations", "curves", "bundles")
    return {kind: [*getattr(runs, kind)] for kind in kinds}


def test_models_are_refitted_on_the_whole_log_and_no_report_lists_them(finished, session_in) -> None:
    before = listed(store(finished))
    measured = {name: latest_version(run_folder(finished, name) / "bundle") for name in ("sasrec", "popular")}
    with session_in(finished, env="test", runtime_params={"model": "sasrec+popular"}) as session:
        session.run(pipeline_names=["refit"])
    log, _ = build_sequences(finished / "data/test/03_primary" / DATASET / "interactions.parquet")
    for name, version in measured.items():
        bundle = load_bundle(latest_version(run_folder(finished, name) / "production"))
        assert bundle.train_events.sum() == len(log.items)
        stands_for = bundle.training["production"]["stands_for"]
        assert (stands_for["run"], stands_for["version"]) == (f"{DATASET}/{name}/seed_42", version.parent.name)
        (metrics,) = store(finished).evaluations(f"{name}/seed_42").values()
        assert (stands_for["protocol"], stands_for["metrics"]) == (metrics["protocol"]["id"], metrics["test"])
        assert latest_version(run_folder(finished, name) / "bundle") == version
    assert listed(store(finished)) == before
    assert not list(run_folder(finished, "sasrec").glob("refit_work/*.safetensors"))
    _check_tracking(finished)


def _check_tracking(project: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{project / 'data/test/mlflow.db'}")
    experiment = client.get_experiment_by_name(DATASET)
    (run,) = client.search_runs([experiment.experiment_id], "tags.refit_of = 'online_retail/sasrec/seed_42'")
    assert run.info.run_name == "sasrec production" and run.data.tags["model"] == "sasrec"
    assert "curve/loss" in run.data.metrics
    assert not [name for name in run.data.metrics if name.startswith(("test", "valid", "curve/valid"))]


def test_a_model_that_was_not_measured_is_refused_before_anything_runs(finished, session_in) -> None:
    with session_in(finished, env="test", runtime_params={"model": "svd"}) as session:
        message = "svd is not trained: `kedro run --pipelines=train,evaluate --params dataset=online_retail,model=svd"
        with pytest.raises(ConfigError, match=message):
            session.run(pipeline_names=["refit"])
    metrics = finished / "data/test/08_reporting" / DATASET / "popular_recent/seed_42/metrics.json"
    shutil.rmtree(metrics)
    message = "popular_recent is not evaluated: it has no metrics.json"
    session = session_in(finished, env="test", runtime_params={"model": "popular_recent"})
    with session, pytest.raises(ConfigError, match=message):
        session.run(pipeline_names=["refit"])


def test_a_log_with_nothing_to_hold_out_gives_a_bundle_to_use(project_copy, session_in, caplog) -> None:
    params = {"protocol": {"split": "none"}, "modality": "none", "model": "sasrec", "baselines": ["popular"]}
    with caplog.at_level(logging.INFO), session_in(project_copy, env="test", runtime_params=params) as session:
        session.run()
    assert "evaluate and report are left out" in caplog.text
    log, _ = build_sequences(project_copy / "data/test/03_primary" / DATASET / "interactions.parquet")
    for name in ("sasrec", "popular"):
        bundle = load_bundle(latest_version(run_folder(project_copy, name) / "bundle"))
        assert bundle.train_events.sum() == len(log.items) and not bundle.protocol.holds_out
        items, _ = bundle.model.recommend(log.select_users(np.arange(3)), 5, exclude_seen=False)
        assert items.all()
    assert not [*(project_copy / "data/test").rglob("metrics.json")]
    session = session_in(project_copy, env="test", runtime_params={"model": "popular"})
    with session, pytest.raises(ValueError, match="split under another protocol|test_set"):
        session.run(pipeline_names=["evaluate"])
