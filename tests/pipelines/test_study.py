"""Studies from the command line: trainings that are not made twice, questions to a bundle, both in the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from recpipe.config import DataPaths
from recpipe.content.embeddings import Embeddings
from recpipe.data.sequences import Vocabulary
from recpipe.pipelines.study import content_vectors

pytestmark = pytest.mark.slow

DATASET = "online_retail"
LENGTH = {"model": "sasrec", "study": "length", "studies": {"length": {"values": "2+4+500"}}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory, project_copier) -> Path:
    """A copy of the project, with trained models once the first test has run."""
    return project_copier(tmp_path_factory.mktemp("study") / "project")


def run(folder: Path, session_in, *pipelines: str, **params) -> None:
    with session_in(folder, env="test", runtime_params=params) as session:
        session.run(pipeline_names=list(pipelines))


def reporting(folder: Path) -> Path:
    return folder / "data/test/08_reporting" / DATASET


def test_a_bundle_is_asked_and_the_report_shows_it(trained, session_in) -> None:
    run(trained, session_in, "ingest", "train", "evaluate", "context", "report", model="sasrec+svd")
    for model in ("sasrec", "svd"):
        found = json.loads((reporting(trained) / model / "seed_42/context.json").read_text())
        assert found["effective"]["whole"] > 0
        assert (found["attribution"] is None) == (model == "svd")
    page = (reporting(trained) / "report.html").read_text()
    assert 'id="effective_context-data"' in page
    assert 'id="attribution-data"' in page
    assert "Sequence studies" in page
    figure = json.loads((reporting(trained) / "figures/effective_context.json").read_text())
    assert len(figure["data"]) == 4  # two models, two ways


def assert_lists(row: dict, *, cutoff: int) -> None:
    """Shares of the places sum to 1, and recall by popularity, weighted by its targets, to that of all."""
    lists, groups = row["lists"], row["popularity"]
    assert lists["length"] == cutoff
    assert 0 < lists["coverage"] <= 1 and lists["arp"] >= 1
    assert lists["head"] + lists["mid"] + lists["tail"] == pytest.approx(1)
    targets = sum(group["targets"] for group in groups)
    ndcg = sum(group["ndcg"] * group["targets"] for group in groups) / targets  # one target a user
    assert ndcg == pytest.approx(row[f"ndcg@{cutoff}"])


def test_each_value_is_trained_once_and_a_study_goes_on_where_it_stopped(trained, session_in, monkeypatch) -> None:
    from recpipe.training import fit

    made, train = [], fit.train

    def counted(*args, **options):
        if len(made) == 1 and not (trained / "stopped").exists():
            (trained / "stopped").touch()
            raise KeyboardInterrupt("stopped")
        made.append(options["folder"].name)
        return train(*args, **options)

    monkeypatch.setattr(fit, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        run(trained, session_in, "study", **LENGTH)
    run(trained, session_in, "study", "report", **LENGTH)
    assert made == ["2", "4"]
    place = reporting(trained) / "sasrec/seed_42/studies/length_study.json"
    found = json.loads(place.read_text())
    assert [row["value"] for row in found["rows"]] == [2, 4]
    assert list(found["left_out"]) == ["500"]
    for row in found["rows"]:
        assert 0 <= row[found["metric"]] <= 1
        assert row["used_dimensions"] > 1
        assert row["epochs"] >= 1
        assert 0 < row["gradient_norm"] <= row["gradient_norm_max"]
        assert_lists(row, cutoff=int(found["metric"].partition("@")[2]))
    assert 'id="study_length-data"' in (reporting(trained) / "report.html").read_text()
    run(trained, session_in, "study", **{**LENGTH, "train": {"max_epochs": 1}})
    assert made == ["2", "4", "2", "4"]  # other settings are another study


def test_diversity_is_by_the_content_vectors_on_disk_in_the_order_of_the_catalogue(tmp_path) -> None:
    paths = DataPaths(tmp_path, tmp_path, "shop")
    job = SimpleNamespace(data=SimpleNamespace(vocabulary=Vocabulary(np.array(["a", "b", "c"], object))))
    assert content_vectors(job, paths) is None
    for modality, value in (("image", 3.0), ("text", 1.0)):  # text counts before images
        ids, present = np.array(["b", "a"], object), np.array([True, False])
        vectors = np.array([[value, 2.0], [0.0, 0.0]], np.float32)
        paths.features.mkdir(parents=True, exist_ok=True)
        Embeddings(ids, vectors, present, np.array(["k", ""], object), "space").write(
            paths.features / f"{modality}_embeddings.parquet"
        )
    vectors, present = content_vectors(job, paths)
    assert present.tolist() == [False, True, False]
    assert vectors[1].tolist() == [1.0, 2.0]


def test_parts_are_taken_away_where_a_model_has_them(trained, session_in) -> None:
    one = {"train": {"max_epochs": 1}}
    run(trained, session_in, "study", "report", model="sasrec", study="ablation", **one)
    place = reporting(trained) / "sasrec/seed_42/studies/ablation_study.json"
    names = [row["name"] for row in json.loads(place.read_text())["rows"]]
    assert names[0] == "as configured"
    assert {"without dropout", "without positions"} <= set(names)
    assert 'id="study_ablation-data"' in (reporting(trained) / "report.html").read_text()


def test_what_cannot_be_studied_is_said_before_anything_runs(trained, session_in) -> None:
    with pytest.raises(ValueError, match=r"unknown study 'lenght' \(did you mean 'length'\?\); choose length, width"):
        run(trained, session_in, "study", model="sasrec", study="lenght")
    with pytest.raises(ValueError, match="models of type svd have no setting train.window"):
        run(trained, session_in, "study", model="svd", study="length")
