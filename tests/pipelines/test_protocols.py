"""One training under several protocols, and folds of time, from the command line to the leaderboard."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recpipe.data.atomic import version_names
from recpipe.reporting.run_store import RunStore

pytestmark = pytest.mark.slow

LAYERS = ("08_reporting", "07_model_output", "06_models", "04_feature")


@pytest.fixture(scope="module")
def project(tmp_path_factory, project_copier) -> Path:
    """A copy of the project, with an evaluated model after the first test."""
    return project_copier(tmp_path_factory.mktemp("protocols") / "project")


def run(folder: Path, session_in, *pipelines: str, **params: object) -> RunStore:
    with session_in(folder, env="test", runtime_params={"model": "item_knn", **params}) as session:
        session.run(pipeline_names=list(pipelines))
    return RunStore(*(folder / "data/test" / layer / "online_retail" for layer in LAYERS))


def board(store: RunStore) -> dict[str, dict]:
    table = pl.read_parquet(store.reporting / "leaderboard.parquet")
    return {row["protocol_name"]: row for row in table.to_dicts()}


def test_protocols_that_differ_in_the_evaluation_share_a_training(project, session_in) -> None:
    store = run(project, session_in, "ingest", "train", "evaluate", "report", protocol="repeats+sas")
    assert len(version_names(store.models / "item_knn/seed_42/bundle")) == 1
    evaluations = store.evaluations("item_knn/seed_42")
    ids = {metrics["protocol"]["name"]: id_ for id_, metrics in evaluations.items()}
    ranks = {name: store.ranks[f"item_knn/seed_42/{id_}"] for name, id_ in ids.items()}
    assert ranks["repeats"]["target"].equals(ranks["sas"]["target"])
    pairs = list(zip(*(ranks[name]["rank"].to_pylist() for name in ("repeats", "sas")), strict=True))
    assert all(unseen <= seen for seen, unseen in pairs) and len(set(pairs)) > 1  # seen items no longer stand before it
    rows = board(store)
    assert set(rows) == {"repeats", "sas"}
    for name, id_ in ids.items():
        assert rows[name]["ndcg@10"] == evaluations[id_]["test"]["ndcg@10"]
        assert rows[name]["ndcg@10_low"] <= rows[name]["ndcg@10"] <= rows[name]["ndcg@10_high"]


def test_folds_of_time_are_trained_one_by_one_and_leave_the_rows_of_other_protocols(project, session_in) -> None:
    fields = {"name": "rolling", "folds": 2, "test": "30d", "valid": "14d"}
    store = run(project, session_in, "train", "evaluate", "report", protocol=fields)
    assert len(version_names(store.models / "item_knn/seed_42/bundle")) == 3
    rows = board(store)
    folds = [rows[f"rolling, fold {fold} of 2"]["ndcg@10"] for fold in (1, 2)]
    assert rows["rolling, mean of 2 folds"]["ndcg@10"] == pytest.approx(sum(folds) / 2)
    assert rows["rolling, mean of 2 folds"]["ndcg@10_std"] == pytest.approx(abs(folds[0] - folds[1]) / 2**0.5)
    assert {"repeats", "sas"} < set(rows)
