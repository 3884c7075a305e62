"""Registered versions in an SQLite store, read back by MLflow's own client; saving a model is tested elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from mlflow import MlflowClient

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Vocabulary
from recpipe.models.registry import build
from recpipe.serving.registry.champion import Decision, Evidence, decide
from recpipe.serving.registry.mlflow_registry import Registry
from recpipe.training.bundle import Bundle

NAME = "shop-popular"


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """One migrated, empty database, copied by every test: MLflow takes seconds to make one."""
    path = tmp_path_factory.mktemp("mlflow") / "m.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def client(tmp_path, database, monkeypatch) -> MlflowClient:
    (tmp_path / "m.db").write_bytes(database.read_bytes())

    def save(folder: Path, path: Path, *, mlflow_model, metadata) -> None:
        path.mkdir()
        mlflow_model.metadata = dict(metadata)
        mlflow_model.save(str(path / "MLmodel"))

    monkeypatch.setattr("recpipe.serving.registry.mlflow_registry.save_mlflow_model", save)
    return MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'm.db'}")


def new_run(client: MlflowClient, folder: Path) -> Registry:
    experiment = client.get_experiment_by_name("shop")
    number = experiment.experiment_id if experiment else client.create_experiment("shop", (folder / "files").as_uri())
    return Registry(client.tracking_uri, client.create_run(number).info.run_id)


def popular() -> Bundle:
    vocabulary = Vocabulary(np.array(["a", "b", "c"], object))
    model = build("popular", {}, n_items=3, max_length=6)
    protocol = Protocol(dataset="shop", fingerprint="abc")
    return Bundle("popular", "popular", model, vocabulary, [None] * 3, np.array([3, 2, 1]), protocol, {"seed": 1})


def evidence(rank: int, version: str = "v1", **fields: object) -> Evidence:
    users = [f"u{n}" for n in range(30)]
    ranks = pa.table({"user_id": users, "target": ["a"] * 30, "rank": [rank] * 30, "cold": [False] * 30})
    values = {"metrics": {"ndcg@10": 1 / np.log2(rank + 1)}, "ranks": ranks, "bundle_version": version}
    return Evidence(**{"run": "shop/popular/seed_1", "run_version": version, "protocol": "p", **values, **fields})


def register(client: MlflowClient, folder: Path, new: Evidence) -> tuple[str, Decision]:
    registry = new_run(client, folder)
    champion = registry.champion(NAME)
    decision = decide(new, champion and champion[1])
    version = registry.register(NAME, popular(), folder / "bundle", new, {"dataset": "shop"})
    registry.set_alias(NAME, version, decision)
    return version, decision


def test_the_alias_moves_only_to_a_better_version_by_ranks_that_the_store_keeps(client, tmp_path) -> None:
    for number, (rank, aliases) in enumerate(
        [(4, {"champion": 1}), (5, {"champion": 1, "challenger": 2}), (2, {"champion": 3, "challenger": 2})], start=1
    ):
        version, decision = register(client, tmp_path, evidence(rank, f"v{number}"))
        assert version == str(number)
        found = client.get_registered_model(NAME).aliases
        assert {alias: int(value) for alias, value in found.items()} == aliases
        assert client.get_model_version(NAME, version).tags["alias_reason"] == decision.reason
    assert "p = 0.0001" in decision.reason


def test_a_version_says_what_it_is_and_what_it_stands_for(client, tmp_path) -> None:
    refit = evidence(1, "v2", made_by="refit", run_version="v1")
    version, _ = register(client, tmp_path, refit)
    found = client.get_model_version(NAME, version)
    tags = {"protocol": "p", "made_by": "refit", "bundle_version": "v2", "measured_version": "v1", "dataset": "shop"}
    assert tags.items() <= found.tags.items()
    assert float(found.tags["measured.ndcg_at_10"]) == 1
    assert "made by refit" in found.description and "ndcg@10 1.0000" in found.description
    run = client.get_run(found.run_id)
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("shop", "abc")
    assert json.loads(data.dataset.profile)["training_events"] == 6
    (output,) = run.outputs.model_outputs
    logged = client.get_logged_model(output.model_id)
    assert str(logged.status) == "READY" and found.source == logged.artifact_location
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": int(version)}]
    assert run.data.metrics == {}  # a refit has none of its own


def test_lost_ranks_of_the_champion_leave_the_alias(client, tmp_path) -> None:
    version, _ = register(client, tmp_path, evidence(4))
    for file in (tmp_path / "files").rglob("ranks.parquet"):
        file.unlink()
    _, decision = register(client, tmp_path, evidence(1, "v2"))
    assert not decision.champion and "the champion's ranks" in decision.reason
    assert str(client.get_registered_model(NAME).aliases["champion"]) == version


def test_a_model_that_cannot_be_saved_is_marked_as_failed_and_has_no_version(client, tmp_path, monkeypatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise ValueError("no answer")

    monkeypatch.setattr("recpipe.serving.registry.mlflow_registry.save_mlflow_model", fail)
    registry = new_run(client, tmp_path)
    with pytest.raises(ValueError, match="no answer"):
        registry.register(NAME, popular(), tmp_path, evidence(1), {})
    experiment = client.get_run(registry.run_id).info.experiment_id
    assert [str(each.status) for each in client.search_logged_models([experiment])] == ["FAILED"]
    assert client.search_registered_models() == []


def test_a_store_that_cannot_be_written_is_named(client, tmp_path) -> None:
    (tmp_path / "files").write_text("a file where the folder of artifacts should be")
    with pytest.raises(ValueError, match="MLflow refused the registration.*m.db can be written.*tracking_uri"):
        register(client, tmp_path, evidence(1))
    assert client.search_registered_models() == []


def test_an_unknown_store_is_named_without_its_address() -> None:
    with pytest.raises(ValueError, match="see that the tracking server can be written to") as error:
        Registry("ftp://user:secret@nowhere", "run").champion(NAME)
    assert "secret" not in str(error.value)
