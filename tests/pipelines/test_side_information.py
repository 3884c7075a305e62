"""Side information through Kedro: which model is wired to what, what is refused, and a run with all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from recpipe.config import Configuration, RunConfig
from recpipe.pipelines.train import training_inputs
from recpipe.pipelines.wiring import model_info
from recpipe.training.bundle import load_bundle

FAST = {"embed": {"text": "tfidf"}}


def run_config(folder: Path, model: str, **params: object) -> RunConfig:
    return Configuration.read(folder / "conf", None, params, model_info).run(model)


def reads(folder: Path, model: str, **params: object) -> list[str]:
    """The item vectors that the model's training node is wired to."""
    return [name for name in training_inputs(run_config(folder, model, **params)) if "_embeddings" in name]


def test_models_are_wired_as_their_files_say(project_copy: Path) -> None:
    own = project_copy / "conf" / "local" / "parameters" / "models"
    own.mkdir(parents=True)
    (own / "lstm.yml").write_text(
        "models: {lstm: {side: {vectors: text}, datasets: {online_retail: {side: {vectors: text+text_image}}}}}"
    )
    assert reads(project_copy, "text_knn") == ["text_embeddings"]
    assert reads(project_copy, "siglip_knn") == ["image_embeddings"]
    assert reads(project_copy, "lstm") == ["text_embeddings", "text_image_embeddings"]
    assert reads(project_copy, "lstm", dataset="steam") == ["text_embeddings"]
    assert not reads(project_copy, "sasrec") and not reads(project_copy, "popular")


def test_a_run_wires_what_the_command_line_says(project: Path) -> None:
    one = {"models": {"sasrec": {"side": {"vectors": "text"}}}}
    assert reads(project, "sasrec", **one) == ["text_embeddings"] and not reads(project, "lstm", **one)
    both = {"side": {"vectors": "text+image"}}
    for model in ("sasrec", "lstm", "text_knn"):
        assert reads(project, model, **both) == ["text_embeddings", "image_embeddings"]
    assert not reads(project, "popular", **both) and not reads(project, "item_knn", **both)
    others = {"side": {"vectors": "text"}, "models": {"lstm": {"side": {"vectors": "none"}}}}
    assert reads(project, "sasrec", **others) == ["text_embeddings"] and not reads(project, "lstm", **others)


def test_the_command_line_wins_over_files_for_side_as_for_train(project_copy: Path) -> None:
    file = project_copy / "conf" / "local" / "parameters" / "models" / "lstm.yml"
    file.parent.mkdir(parents=True)
    file.write_text("models: {lstm: {side: {vectors: image}, datasets: {online_retail: {side: {vectors: text}}}}}")

    def vectors(**params: object) -> str:
        return str(run_config(project_copy, "lstm", **params).side["vectors"])

    assert vectors() == "text" and vectors(dataset="steam") == "image"
    assert vectors(side={"vectors": "none"}) == "none"
    own = {"lstm": {"side": {"vectors": "image"}}}
    assert vectors(side={"vectors": "none"}, models=own) == "image"
    assert run_config(project_copy, "lstm", side={"combine": "concat"}).side["combine"] == "concat"
    with pytest.raises(ValueError, match=r"'models\.lstm\.side\.vector' .*\(did you mean 'vectors'"):
        run_config(project_copy, "lstm", models={"lstm": {"side": {"vector": "text"}}})


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"side": {"vectors": "txt"}}, r"unknown vectors of models.sasrec.side 'txt'.*choose text, image, text_image"),
        (
            {"model": "popular", "models": {"popular": {"side": {"items": "price"}}}},
            "models of type popular read no side information; drop `side`",
        ),
        (
            {"model": "text_knn", "models": {"text_knn": {"side": {"vectors": "none"}}}},
            r"models\.text_knn needs side\.vectors",
        ),
        ({"side": {"combine": "concat"}}, "neither side.vectors nor side.items is given"),
        (
            {"side": {"vectors": "text+image"}},
            "no text and no image vectors of online_retail yet: `kedro run --pipelines=embed "
            r"--params dataset=online_retail,modality=text\+image`",
        ),
        (
            {"model": "tiger+parallel_tiger"},
            "no text and no text_parts ids of online_retail yet: `kedro run --pipelines=embed,semantic_ids "
            r"--params dataset=online_retail,modality=text\+text_parts`",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(project_copy, session_in, params, message):
    with (
        session_in(project_copy, env="test", runtime_params=params) as session,
        pytest.raises(ValueError, match=message),
    ):
        session.run(pipeline_names=["ingest", "train"])
    assert not [path for path in (project_copy / "data").rglob("*.parquet") if "01_raw" not in path.parts]


def test_a_run_with_side_information_of_every_kind(project_copy, session_in) -> None:
    side = {"vectors": "text", "items": "price", "users": "country", "events": "hour+weekday+gap"}
    time = {"protocol": {"time": "last_item"}}
    params = {**FAST, **time, "model": "sasrec+text_knn", "models": {"sasrec": {"side": side}}}
    with session_in(project_copy, env="test", runtime_params=params) as session:
        session.run(pipeline_names=["ingest", "embed", "train", "evaluate"])
    data = project_copy / "data" / "test"
    for model in ("sasrec", "text_knn"):
        (file,) = (data / "08_reporting/online_retail" / model).rglob("metrics.json/*/metrics.json")
        metrics = json.loads(file.read_text())
        assert metrics["settings"]["side"]["vectors"] == "text"
        assert metrics["test"]["ndcg@10"] > 0
        (folder,) = (data / "06_models/online_retail" / model).rglob("bundle/*/bundle")
        bundle = load_bundle(folder)
        assert set(bundle.training["embeddings"]) == {"text"}
    with session_in(project_copy, env="test", runtime_params={**time, "model": "sasrec+text_knn"}) as session:
        session.run(pipeline_names=["train", "evaluate"])  # sasrec without: the same protocol, other settings
    files = sorted((data / "08_reporting/online_retail/sasrec").rglob("metrics.json/*/metrics.json"))
    first, second = (json.loads(file.read_text()) for file in files)
    assert first["protocol"]["id"] == second["protocol"]["id"]
    assert first["settings_id"] != second["settings_id"] and "side" not in second["settings"]
    with session_in(project_copy, env="test") as session:
        fold = session.load_context().catalog.load("test_set")
    assert {"country"} == set(fold.histories.profiles)
    folders = sorted((data / "06_models/online_retail/sasrec").rglob("bundle/*/bundle"))
    model = load_bundle(folders[0]).model
    assert np.isfinite(model.recommend(fold.histories, 5)[1]).all()
