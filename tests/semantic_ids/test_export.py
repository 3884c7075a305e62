"""Sequences and ids for other repositories: read back by their rules, and by our own import."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.semantic_ids.test_foreign import config

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Sequences, Vocabulary
from recpipe.data.splits import Split, split
from recpipe.semantic_ids.export import export_ids, export_sequences
from recpipe.semantic_ids.foreign import import_ids
from recpipe.semantic_ids.ids import SemanticIds

ITEMS = 12
VOCABULARY = Vocabulary(np.array([f"B{number:02d}" for number in range(ITEMS)], object))
PROTOCOL = Protocol.from_dict({
    "dataset": "shop", "fingerprint": "x", "steps": [], "split": "leave_one_out", "valid": 0.1, "test": 0.1,
    "targets": "next", "ties": "source", "seed": 1, "held_out_items": 0.0, "history": 50, "exclude_seen": False,
    "candidates": "full", "time": "none", "cutoffs": [10],
})  # fmt: skip


def log_of(lengths: list[int]) -> Sequences:
    rng = np.random.default_rng(0)
    items = rng.integers(1, ITEMS + 1, sum(lengths)).astype(np.int32)
    users = [f"u{number}" for number in range(len(lengths))]
    return Sequences(users, items, None, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))


def exported(folder: Path, parts: Split, protocol: Protocol = PROTOCOL) -> dict:
    return export_sequences(
        folder, "shop", protocol=protocol, vocabulary=VOCABULARY, train=parts.train, valid=parts.valid, test=parts.test
    )


def numbers(path: Path) -> dict[str, str]:
    return dict(line.split("\t")[::-1] for line in path.read_text().splitlines())


def test_their_rules_find_our_split_in_the_file(tmp_path) -> None:
    log = log_of([5, 1, 3, 2, 9, 4])
    parts = split(log, PROTOCOL)
    about = exported(tmp_path, parts)
    inter = json.loads((tmp_path / "shop.inter.json").read_text())
    item_of, user_of = numbers(tmp_path / "shop.item2id"), numbers(tmp_path / "shop.user2id")
    assert [user_of[number] for number in inter] == ["u0", "u2", "u4", "u5"], "others have nothing held out here"
    for number, sequence in inter.items():
        items = [item_of[str(item)] for item in sequence]
        row = log.users.array.to_pylist().index(user_of[number])
        assert items == VOCABULARY.ids[log.row(row) - 1].tolist()
        for fold, history in ((parts.test, items[:-1]), (parts.valid, items[:-2])):
            place = fold.histories.users.array.to_pylist().index(user_of[number])
            assert history == VOCABULARY.ids[fold.histories.row(place) - 1].tolist()
            assert items[len(history)] == VOCABULARY.ids[fold.targets.row(place)[0] - 1]
    assert (about["users"], about["users_only_in_training"], about["events"]) == (4, 2, 21)
    assert "last event of a user is the test target, the one before it the validation target" in about["held_out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "ratio"}, "protocol.split is ratio; make a split .*protocol.split=leave_one_out"),
        ({"held_out_items": 0.1}, "protocol.held_out_items is 0.1"),
        ({"target_events": ("purchase",)}, "protocol.target_events is set"),
    ],
)
def test_splits_that_their_code_would_not_make_are_refused(tmp_path, change: dict, message: str) -> None:
    parts = split(log_of([5, 6]), PROTOCOL)
    with pytest.raises(ValueError, match=message):
        exported(tmp_path, parts, replace(PROTOCOL, **change))
    with pytest.raises(ValueError, match="of 2 users the last event before the test target is not"):
        exported(tmp_path, replace(parts, valid=split(log_of([4, 5]), PROTOCOL).valid))
    assert not list(tmp_path.iterdir())


def ids_of(codes: np.ndarray, items: np.ndarray = VOCABULARY.ids) -> SemanticIds:
    sizes = tuple(int(code) + 3 for code in codes.max(0))
    added = np.zeros(len(codes), bool)
    return SemanticIds(items, codes, codes[:, :2], added, sizes, {"policy": "extra_digit", "quantizer": "q"})


@pytest.mark.parametrize("file", ["index.json", "ids.json", "ids.parquet"])
def test_what_is_exported_is_imported_again(tmp_path, file: str) -> None:
    codes = np.random.default_rng(0).permutation(ITEMS * 3)[: ITEMS * 3].reshape(ITEMS, 3).astype(np.int32)
    ids = ids_of(codes)
    about = export_ids(tmp_path, "shop", "text", ids, VOCABULARY)
    exported(tmp_path, split(log_of([5, 6]), PROTOCOL))
    source = {"item_map": "shop.item2id"} if file == "index.json" else {}
    settings = config("refuse", file=f"shop.text.{file}", codes=about["sizes"], **source)
    back = import_ids(VOCABULARY.ids, tmp_path, settings)
    assert (back.codes == ids.codes).all() and back.sizes == ids.sizes
    assert back.item_ids.tolist() == VOCABULARY.ids.tolist() and about["unique"]


def test_items_without_an_id_and_levels_without_a_letter(tmp_path, caplog) -> None:
    codes = np.arange(30 * 10, dtype=np.int32).reshape(10, 30)
    about = export_ids(tmp_path, "shop", "text_parts", ids_of(codes, VOCABULARY.ids[2:]), VOCABULARY)
    assert about["items_without_id"] == 2 and about["files"] == [
        "shop.text_parts.ids.json",
        "shop.text_parts.ids.parquet",
    ]
    assert "no index.json: 30 levels have no letters" in caplog.text
    about = export_ids(tmp_path, "shop", "image", ids_of(codes[:, :2], VOCABULARY.ids[2:]), VOCABULARY)
    assert "2 of 12 items have no image id: code that looks up every item" in caplog.text
    index = json.loads((tmp_path / "shop.image.index.json").read_text())
    assert list(index) == [str(number) for number in range(2, 12)] and index["2"] == ["<A_0>", "<B_1>"]
    with pytest.raises(ValueError, match="none of 12 items has a text id"):
        export_ids(tmp_path, "shop", "text", ids_of(codes[:2], np.array(["x", "y"], object)), VOCABULARY)


def test_ids_of_users_that_break_the_file_of_numbers_are_refused(tmp_path) -> None:
    log = log_of([5, 6])
    with pytest.raises(ValueError, match="user2id cannot hold 'a.tb'"):
        exported(tmp_path, split(replace(log, users=["a\tb", "c"]), PROTOCOL))
