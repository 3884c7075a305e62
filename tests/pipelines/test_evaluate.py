"""Evaluation pipelines from the command line: evaluate, ensemble, ties and geometry, from bundles to the report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from kedro.io import DatasetError
from tests.artefacts import forget_digest
from tests.models.generative import BOTH, DATA, ITEMS, create

from recpipe.config import schema
from recpipe.config.schema import EnsembleConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.data.splits import TrainingData, split
from recpipe.pipelines.evaluate import evaluate_ensemble
from recpipe.training.bundle import Bundle

BLOCK = {"members": "a+b", "method": "rrf", "weights": "valid", "constant": 60.0, "metric": "ndcg@10"}
DATASET = "online_retail"
FIGURES = ("variance", "spectrum", "groups", "norms", "overlap", "cka", "map")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, project_copier) -> Path:
    """A copy of the project for ensembles and ties, with three trained models after the first test."""
    return project_copier(tmp_path_factory.mktemp("ensemble") / "project")


@pytest.fixture(scope="module")
def project(tmp_path_factory, project_copier) -> Path:
    """A copy of the project for geometry, with three trained models after its first test."""
    return project_copier(tmp_path_factory.mktemp("geometry") / "project")


def run(folder: Path, session_in, *pipelines: str, **params) -> None:
    with session_in(folder, env="test", runtime_params={"model": "popular", **params}) as session:
        session.run(pipeline_names=list(pipelines))


def reporting(folder: Path) -> Path:
    return folder / "data/test/08_reporting" / DATASET


def metrics_of(folder: Path, model: str) -> dict:
    versions = (reporting(folder) / model / "seed_42/metrics.json").glob("*/metrics.json")
    return json.loads(max(versions).read_text())


def geometry_of(folder: Path) -> dict:
    return json.loads((reporting(folder) / "geometry.json").read_text())


def test_members_trained_in_the_same_run_are_waited_for(trained, session_in) -> None:
    params = {"model": "popular+svd+item_knn", "ensemble": {"members": "svd+item_knn"}}
    run(trained, session_in, "ensemble", "ingest", "train", "evaluate", "report", **params)
    metrics = metrics_of(trained, "ensemble")
    assert metrics["ensemble"]["members"] == ["svd", "item_knn"]
    assert sum(metrics["ensemble"]["weights"]) == pytest.approx(1)
    tried = metrics["ensemble"]["tried"]
    alone = {tuple(row["weights"]): row["valid_ndcg@10"] for row in tried}
    assert alone[1.0, 0.0] == pytest.approx(metrics_of(trained, "svd")["valid"]["ndcg@10"], abs=1e-9)
    assert alone[0.0, 1.0] == pytest.approx(metrics_of(trained, "item_knn")["valid"]["ndcg@10"], abs=1e-9)
    assert metrics["valid"]["ndcg@10"] == pytest.approx(max(alone.values()), abs=1e-9)


def test_it_is_a_row_of_the_leaderboard_with_ranks_lists_and_a_submission(trained) -> None:
    reporting = trained / "data/test/08_reporting" / DATASET
    board = {row["name"]: row for row in pl.read_parquet(reporting / "leaderboard.parquet").to_dicts()}
    assert set(board) == {"popular", "svd", "item_knn", "ensemble"}
    assert len({row["protocol"] for row in board.values()}) == 1
    assert board["ensemble"]["ndcg@10"] == pytest.approx(metrics_of(trained, "ensemble")["test"]["ndcg@10"])
    (output,) = (trained / "data/test/07_model_output" / DATASET / "ensemble/seed_42").iterdir()  # of one protocol
    ranks = pl.read_parquet(output / "ranks.parquet")
    others = pl.read_parquet(output.parents[2] / "svd/seed_42" / output.name / "ranks.parquet")
    assert ranks.select("user_id", "target", "candidates").equals(others.select("user_id", "target", "candidates"))
    (lists,) = output.glob("test_recommendations.parquet/*/test_recommendations.parquet")
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
    metrics = metrics_of(trained, "svd")
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
    with pytest.raises(ValueError, match="ensemble.weights is 'much'; allowed: valid, adaptive, equal, or a number"):
        given("much")
    assert EnsembleConfig(**BLOCK).names() == ["a", "b"]


def test_content_slots_are_filled_by_a_content_model_of_the_same_run(project_copy, session_in) -> None:
    params = {
        "model": "popular+text_knn",
        "embed": {"text": "tfidf"},
        "protocol": {"held_out_items": 0.1},
        "evaluate": {"content_slots": {"share": 0.2}},
    }
    run(project_copy, session_in, "ingest", "embed", "train", "evaluate", "report", **params)
    metrics = metrics_of(project_copy, "popular")
    assert metrics["content_slots"] == {"share": 0.2, "model": "text_knn"}
    assert metrics["cold_items"]["recall@10"] > 0
    output = project_copy / "data/test/07_model_output" / DATASET / "popular/seed_42"
    (file,) = output.glob("*/test_recommendations.parquet/*/test_recommendations.parquet")
    slots = pl.read_parquet(file).filter(pl.col("source") == "content_slots")
    assert set(slots["rank"]) == {5, 10, 15, 20} and slots["logit"].null_count() == len(slots)


def test_models_of_the_same_run_are_measured_and_stand_in_the_report(project, session_in) -> None:
    names = ["geometry", "ingest", "train", "evaluate", "report"]
    run(project, session_in, *names, model="popular+svd+sasrec")
    found = geometry_of(project)
    assert {each["name"] for each in found["tables"]} == {"svd input", "sasrec input"}
    assert (found["without"], found["problems"], found["nulls"]) == (["popular"], [], 2)
    protocol = json.loads((project / "data/test/05_model_input" / DATASET / "protocol.json").read_text())
    assert found["protocol"] == protocol["id"]
    board = (reporting(project) / "leaderboard.md").read_text()
    page = (reporting(project) / "report.html").read_text()
    assert "sasrec" in board and 'id="geometry"' in page and 'href="#geometry"' in page
    for name in FIGURES:
        assert json.loads((reporting(project) / f"figures/geometry_{name}.json").read_text())["data"], name
        assert f'id="geometry_{name}"' in page, name
    assert len(page.encode()) < 5_000_000


def test_a_second_seed_says_how_stable_neighbours_are(project, session_in) -> None:
    run(project, session_in, "train", "evaluate", model="sasrec", seed=7)
    run(project, session_in, "geometry", "report")
    (stable,) = geometry_of(project)["stability"]
    assert (stable["name"], stable["seeds"]) == ("sasrec input", 2)
    assert 0 <= stable["by_chance"] < 0.05 and 0 <= stable["overlap"] <= 1
    page = (reporting(project) / "report.html").read_text()
    assert 'aria-label="Stability between seeds"' in page and "All models have one seed" not in page


def test_it_runs_again_from_disk_alone_and_without_it_the_report_does(project, session_in) -> None:
    before = geometry_of(project)
    shutil.rmtree(project / "data/test/02_intermediate")
    run(project, session_in, "geometry", geometry={"models": "svd", "k": 5})
    found = geometry_of(project)
    assert [each["name"] for each in found["tables"]] == ["svd input"] and found["k"] == 5
    assert before["k"] == 10
    (reporting(project) / "geometry.json").unlink()
    run(project, session_in, "report")
    page = (reporting(project) / "report.html").read_text()
    assert 'id="geometry"' not in page and 'id="leaderboard"' in page
    with pytest.raises(ValueError, match=r"no trained mf of online_retail, only popular, sasrec, svd: `kedro"):
        run(project, session_in, "geometry", geometry={"models": "svd+mf"})


def test_what_is_broken_or_of_another_split_is_named_in_the_report(project, session_in) -> None:
    (weights,) = (project / "data/test/06_models" / DATASET / "svd").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    feature = project / "data/test/04_feature" / DATASET
    feature.mkdir(parents=True, exist_ok=True)
    (feature / "text_embeddings.parquet").write_bytes(b"nothing")
    run(project, session_in, "geometry", "report")
    text, svd = geometry_of(project)["problems"]
    assert text.startswith("the text vectors are left out: ")
    assert svd.startswith("svd/seed_42 is left out: ") and "model.safetensors" in svd
    page = (reporting(project) / "report.html").read_text()
    assert "svd/seed_42 is left out" in page and "sasrec input" in page
    (feature / "text_embeddings.parquet").unlink()
    changed = geometry_of(project) | {"protocol": "00000000"}
    (reporting(project) / "geometry.json").write_text(json.dumps(changed))
    forget_digest(reporting(project) / "geometry.json")
    run(project, session_in, "report")
    assert "Measured on another split" in (reporting(project) / "report.html").read_text()


def test_the_beams_of_the_configuration_count_in_an_ensemble_of_trained_models() -> None:
    vocabulary, protocol = Vocabulary(np.array([f"i{n}" for n in range(ITEMS)], dtype=object)), Protocol(dataset="tiny")
    parts = split(DATA, protocol, vocabulary)
    fields = {"id": protocol.id, **protocol.to_dict()}
    training_data = TrainingData(fields, vocabulary, parts.train, parts.valid)
    events = np.bincount(parts.train.items, minlength=ITEMS + 1)[1:]
    models = {"a": create("tiger", beam=4), "b": create("mql4grec", BOTH, beam=4)}
    bundles = {
        name: Bundle(name, "tiger", model, vocabulary, [None] * ITEMS, events, protocol)
        for name, model in models.items()
    }
    evaluate = schema.EvaluateConfig(
        recommend=4, content_slots={"share": 0.0, "model": ""}, device="cpu", submission={}, protocol=protocol.to_dict()
    )
    ensemble = EnsembleConfig(**{**BLOCK, "weights": "equal"})

    def misses(beam: int) -> int:
        configs = {name: {"settings": {"beam": beam}} for name in models}
        result = evaluate_ensemble(training_data, parts.test, evaluate, ensemble, configs, **bundles)
        return result.metrics["test"]["missed_by_beam"]

    assert misses(4) > misses(12) > 0 == misses(ITEMS)
