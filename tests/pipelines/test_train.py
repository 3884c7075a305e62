"""Nodes of train called as functions: the split, and what a trained model's bundle holds."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from kedro.pipeline import Node
from tests.synthetic import random_sequences, sequences

from recpipe.config import DataPaths, RunConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.data.splits import TrainingData
from recpipe.pipelines.train import split_sequences, train_model
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.settings import MACHINE, TrainSettings

INGEST: dict[str, Any] = {"engine": {}}
STEPS = pl.DataFrame(
    {
        "step": [0, 1],
        "name": ["raw", "last"],
        "detail": ["{}", '{"k": 5}'],
        "rows": [90, 80],
        "users": [9, 8],
        "items": [7, 7],
    }
)
SPLIT = Protocol(dataset="shop", fingerprint="f", steps=("raw {}", 'last {"k": 5}'))
DATA = random_sequences(8, 7, seed=0)
FAST = {"device": "cpu", "batch_tokens": 640, "max_epochs": 1}


def training_data(protocol: Protocol = SPLIT, *, targets: list[int] | None = None) -> TrainingData:
    """Eight users; item 8 is in no training sequence."""
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(8)], dtype=object))
    fold = Fold(DATA, sequences([[target] for target in targets or [1 + n % 7 for n in range(8)]]))
    return TrainingData({"id": protocol.id, **protocol.to_dict()}, vocabulary, DATA, fold)


def train(folder: Path, type_: str, data: TrainingData, settings: dict, *, train: dict, **more: Any) -> Bundle:
    config = RunConfig(
        name="m",
        dataset="shop",
        type=type_,
        settings=settings,
        train=train,
        side={},
        seed=1,
        **{"cold_users": {}, **more},
    )
    items = pl.DataFrame({"item_id": data.vocabulary.ids.tolist(), "title": ["x"] * 8})
    bundle = train_model(config, data, DataPaths(folder, folder, "shop"), items=items)
    assert isinstance(bundle, Bundle)
    return bundle


def test_the_split_gives_what_fitting_may_see_and_the_test_fold(tmp_path) -> None:
    path = tmp_path / "interactions.parquet"
    rows = [(f"u{u}", f"i{(u + n) % 6}", n, u * 9 + n) for u in range(5) for n in range(4)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "order"], orient="row").write_parquet(path)
    inputs = ["interactions", "users", "ingest_steps", "protocol", "ingest", "paths"]
    node = Node(split_sequences, inputs, ["training_data", "test_set"])
    users = pl.DataFrame({"user_id": ["u3", "u0"], "country": ["fr", "de"]})
    paths = DataPaths(tmp_path, tmp_path, "shop")
    values = [path, users, STEPS, Protocol(dataset="shop", split="leave_one_out"), INGEST, paths]
    found = node.run(dict(zip(inputs, values, strict=True)))
    data, test_set = found["training_data"], found["test_set"]
    assert data.protocol_fields["steps"] == list(SPLIT.steps)
    assert data.protocol.id == data.protocol_fields["id"] and data.protocol.fingerprint
    assert len(data.vocabulary) == 6
    assert len(data.train_set.items) == 10
    assert (len(data.valid_set), len(test_set)) == (5, 5)
    assert data.protocol_fields["sizes"]["train_events"] == 10
    for part in (data.train_set, data.valid_set.histories, test_set.histories):
        known = dict(zip(part.users, part.profiles["country"].to_pylist(), strict=True))
        assert known == {"u0": "de", "u1": None, "u2": None, "u3": "fr", "u4": None}
    bare = node.run(dict(zip(inputs, [path, users.head(0).select("user_id"), *values[2:]], strict=True)))
    assert bare["training_data"].protocol_fields["id"] == data.protocol_fields["id"]


def test_the_test_fold_of_another_split_is_refused(tmp_path) -> None:
    path = tmp_path / "interactions.parquet"
    rows = [(f"u{u}", f"i{(u + n) % 6}", n, u * 9 + n) for u in range(9) for n in range(6)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "order"], orient="row").write_parquet(path)
    users = pl.DataFrame({"user_id": ["u3"]})
    paths = DataPaths(tmp_path, tmp_path, "shop")
    for rule in ("leave_one_out", "ratio"):
        data, test_set = split_sequences(
            path, users, STEPS, Protocol(dataset="shop", split=rule, valid=0.2, test=0.4), INGEST, paths
        )
        data.write(tmp_path / rule)
        test_set.write(tmp_path / rule / "test_set.arrow")
    data = TrainingData.read(tmp_path / "ratio")
    data.check_test_set(Fold.read(tmp_path / "ratio/test_set.arrow"))
    with pytest.raises(ValueError, match="test_set.arrow is of another split .* run `kedro run --pipelines=train`"):
        data.check_test_set(Fold.read(tmp_path / "leave_one_out/test_set.arrow"))


def test_a_model_that_uses_more_of_time_than_the_protocol_allows_is_not_trained(tmp_path) -> None:
    settings = {"dim": 8, "layers": 1, "time_mode": "query"}

    def bundle(time: str) -> Bundle:
        data = training_data(replace(SPLIT, time=time))
        return train(tmp_path, "hstu", data, settings, train={**FAST, "loggers": []})

    with pytest.raises(ValueError, match=r"m uses time as query .* --params protocol.time=query"):
        bundle("last_item")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert bundle("query").protocol.time == "query"


@pytest.mark.parametrize("type_", ["popular", "sasrec"])
def test_validation_is_put_back_where_the_settings_say_so(type_, tmp_path) -> None:
    data = training_data(targets=[8] * 8)  # an item that only validation has
    bundle = train(tmp_path, type_, data, {}, train={**FAST, "train_on_validation": True})
    assert bundle.train_events[7] == 8
    assert bundle.training["settings"]["train"]["train_on_validation"] is True
    assert not [name for row in bundle.curve for name in row if "valid" in name]


@pytest.mark.parametrize(("type_", "settings"), [("svd", {"factors": 2}), ("sasrec", {"dim": 8})])
def test_a_bundle_records_whether_weights_were_used(type_, settings, tmp_path) -> None:
    data = training_data()
    other = replace(DATA, weights=np.arange(len(DATA.items), dtype=np.float32))
    targets = replace(data.valid_set.targets, weights=np.ones(8, np.float32))
    fold = Fold(other, targets)
    weighted = TrainingData(data.protocol_fields, data.vocabulary, other, fold)
    lists = {}
    for name, part, use in (("plain", data, True), ("weighted", weighted, True), ("off", weighted, False)):
        bundle = train(tmp_path / name, type_, part, settings, train={**FAST, "weights": use})
        recorded = bundle.training["settings"].get("train", {}).get("weights")
        assert (recorded is not None) is bundle.model.uses_weights is (name == "weighted")
        (tmp_path / name / "bundle").mkdir(parents=True)
        save_bundle(bundle, tmp_path / name / "bundle")
        loaded = load_bundle(tmp_path / name / "bundle").model
        lists[name] = bundle.model.recommend(fold.histories, 7)[1]
        np.testing.assert_array_equal(loaded.recommend(fold.histories, 7)[1], lists[name])
    np.testing.assert_array_equal(lists["plain"], lists["off"])
    assert not np.array_equal(lists["plain"], lists["weighted"])


@pytest.mark.parametrize(("window", "seen"), [(3, 3), (None, 200), (500, 200)])
def test_a_model_reads_its_window_and_never_more_than_the_protocols_history(window, seen, tmp_path) -> None:
    bundle = train(tmp_path, "sasrec", training_data(), {"dim": 8}, train={**FAST, "window": window})
    assert bundle.model.max_length == seen


@pytest.mark.parametrize("type_", ["popular", "sasrec"])
def test_a_bundle_holds_the_settings_in_force(type_, tmp_path) -> None:
    small = {"dim": 8, "layers": 1} if type_ == "sasrec" else {}
    cold_users = {"novelty": 0.5, "smoothing": 7.0}
    bundle = train(tmp_path, type_, training_data(), small, train={**FAST, "patience": 3}, cold_users=cold_users)
    assert (bundle.model.cold_users.config.novelty, bundle.model.cold_users.config.smoothing) == (0.5, 7)
    found = bundle.training["settings"]
    assert found["type"] == type_
    if type_ == "popular":
        assert "train" not in found  # it is not trained
    else:
        assert (found["dim"], found["layers"], found["heads"]) == (8, 1, 1)
        expected = TrainSettings(device="cpu", batch_tokens=640, patience=3, max_epochs=1)
        unrecorded = {"weights", *MACHINE}
        assert found["train"] == {name: value for name, value in asdict(expected).items() if name not in unrecorded}
        assert [row["epoch"] for row in bundle.curve] == [1]


def test_titles_and_training_events_stand_in_the_order_of_the_vocabulary(tmp_path) -> None:
    data = training_data()
    config = RunConfig(name="m", dataset="shop", type="popular", settings={}, train={}, side={}, cold_users={})
    ids = data.vocabulary.ids.tolist()[::-1]
    items = pl.DataFrame({"item_id": ids[:-1], "title": [f"title of {item}" for item in ids[:-1]]})
    bundle = train_model(config, data, DataPaths(tmp_path, tmp_path, "shop"), items=items)
    assert bundle.titles == [None, *(f"title of i{n}" for n in range(1, 8))]
    expected = [int((DATA.items == number).sum()) for number in range(1, 9)]
    assert bundle.train_events.tolist() == expected
