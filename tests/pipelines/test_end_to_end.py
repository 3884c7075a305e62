"""`kedro run --env test --params modality=text` as a user types it, on the bundled log; then single pipelines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import polars as pl
import pytest
from kedro.io import DatasetError
from tests.artefacts import forget_digest
from tests.reporting.browser import open_page

from recpipe.data.digests import digest_path
from recpipe.semantic_ids.ids import SemanticIds
from recpipe.semantic_ids.prefix_tree import PrefixTree

pytestmark = pytest.mark.slow

DATASET = "online_retail"


@pytest.fixture(scope="module")
def whole_run_with_ids(whole_run_with_ids, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """The finished project, copied, since tests here change it."""
    folder, done = whole_run_with_ids
    return shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "project", symlinks=True), done


def reporting(folder: Path) -> Path:
    return folder / "data" / "test" / "08_reporting" / DATASET


def test_it_ends_with_leaderboard_examples_and_where_to_look(whole_run_with_ids) -> None:
    folder, done = whole_run_with_ids
    for word in ("NDCG@10", "popular_recent", "sasrec", "recommended", "Report", "MLflow"):
        assert word in done.stdout, word
    page = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("Report"))
    assert (folder / page).read_text().startswith("<!doctype html>")
    assert "Traceback" not in done.stderr
    assert "Deprecat" not in done.stderr


def test_the_baselines_came_along_under_one_protocol(whole_run_with_ids) -> None:
    folder, _ = whole_run_with_ids
    board = pl.read_parquet(reporting(folder) / "leaderboard.parquet")
    assert set(board["model"]) == {"sasrec", "popular", "popular_recent", "markov"}
    assert board["protocol"].n_unique() == 1
    protocol = json.loads((folder / "data/test/05_model_input" / DATASET / "protocol.json").read_text())
    assert set(board["protocol"]) == {protocol["id"]}


def test_the_leaderboard_says_what_metrics_json_says(whole_run_with_ids) -> None:
    folder, _ = whole_run_with_ids
    board = {row["model"]: row for row in pl.read_parquet(reporting(folder) / "leaderboard.parquet").to_dicts()}
    for model, row in board.items():
        (file,) = (reporting(folder) / model / "seed_42" / "metrics.json").glob("*/metrics.json")
        metrics = json.loads(file.read_text())
        assert metrics["model"] == model
        assert row["ndcg@10"] == pytest.approx(metrics["test"]["ndcg@10"])


def test_insights_are_of_all_models_and_add_up_to_their_metrics(whole_run_with_ids) -> None:
    folder, _ = whole_run_with_ids
    found = json.loads((reporting(folder) / "insights.json").read_text())
    board = pl.read_parquet(reporting(folder) / "leaderboard.parquet")
    assert found["problems"] == []
    for row in board.to_dicts():
        assert row["ndcg@10_low"] <= row["ndcg@10"] <= row["ndcg@10_high"]
        for by in ("popularity", "history", "activity", "warmth"):
            parts = [part for part in found["segments"][row["model"]] if part["by"] == by]
            assert sum(part["weight"] * part["ndcg"] for part in parts) == pytest.approx(row["ndcg@10"])
        lists = found["lists"][row["model"]]
        assert lists["coverage"] == pytest.approx(row["coverage@10"])
        assert 0 < lists["diversity"] < 2  # by the text vectors that this run made
    page = (reporting(folder) / "report.html").read_text()
    assert 'id="certainty-data"' in page and 'id="popularity_of_lists-data"' in page


@pytest.mark.browser
def test_a_browser_draws_every_figure_of_the_page_without_a_complaint(whole_run_with_ids, tmp_path) -> None:
    folder, _ = whole_run_with_ids
    shown = open_page(reporting(folder) / "report.html", tmp_path)
    assert 'data-ready="yes"' in shown.html and "data-error=" not in shown.html
    assert shown.console == [] and shown.empty == []
    assert {"quality_seconds", "steps", "text_ids_usage", "text_ids_sunburst"} <= set(shown.figures)


def test_every_output_uses_the_ids_and_titles_of_the_source(whole_run_with_ids) -> None:
    folder, _ = whole_run_with_ids
    (output,) = (folder / "data/test/07_model_output" / DATASET / "sasrec" / "seed_42").iterdir()  # of one protocol
    (file,) = output.glob("test_recommendations.parquet/*/test_recommendations.parquet")
    found = pl.read_parquet(file)
    items = pl.read_parquet(folder / "data/test/03_primary" / DATASET / "items.parquet")
    interactions = pl.read_parquet(folder / "data/test/03_primary" / DATASET / "interactions.parquet")
    assert set(found["item_id"]) <= set(items["item_id"])
    assert set(found["user_id"]) <= set(interactions["user_id"])
    titles = dict(items.select("item_id", "title").iter_rows())
    assert all(titles[row["item_id"]] in (row["title"], None, "") for row in found.head(200).to_dicts())
    header, first = (output / "submission.csv").read_text().splitlines()[:2]
    assert header == "user_id,item_ids"
    assert len(first.split(",")[1].split(" ")) == 10


def test_nothing_half_written_is_left(whole_run_with_ids) -> None:
    folder, _ = whole_run_with_ids
    assert not [path for path in (folder / "data" / "test").rglob("*") if path.name.endswith((".part", ".old"))]


def test_mlflow_holds_the_run_and_its_models(whole_run_with_ids) -> None:
    from mlflow import MlflowClient

    folder, _ = whole_run_with_ids
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'data' / 'test' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(DATASET)
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"sasrec", "popular", "popular_recent", "markov"} < set(runs)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    parent = next(run for run in runs.values() if "mlflow.parentRunId" not in run.data.tags)
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"report.html", "leaderboard.parquet", "ingest_steps.parquet", "protocol.json"} <= files
    drawn = {path.stem for path in (reporting(folder) / "figures").glob("*.json") if _has_data(path)}
    logged = {Path(file.path).stem for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert logged == drawn and {"certainty", "quality_seconds", "steps"} <= logged
    assert len(client.list_artifacts(runs["text"].info.run_id, "figures")) == 2
    assert client.get_metric_history(runs["sasrec"].info.run_id, "curve/loss")
    costs = ("train_seconds", "tokens_per_second", "peak_memory_mib", "parameters")
    costs += ("inference_users_per_second", "inference_latency_ms_p50", "inference_latency_ms_p95")
    assert {f"cost/{name}" for name in costs} <= set(runs["sasrec"].data.metrics)


def _has_data(figure: Path) -> bool:
    return bool(json.loads(figure.read_text())["data"])


def ids_of(folder: Path) -> SemanticIds:
    place = folder / "data/test/05_model_input" / DATASET / "semantic_ids/text_ids"
    return SemanticIds.read(place / "semantic_ids.parquet")


def test_every_item_has_an_id_of_its_own_that_passed_the_gate_and_stands_in_the_tree(whole_run_with_ids) -> None:
    folder, done = whole_run_with_ids
    ids = ids_of(folder)
    items = pl.read_parquet(folder / "data/test/03_primary" / DATASET / "items.parquet")
    assert set(ids.item_ids) == set(items["item_id"])
    assert ids.unique
    tree = PrefixTree.read(
        folder / "data/test/05_model_input" / DATASET / "semantic_ids/text_ids/prefix_tree.safetensors"
    )
    assert tree.source == ids.hash
    assert tree.find(ids.codes).tolist() == list(range(len(ids)))
    quality = json.loads((reporting(folder) / "semantic_ids/text_ids/quality.json").read_text())
    assert quality["passed"] and quality["ids"] == ids.hash
    page = (reporting(folder) / "report.html").read_text()
    assert 'id="text_ids_sunburst-data"' in page and "passed the gate" in done.stdout


def test_a_second_run_loads_no_encoder_and_keeps_every_id_beside_those_of_new_items(
    whole_run_with_ids, session_in, monkeypatch
) -> None:
    from recpipe.content import text_embeddings

    folder, _ = whole_run_with_ids
    before = ids_of(folder)
    real = text_embeddings.load_encoder

    def never(*_: object, **__: object) -> None:
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(text_embeddings, "load_encoder", never)
    with session_in(folder, env="test") as session:
        session.run(pipeline_names=["embed", "semantic_ids"])
    assert ids_of(folder).hash == before.hash
    path = folder / "data/test/03_primary" / DATASET / "items.parquet"
    items, contents = pl.read_parquet(path), {file: file.read_bytes() for file in (path, digest_path(path))}
    new = items.head(2).with_columns(
        item_id=pl.Series(["new1", "new2"]), title=pl.Series(["PAPER LANTERN BLUE", items["title"][5]])
    )
    pl.concat([items, new]).write_parquet(path)
    forget_digest(path)
    monkeypatch.setattr(text_embeddings, "load_encoder", real)
    with session_in(folder, env="test") as session:
        session.run(pipeline_names=["embed", "semantic_ids"])
    after = ids_of(folder)
    for file, content in contents.items():
        file.write_bytes(content)
    assert after.sizes == before.sizes and after.unique
    assert after.item_ids[: len(before)].tolist() == before.item_ids.tolist()
    assert (after.codes[: len(before)] == before.codes).all()
    assert after.item_ids[after.added].tolist() == ["new1", "new2"]


def test_a_gate_that_does_not_pass_stops_the_run_with_advice_and_leaves_the_figures(
    whole_run_with_ids, session_in
) -> None:
    folder, _ = whole_run_with_ids
    asked = {"semantic_ids": {"gate": {"reconstruction": 0.0}}}
    with (
        session_in(folder, env="test", runtime_params=asked) as session,
        pytest.raises(ValueError, match="variance lost.*|did not pass the quality gate"),
    ):
        session.run(pipeline_names=["semantic_ids"])
    place = reporting(folder) / "semantic_ids/text_ids"
    assert not json.loads((place / "quality.json").read_text())["passed"]
    assert (place / "usage_figure.json").is_file() and (place / "sunburst_figure.json").is_file()


def test_report_alone_does_without_the_metrics_of_most_models(whole_run_with_ids, session_in) -> None:
    """Last, since it changes the folder: item_knn has none, and sasrec's are moved away."""
    folder, _ = whole_run_with_ids
    (reporting(folder) / "sasrec").rename(folder / "aside")
    with session_in(folder, env="test") as session:
        session.run(pipeline_names=["report"])
    assert set(pl.read_parquet(reporting(folder) / "leaderboard.parquet")["model"]) == {
        "popular",
        "popular_recent",
        "markov",
    }
    missing = session_in(folder, env="test", runtime_params={"dataset": "ml-1m"})
    with missing, pytest.raises(DatasetError, match="protocol.json is missing; run `kedro run --pipelines=train`"):
        missing.run(pipeline_names=["report"])
