"""Run store: latest versions, one read per file, messages for damaged files."""

import json

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pytest
from tests.reporting.runs_on_disk import store, write_json, write_runs, write_table

from recpipe.content.embeddings import Embeddings
from recpipe.reporting import run_store
from recpipe.reporting.run_store import DamagedFileError

RANKS = pa.table({"user_id": ["u"], "target": ["i"], "rank": [1], "history": [3], "cold": [False]})
CURVE = pa.table({"epoch": [1], "step": [10], "seconds": [0.5], "loss": [2.0]})


def versioned(folder, run, version, value):
    return write_json(folder / "08_reporting" / "shop" / run / "metrics.json" / version / "metrics.json", value)


def embeddings(n=3):
    ids = np.array([f"i{number}" for number in range(n)], object)
    keys = np.array(["k"] * n, object)
    return Embeddings(ids, np.ones((n, 2), np.float32), np.ones(n, bool), keys, "space")


def test_a_store_without_runs_is_empty(tmp_path):
    runs = store(tmp_path)
    for files in (runs.metrics, runs.ranks, runs.recommendations, runs.curves, runs.bundles, runs.studies):
        assert (list(files), len(files), files.readable()) == ([], 0, {})
    assert (runs.vectors.readable(), runs.qualities.readable(), runs.problems) == ({}, {}, [])
    assert "text" not in runs.vectors and "sasrec/seed_42" not in runs.metrics
    with pytest.raises(KeyError):
        runs.ranks["sasrec/seed_42"]


def test_the_latest_version_of_a_run_is_read(tmp_path):
    for run, version, value in (("a/seed_1", "v1", 1), ("a/seed_1", "v2", 2), ("b/seed_1", "v1", 3)):
        versioned(tmp_path, run, version, value)
    write_json(tmp_path / "08_reporting" / "shop" / "data_profile.json", {})  # not a run's
    (tmp_path / "08_reporting" / "shop" / "b" / "seed_1" / "metrics.json" / "v2").mkdir()  # a failed version
    runs = store(tmp_path)
    assert list(runs.metrics) == ["a/seed_1", "b/seed_1"]
    assert runs.metrics.readable() == {"a/seed_1": 2, "b/seed_1": 3}


def test_results_of_this_command_replace_those_on_disk(tmp_path):
    versioned(tmp_path, "a/seed_1", "v1", 1)
    broken = versioned(tmp_path, "b/seed_1", "v1", 2)
    broken.write_text("{")
    runs = store(tmp_path, b__1="new", c__1="only here")
    assert runs.metrics.readable() == {"a/seed_1": 1, "b/seed_1": "new", "c/seed_1": "only here"}
    assert len(runs.metrics) == 3 and runs.problems == []


def test_files_are_read_at_access_and_once(tmp_path, monkeypatch):
    place = tmp_path / "07_model_output" / "shop"
    for model in ("a", "b"):
        write_table(place / model / "seed_1" / "ranks.parquet", RANKS)
        write_table(
            place / model / "seed_1" / "recommendations.parquet" / "v1" / "recommendations.parquet",
            pa.table({"user_id": ["u"], "rank": [1], "item_id": ["i"], "probability": [0.5]}),
        )
    read, real = [], run_store.read_table
    monkeypatch.setattr(run_store, "read_table", lambda path: read.append(path.name) or real(path))
    runs = store(tmp_path)
    assert "a/seed_1" in runs.ranks and len(runs.ranks) == 2 and read == []
    assert runs.ranks["a/seed_1"].equals(RANKS) and runs.ranks.loaders()["a/seed_1"]().equals(RANKS)
    assert read == ["ranks.parquet"]
    assert set(runs.ranks.readable()) == {"a/seed_1", "b/seed_1"} and len(read) == 2
    for _ in range(2):  # not cached
        runs.recommendations["a/seed_1"]
    assert read[2:] == ["recommendations.parquet"] * 2


def test_lists_of_earlier_versions_are_read_until_the_run_has_newer_ones(tmp_path):
    lists = pa.table({"user_id": ["u"], "rank": [1], "item_id": ["old"], "probability": [0.5]})
    folder = tmp_path / "07_model_output" / "shop"
    for model in ("a", "b"):
        write_table(folder / model / "seed_1/recommendations.parquet/v2/recommendations.parquet", lists)
    newer = lists.set_column(2, "item_id", pa.array(["new"]))
    write_table(folder / "a/seed_1/test_recommendations.parquet/v1/test_recommendations.parquet", newer)
    runs = store(tmp_path)
    items = {run: table["item_id"].to_pylist() for run, table in runs.recommendations.readable().items()}
    assert items == {"a/seed_1": ["new"], "b/seed_1": ["old"]}


DAMAGED = [
    ("metrics", "08_reporting/shop/a/seed_1/metrics.json/v1/metrics.json", "the metrics of a/seed_1"),
    ("ranks", "07_model_output/shop/a/seed_1/ranks.parquet", "the ranks of a/seed_1"),
    (
        "recommendations",
        "07_model_output/shop/a/seed_1/recommendations.parquet/v1/recommendations.parquet",
        "the recommendations of a/seed_1",
    ),
    ("curves", "08_reporting/shop/a/seed_1/curves.parquet", "the curves of a/seed_1"),
    ("tie_sensitivity", "08_reporting/shop/a/seed_1/tie_sensitivity.json", "the tie sensitivity of a/seed_1"),
    ("contexts", "08_reporting/shop/a/seed_1/context.json", "the context of a/seed_1"),
    ("studies", "08_reporting/shop/a/seed_1/studies/width_study.json", "the study of a/seed_1/studies/width"),
    ("vectors", "04_feature/shop/text_embeddings.parquet", "the vectors of text"),
    ("qualities", "08_reporting/shop/semantic_ids/text_ids/quality.json", "the quality of ids of text"),
]


@pytest.mark.parametrize(("kind", "file", "name"), DAMAGED, ids=[row[0] for row in DAMAGED])
@pytest.mark.parametrize("content", [b"", b'{"half": ', b"PAR1 \xff\xfe", b"\x00" * 40])
def test_a_damaged_file_has_a_message_and_others_are_read(tmp_path, kind, file, name, content):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    versioned(tmp_path, "b/seed_1", "v1", 2)
    runs = store(tmp_path)
    assert runs.problems == []  # nothing was read yet
    assert getattr(runs, kind).readable() == ({"b/seed_1": 2} if kind == "metrics" else {})
    (problem,) = runs.problems
    assert problem.startswith(f"{name} cannot be read: ") and "\n" not in problem
    damaged = next(run for run in getattr(runs, kind) if run != "b/seed_1")
    for _ in range(2):
        with pytest.raises(DamagedFileError, match="cannot be read"):
            getattr(runs, kind)[damaged]
    assert runs.problems == [problem]
    assert runs.metrics["b/seed_1"] == 2


def test_a_table_without_required_columns_is_damaged(tmp_path):
    place = tmp_path / "08_reporting" / "shop"
    write_table(place / "a" / "seed_1" / "curves.parquet", CURVE.drop_columns(["loss", "step"]))
    write_table(place / "b" / "seed_1" / "curves.parquet", CURVE)
    runs = store(tmp_path)
    assert list(runs.curves.readable()) == ["b/seed_1"]
    (problem,) = runs.problems
    assert "curves of a/seed_1" in problem and "step, loss" in problem


def test_bundles_have_their_latest_version(tmp_path):
    models = tmp_path / "06_models" / "shop"
    for version in ("2026-01-01", "2026-01-02"):
        for run in ("a/seed_1", "b/seed_2"):
            (models / run / "bundle" / version / "bundle").mkdir(parents=True)
    (models / "a/seed_1/work").mkdir()
    runs = store(tmp_path)
    assert list(runs.bundles) == ["a/seed_1", "b/seed_2"]
    with pytest.raises(ValueError, match=r"bundle of a/seed_1 .*2026-01-02/bundle is not a bundle"):
        runs.bundles["a/seed_1"]
    assert runs.problems == []  # the pipeline geometry reports damaged bundles


def test_vectors_figures_and_quality_are_by_modality(tmp_path):
    (tmp_path / "04_feature" / "shop").mkdir(parents=True)
    embeddings().write(tmp_path / "04_feature" / "shop" / "image_embeddings.parquet")
    place = tmp_path / "08_reporting" / "shop" / "semantic_ids" / "text_parts_ids"
    write_json(place / "quality.json", {"passed": True})
    (place / "usage_figure.json").write_text(go.Figure(go.Bar(y=[1, 2])).to_json())
    (place / "sunburst_figure.json").write_text("[")
    runs = store(tmp_path)
    assert list(runs.vectors) == ["image"] and runs.vectors["image"].hash == embeddings().hash
    assert runs.qualities.readable() == {"text_parts": {"passed": True}}
    figures = runs.id_figures("text_parts")
    assert figures.readable() == {"usage": go.Figure(go.Bar(y=[1, 2]))}
    (problem,) = figures.problems
    assert problem.startswith("the text_parts_ids figure of sunburst cannot be read")
    assert list(runs.id_figures("text")) == []


def test_files_of_finished_runs_are_found(tmp_path, make_run):
    write_runs(tmp_path, make_run)
    runs = store(tmp_path)
    names = [f"{model}/seed_42/3f9a1c02" for model in ("item_knn", "popular", "popular_recent", "sasrec")]
    assert list(runs.metrics) == list(runs.ranks) == list(runs.recommendations) == names
    assert json.dumps(runs.metrics["sasrec/seed_42/3f9a1c02"]["test"])
    assert runs.problems == []


def evaluated(folder, version, protocol, value, run="a/seed_1", finished=""):
    """An evaluation of a run: metrics, and ranks and lists in the folder of the protocol."""
    metrics = {"dataset": "shop", "model": "a", "seed": 1, "protocol": {"id": protocol}, "test": {"ndcg@10": value}}
    versioned(folder, run, version, metrics | {"finished": finished})
    output = folder / "07_model_output" / "shop" / run / protocol
    write_table(output / "ranks.parquet", RANKS.set_column(2, "rank", pa.array([value])))
    name = "test_recommendations.parquet"
    lists = pa.table({"user_id": ["u"], "rank": [1], "item_id": [f"{value}"], "probability": [0.5]})
    write_table(output / name / version / name, lists)


def test_evaluations_of_a_run_under_several_protocols_are_all_there_each_in_its_newest_version(tmp_path):
    for version, protocol, value in (("v1", "aa", 1), ("v2", "bb", 2), ("v3", "aa", 3), ("v4", "cc", 4)):
        evaluated(tmp_path, version, protocol, value, finished=version)
    runs = store(tmp_path)
    expected = {"a/seed_1/aa": 3, "a/seed_1/bb": 2, "a/seed_1/cc": 4}
    assert {key: values["test"]["ndcg@10"] for key, values in runs.metrics.readable().items()} == expected
    assert {key: table["rank"][0].as_py() for key, table in runs.ranks.readable().items()} == expected
    lists = {key: int(table["item_id"][0].as_py()) for key, table in runs.recommendations.readable().items()}
    assert lists == expected
    assert list(runs.evaluations("a/seed_1")) == ["cc", "aa", "bb"] and runs.evaluations("a/seed_2") == {}


def test_ranks_of_older_versions_belong_to_the_newest_evaluation_without_its_own(tmp_path):
    old = tmp_path / "07_model_output" / "shop" / "a" / "seed_1"
    for version, protocol in (("v1", "aa"), ("v2", "bb")):
        metrics = {"dataset": "shop", "model": "a", "seed": 1, "protocol": {"id": protocol}, "test": {}}
        versioned(tmp_path, "a/seed_1", version, metrics)
    write_table(old / "ranks.parquet", RANKS)
    assert list(store(tmp_path).ranks) == ["a/seed_1/bb"]
    evaluated(tmp_path, "v3", "cc", 5)
    assert list(store(tmp_path).ranks) == ["a/seed_1/bb", "a/seed_1/cc"]


def test_the_lists_of_batch_recommendations_are_none_of_an_evaluation(tmp_path):
    evaluated(tmp_path, "v1", "aa", 1)
    name = "recommendations.parquet"
    write_table(tmp_path / "07_model_output/shop/a/seed_1/recommendations" / name / "v2" / name, RANKS)
    assert list(store(tmp_path).recommendations) == ["a/seed_1/aa"]
