"""Ensembles and ties from the command line: from bundles on disk to a row of the leaderboard and an interval."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from kedro.io import DatasetError

from recpipe.config.schema import EnsembleConfig

BLOCK = {"members": "a+b", "method": "rrf", "weights": "valid", "constant": 60.0, "metric": "ndcg@10"}
DATASET = "online_retail"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, project_copier) -> Path:
    """A copy of the project with three models of one seed."""
    return project_copier(tmp_path_factory.mktemp("ensemble") / "project")


def kept(folder: Path, model: str) -> dict:
    place = folder / "data/test/08_reporting" / DATASET / model / "seed_42/metrics.json"
    return json.loads(max(place.glob("*/metrics.json")).read_text())


def run(folder: Path, session_in, *pipelines: str, **params) -> None:
    with session_in(folder, env="test", runtime_params={"model": "popular", **params}) as session:
        session.run(pipeline_names=list(pipelines))


def test_members_trained_in_the_same_run_are_waited_for(trained, session_in) -> None:
    asked = {"model": "popular+svd+item_knn", "ensemble": {"members": "svd+item_knn"}}
    run(trained, session_in, "ensemble", "ingest", "train", "evaluate", "report", **asked)
    metrics = kept(trained, "ensemble")
    assert metrics["ensemble"]["members"] == ["svd", "item_knn"]
    assert sum(metrics["ensemble"]["weights"]) == pytest.approx(1)
    tried = metrics["ensemble"]["tried"]
    alone = {tuple(row["weights"]): row["valid_ndcg@10"] for row in tried}
    assert alone[1.0, 0.0] == pytest.approx(kept(trained, "svd")["valid"]["ndcg@10"], abs=1e-9)
    assert alone[0.0, 1.0] == pytest.approx(kept(trained, "item_knn")["valid"]["ndcg@10"], abs=1e-9)
    assert metrics["valid"]["ndcg@10"] == pytest.approx(max(alone.values()), abs=1e-9)


def test_it_is_a_row_of_the_leaderboard_with_ranks_lists_and_a_submission(trained) -> None:
    reporting = trained / "data/test/08_reporting" / DATASET
    board = {row["name"]: row for row in pl.read_parquet(reporting / "leaderboard.parquet").to_dicts()}
    assert set(board) == {"popular", "svd", "item_knn", "ensemble"}
    assert len({row["protocol"] for row in board.values()}) == 1
    assert board["ensemble"]["ndcg@10"] == pytest.approx(kept(trained, "ensemble")["test"]["ndcg@10"])
    output = trained / "data/test/07_model_output" / DATASET / "ensemble/seed_42"
    ranks = pl.read_parquet(output / "ranks.parquet")
    others = pl.read_parquet(output.parents[1] / "svd/seed_42/ranks.parquet")
    assert ranks.select("user_id", "target", "candidates").equals(
        others.select("user_id", "target", "candidates")
    )
    (lists,) = output.glob("recommendations.parquet/*/recommendations.parquet")
    assert pl.read_parquet(lists)["user_id"].n_unique() == ranks.height
    assert (output / "submission.csv").is_file()


def test_a_member_that_is_not_trained_is_named_with_the_command(trained, session_in) -> None:
    with pytest.raises(
        DatasetError,
        match=r"mf/seed_42/bundle does not exist: `kedro run --pipelines=train,evaluate --params "
        "dataset=online_retail,model=mf,seed=42`",
    ):
        run(trained, session_in, "ensemble", ensemble={"members": "svd+mf"})
    with pytest.raises(ValueError, match=r"ensemble.members is not set: name two or more models"):
        run(trained, session_in, "ensemble")
    with pytest.raises(ValueError, match="ensemble.method is 'sum'"):
        run(trained, session_in, "ensemble", ensemble={"members": "svd+popular", "method": "sum"})


def test_ties_are_permuted_under_the_protocol_of_the_run(trained, session_in) -> None:
    run(trained, session_in, "ties", model="svd", ties={"permutations": 3})
    place = trained / "data/test/08_reporting" / DATASET / "svd/seed_42"
    found = json.loads((place / "tie_sensitivity.json").read_text())
    metrics = kept(trained, "svd")
    assert found["as_ordered"] == pytest.approx(metrics["test"]["ndcg@10"], abs=1e-12)
    assert (found["model"], found["protocol"]) == ("svd", metrics["protocol"]["id"])
    assert len(found["values"]) == 3 and found["low"] <= found["high"]
    assert 0 < found["other_history"] <= 1  # a shop's basket is one second
    run(trained, session_in, "report", model="svd")
    page = (place.parents[1] / "report.html").read_text()
    assert "range over tie orders" in page


def test_weights_are_words_or_numbers() -> None:
    def given(weights):
        return EnsembleConfig(**{**BLOCK, "weights": weights}).member_weights()

    assert (given("valid"), given("equal"), given("2+1"), given(1)) == ("valid", "equal", [2, 1], [1])
    with pytest.raises(ValueError, match="ensemble.weights is 'much'; allowed: valid, equal, or a number"):
        given("much")
    assert EnsembleConfig(**BLOCK).names() == ["a", "b"]
