"""Nodes called as functions: what train hands to a bundle."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
from kedro.pipeline import Node
from tests.synthetic import random_sequences, sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.pipelines.train.nodes import split_sequences, steps_of, train_model
from recpipe.pipelines.train.pipeline import LOG, PARTS
from recpipe.training.fit import TrainSettings

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
SPLIT = Protocol(dataset="shop", fingerprint="f", steps=steps_of(STEPS))


def described(protocol: Protocol) -> dict:
    return {"id": protocol.id, **protocol.to_dict()}


def test_the_split_gives_each_part_to_the_entry_of_its_name(tmp_path) -> None:
    path = tmp_path / "interactions.parquet"
    rows = [(f"u{u}", f"i{(u + n) % 6}", n, u * 9 + n) for u in range(5) for n in range(4)]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "order"], orient="row").write_parquet(path)
    node = Node(split_sequences, LOG, PARTS)
    users = pl.DataFrame({"user_id": ["u3", "u0"], "country": ["fr", "de"]})
    values = [path, users, STEPS, {"shop": {}}, "shop", {"split": "leave_one_out"}]
    found = node.run(dict(zip(LOG, values, strict=True)))
    assert found["protocol"]["steps"] == list(steps_of(STEPS))
    assert len(found["vocabulary"]) == 6
    assert len(found["train_set"].items) == 10
    assert (len(found["valid_set"]), len(found["test_set"])) == (5, 5)
    assert found["split_sizes"]["train_events"] == 10
    for part in (found["train_set"], found["valid_set"].histories, found["test_set"].histories):
        known = dict(zip(part.users, part.profiles["country"].to_pylist(), strict=True))
        assert known == {"u0": "de", "u1": None, "u2": None, "u3": "fr", "u4": None}
    bare = node.run(dict(zip(LOG, [path, users.head(0).select("user_id"), *values[2:]], strict=True)))
    assert bare["protocol"]["id"] == found["protocol"]["id"]


def test_a_model_that_uses_more_of_time_than_the_protocol_allows_is_not_trained(tmp_path) -> None:
    data, ids = random_sequences(8, 7, seed=0), np.array([f"i{n}" for n in range(7)], dtype=object)
    items = pl.DataFrame({"item_id": ids.tolist(), "title": ["x"] * 7})
    fold = Fold(data, sequences([[1 + n % 7] for n in range(8)]))
    block = {"type": "hstu", "dim": 8, "layers": 1, "time_mode": "query"}
    train = {"device": "cpu", "batch_tokens": 640, "max_epochs": 1, "loggers": []}

    def trained(time: str):
        protocol = described(replace(SPLIT, time=time))
        return train_model(
            "m",
            data,
            fold,
            Vocabulary(ids),
            items,
            protocol,
            block,
            train,
            {},
            "shop",
            1,
            tmp_path,
            {},
            {"shop": {}},
        )

    with pytest.raises(ValueError, match=r"m uses time as query .* --params protocol.time=query"):
        trained("last_item")
    assert not list(tmp_path.iterdir())
    assert trained("query")[0].protocol.time == "query"


@pytest.mark.parametrize("kind", ["popular", "sasrec"])
def test_validation_is_put_back_where_the_settings_say_so(kind, tmp_path) -> None:
    data = random_sequences(8, 7, seed=0)
    block = {"type": kind, "train": {"max_epochs": 1, "device": "cpu", "put_back": True}}
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(8)], dtype=object))
    items = pl.DataFrame({"item_id": vocabulary.ids.tolist(), "title": ["x"] * 8})
    fold = Fold(data, sequences([[8]] * 8))  # an item that only validation has
    protocol = described(SPLIT)
    given = (data, fold, vocabulary, items, protocol, block, {}, {}, "shop", 1, tmp_path)
    bundle, curve = train_model("m", *given, {}, {"shop": {}})
    assert bundle.train_events[7] == 8
    assert bundle.training["settings"]["train"]["put_back"] is True
    assert not [name for name in curve.columns if "valid" in name]


@pytest.mark.parametrize(("window", "seen"), [(3, 3), (None, 200), (500, 200)])
def test_a_model_reads_its_window_and_never_more_than_the_protocols_history(window, seen, tmp_path) -> None:
    data = random_sequences(8, 7, seed=0)
    block = {"type": "sasrec", "dim": 8, "train": {"max_epochs": 1, "device": "cpu", "window": window}}
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(7)], dtype=object))
    items = pl.DataFrame({"item_id": vocabulary.ids.tolist(), "title": ["x"] * 7})
    fold = Fold(data, sequences([[1 + n % 7] for n in range(8)]))
    given = (data, fold, vocabulary, items, described(SPLIT), block, {}, {}, "shop", 1, tmp_path)
    assert train_model("m", *given, {}, {"shop": {}})[0].model.max_length == seen


@pytest.mark.parametrize("kind", ["popular", "sasrec"])
def test_a_bundle_holds_the_settings_in_force(kind, tmp_path) -> None:
    data = random_sequences(8, 7, seed=0)
    small = {"dim": 8, "layers": 1} if kind == "sasrec" else {}
    block = {
        "type": kind,
        **small,
        "train": {"patience": 3},
        "datasets": {"shop": {"train": {"max_epochs": 1}}},
    }
    vocabulary = Vocabulary(np.array([f"i{n}" for n in range(7)], dtype=object))
    items = pl.DataFrame({"item_id": vocabulary.ids.tolist(), "title": ["x"] * 7})
    fold = Fold(data, sequences([[1 + n % 7] for n in range(8)]))
    protocol, train = described(SPLIT), {"device": "cpu", "batch_tokens": 640}
    given = (data, fold, vocabulary, items, protocol, block, train, {}, "shop", 1, tmp_path)
    bundle, _ = train_model("m", *given, {"novelty": 0.5}, {"shop": {"cold_users": {"smoothing": 7}}})
    assert (bundle.model.cold_users.config.novelty, bundle.model.cold_users.config.smoothing) == (0.5, 7)
    found = bundle.training["settings"]
    assert found["type"] == kind
    if kind == "popular":
        assert "train" not in found  # it is not trained
    else:
        assert (found["dim"], found["layers"], found["heads"]) == (8, 1, 1)
        assert "datasets" not in found
        expected = TrainSettings(device="cpu", batch_tokens=640, patience=3, max_epochs=1)
        assert found["train"] == asdict(expected)
