"""Geometry from the command line: from bundles on disk to a section of the report, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

DATASET = "online_retail"
FIGURES = ("variance", "spectrum", "groups", "norms", "overlap", "cka", "map")


@pytest.fixture(scope="module")
def project(tmp_path_factory, project_copier) -> Path:
    """A copy of the project, empty at first."""
    return project_copier(tmp_path_factory.mktemp("geometry") / "project")


def run(folder: Path, session_in, *pipelines: str, **params) -> None:
    with session_in(folder, env="test", runtime_params={"model": "popular", **params}) as session:
        session.run(pipeline_names=list(pipelines))


def reporting(folder: Path) -> Path:
    return folder / "data/test/08_reporting" / DATASET


def kept(folder: Path) -> dict:
    return json.loads((reporting(folder) / "geometry.json").read_text())


def test_models_of_the_same_run_are_measured_and_stand_in_the_report(project, session_in) -> None:
    asked = ["geometry", "ingest", "train", "evaluate", "report"]
    run(project, session_in, *asked, model="popular+svd+sasrec")
    found = kept(project)
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
    (stable,) = kept(project)["stability"]
    assert (stable["name"], stable["seeds"]) == ("sasrec input", 2)
    assert 0 <= stable["by_chance"] < 0.05 and 0 <= stable["overlap"] <= 1
    page = (reporting(project) / "report.html").read_text()
    assert 'aria-label="Stability between seeds"' in page and "All models have one seed" not in page


def test_it_runs_again_from_disk_alone_and_without_it_the_report_does(project, session_in) -> None:
    before = kept(project)
    shutil.rmtree(project / "data/test/02_intermediate")
    run(project, session_in, "geometry", geometry={"models": "svd", "k": 5})
    found = kept(project)
    assert [each["name"] for each in found["tables"]] == ["svd input"] and found["k"] == 5
    assert before["k"] == 10
    (reporting(project) / "geometry.json").unlink()
    run(project, session_in, "report")
    page = (reporting(project) / "report.html").read_text()
    assert 'id="geometry"' not in page and 'id="leaderboard"' in page
    with pytest.raises(
        ValueError, match=r"no trained mf of online_retail, only popular, sasrec, svd: `kedro"
    ):
        run(project, session_in, "geometry", geometry={"models": "svd+mf"})


def test_what_is_broken_or_of_another_split_is_named_in_the_report(project, session_in) -> None:
    (weights,) = (project / "data/test/06_models" / DATASET / "svd").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:50])
    feature = project / "data/test/04_feature" / DATASET
    feature.mkdir(parents=True, exist_ok=True)
    (feature / "text_embeddings.parquet").write_bytes(b"nothing")
    run(project, session_in, "geometry", "report")
    text, svd = kept(project)["problems"]
    assert text.startswith("the text vectors are left out: ")
    assert svd.startswith("svd/seed_42 is left out: ") and "model.safetensors" in svd
    page = (reporting(project) / "report.html").read_text()
    assert "svd/seed_42 is left out" in page and "sasrec input" in page
    (feature / "text_embeddings.parquet").unlink()
    changed = kept(project) | {"protocol": "00000000"}
    (reporting(project) / "geometry.json").write_text(json.dumps(changed))
    run(project, session_in, "report")
    assert "Measured on another split" in (reporting(project) / "report.html").read_text()
