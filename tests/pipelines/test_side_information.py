"""Side information through Kedro: which model is wired to what, what is refused, and a run with all of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from kedro.framework.project import pipelines
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project

from recpipe.pipelines import zoo
from recpipe.session import Refused, check_parameters, winning, with_side
from recpipe.training.bundle import load_bundle

EMBEDDINGS = ("text_embeddings", "image_embeddings", "text_image_embeddings")
FAST = {"embed": {"text": "tfidf"}}


def reads(model: str) -> list[str]:
    (node,) = (node for node in pipelines["train"].nodes if node.name == f"{model}.train_model")
    return [name for name in node.inputs if name in EMBEDDINGS]


def planned(session_in, folder: Path, monkeypatch, params: dict, **options) -> dict:
    """Session.run's options, with nothing run."""
    seen: dict = {}
    monkeypatch.setattr(KedroSession, "run", lambda self, **given: seen.update(given))
    with session_in(folder, runtime_params=params) as session:
        session.run(**options)
    return seen


def test_without_a_session_models_are_wired_as_their_files_say(project_copy: Path, monkeypatch) -> None:
    own = project_copy / "conf" / "local" / "parameters" / "models"
    own.mkdir(parents=True)
    (own / "lstm.yml").write_text(
        "models: {lstm: {side: {vectors: text}, datasets: {online_retail: {side: {vectors: text+text_image}}}}}"
    )
    monkeypatch.chdir(project_copy)
    monkeypatch.setattr(zoo, "_declared", [])
    bootstrap_project(project_copy)
    assert reads("text_knn") == ["text_embeddings"] and reads("siglip_knn") == ["image_embeddings"]
    assert reads("lstm") == ["text_embeddings", "text_image_embeddings"]
    assert not reads("sasrec") and not reads("popular")


def test_a_run_wires_what_the_command_line_asks_for(project_copy, session_in, monkeypatch) -> None:
    def asked(**params: object) -> None:
        planned(session_in, project_copy, monkeypatch, params, pipeline_names=["train"])

    asked(models={"sasrec": {"side": {"vectors": "text"}}})
    assert reads("sasrec") == ["text_embeddings"] and not reads("lstm")
    asked(side={"vectors": "text+image"})
    assert reads("sasrec") == reads("lstm") == reads("text_knn") == ["text_embeddings", "image_embeddings"]
    assert not reads("popular") and not reads("item_knn")
    asked(side={"vectors": "text"}, models={"lstm": {"side": {"vectors": "none"}}})
    assert reads("sasrec") == ["text_embeddings"] and not reads("lstm")
    asked()
    assert not reads("sasrec")


def test_all_are_the_models_whose_vectors_the_run_can_have(project_copy, session_in, monkeypatch) -> None:
    def chosen(**params: object) -> set[str]:
        given = {"model": "all", **params}
        return set(planned(session_in, project_copy, monkeypatch, given, pipeline_names=["train"])["tags"])

    assert {"text_knn", "sasrec", "popular"} < chosen() and "siglip_knn" not in chosen()
    assert {"text_knn", "siglip_knn"} < chosen(dataset="ml-1m", modality="text+image")
    assert "siglip_knn" in chosen(model="siglip_knn")


def test_the_command_line_wins_for_side_as_for_train() -> None:
    side = {"vectors": "none", "combine": "add"}
    conf = {
        "dataset": "d",
        "datasets": {"d": {}},
        "side": side,
        "models": {
            "a": {"side": {"vectors": "image"}, "datasets": {"d": {"side": {"vectors": "text"}}}},
            "b": {},
        },
    }
    given = winning({"side": {"vectors": "none", "combine": "concat"}}, conf)
    assert given["models"] == {
        "a": {"side": {"vectors": "none"}, "datasets": {"d": {"side": {"vectors": "none"}}}}
    }
    said = {"side": {"vectors": "none"}, "models": {"a": {"side": {"vectors": "image"}}}}
    assert winning(said, conf)["models"]["a"]["datasets"]["d"]["side"]["vectors"] == "image"
    check_parameters({"models": {"b": {"side": {"combine": "concat"}}}}, with_side(conf))
    with pytest.raises(Refused, match=r"'models\.b\.side\.vector' \(did you mean 'vectors'"):
        check_parameters({"models": {"b": {"side": {"vector": "text"}}}}, with_side(conf))


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (
            {"side": {"vectors": "txt"}},
            Refused,
            r"side\.vectors: unknown vectors 'txt'; choose text, image, text_image",
        ),
        (
            {"model": "popular", "models": {"popular": {"side": {"items": "price"}}}},
            ValueError,
            "models of type popular read no side information; drop `side`",
        ),
        (
            {"model": "text_knn", "models": {"text_knn": {"side": {"vectors": "none"}}}},
            ValueError,
            r"models\.text_knn cannot do without side\.vectors",
        ),
        ({"side": {"combine": "concat"}}, ValueError, "neither side.vectors nor side.items is given"),
        (
            {"side": {"vectors": "text+image"}},
            ValueError,
            "no text and no image vectors of online_retail yet: `kedro run --pipelines=embed "
            r"--params dataset=online_retail,modality=text\+image`",
        ),
        (
            {"model": "tiger+parallel_tiger"},
            ValueError,
            "no text and no text_parts ids of online_retail yet: `kedro run --pipelines=embed,semantic_ids "
            r"--params dataset=online_retail,modality=text\+text_parts`",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(project_copy, session_in, params, error, message):
    with (
        session_in(project_copy, env="test", runtime_params=params) as session,
        pytest.raises(error, match=message),
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
