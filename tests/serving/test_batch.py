"""Batch lists against the lists of single users, and files against the tables that they were written from."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from tests.synthetic import catalogue_ids, random_sequences, write_log

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.requests import RequestFile, Requests
from recpipe.data.sequences import Vocabulary
from recpipe.evaluation.recommendations import SubmissionLayout
from recpipe.layers.cold_users import ColdUsers
from recpipe.models.registry import build
from recpipe.serving.batch import BatchJob
from recpipe.serving.model import ServingBundle
from recpipe.training.bundle import Bundle

ITEMS, USERS = 20, 30
VOCABULARY = Vocabulary(np.array([f"i{n:02}" for n in range(ITEMS)], dtype=object))
CODES = {"dim": 16, "heads": 2, "head_dim": 8, "feed_forward": 32, "layers": 1, "decoder_layers": 1, "beam": ITEMS}
SETTINGS = {"sasrec": {"dim": 16, "heads": 2, "layers": 1}, "tiger": CODES, "popular": {}}


def serving_bundle(name: str, vocabulary: Vocabulary = VOCABULARY) -> ServingBundle:
    """An untrained model of random weights with a fitted fallback; `popular` is fitted."""
    torch.manual_seed(0)
    data = random_sequences(USERS, ITEMS, seed=1)
    ids = {"text": catalogue_ids(ITEMS)} if name == "tiger" else None
    model = build(name, SETTINGS[name], n_items=ITEMS, max_length=6, ids=ids)
    if name == "popular":
        model.fit(data)
    model.cold_users = ColdUsers(ColdUsersConfig(), n_items=ITEMS).fit(data, seed=0)
    events = np.bincount(data.items, minlength=ITEMS + 1)[1:]
    titles = [f"Lantern {n}" if n % 2 else None for n in range(ITEMS)]
    return ServingBundle.of(Bundle(name, name, model.eval(), vocabulary, titles, events, Protocol(dataset="tiny")))


@pytest.fixture
def model() -> ServingBundle:
    return serving_bundle("sasrec")


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    data = random_sequences(USERS, ITEMS, seed=2)
    rows = [
        (user, VOCABULARY.ids[item - 1], t) for u, user in enumerate(data.users) for t, item in enumerate(data.row(u))
    ]
    return write_log(tmp_path / "interactions.parquet", rows)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., tuple[list[dict], list[list[str]], dict]]:
    """`written(job, requests)`: rows of the Parquet file, rows of the submission without header, and the summary."""

    def write(job: BatchJob, requests: Requests) -> tuple[list[dict], list[list[str]], dict]:
        with requests.stored(job.model.vocabulary, {"spill_folder": str(tmp_path / "spill")}) as histories:
            summary = job.write(histories, tmp_path)
        rows = pl.read_parquet(tmp_path / "recommendations.parquet").to_dicts()
        path = tmp_path / "submission.csv"
        lines = list(csv.reader(path.open(newline="")))[1:] if path.exists() else []
        assert json.loads((tmp_path / "summary.json").read_text()) == summary
        return rows, lines, summary

    return write


def file_of(tmp_path: Path, text: str, **fields: object) -> RequestFile:
    (tmp_path / "requests.csv").write_text(text)
    return RequestFile(tmp_path / "requests.csv", **fields)


def lists_of(rows: list[dict]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for row in rows:
        lists.setdefault(row["user_id"], []).append(row["item_id"])
        assert row["rank"] == len(lists[row["user_id"]])
    return lists


@pytest.mark.parametrize("batch_users", [1, 7, 1000])
@pytest.mark.parametrize("name", SETTINGS)
def test_lists_are_those_of_every_user_alone_whatever_the_batch(name, batch_users, log_file, written):
    model = serving_bundle(name)
    rows, _, summary = written(BatchJob(model, 5, batch_users=batch_users), Requests(log_file))
    histories: dict[str, list[str]] = {}
    for row in pl.read_parquet(log_file).sort("user_id", "timestamp").to_dicts():
        histories.setdefault(row["user_id"], []).append(row["item_id"])
    expected = {user: model.recommend({user: history}, 5)["item_id"].to_pylist() for user, history in histories.items()}
    assert lists_of(rows) == expected
    assert (summary["users"], summary["recommendations"]) == (USERS, 5 * USERS)
    assert {row["source"] for row in rows} == {"model"}


def test_the_table_is_that_of_recommend(model, tmp_path, written):
    rows, _, _ = written(
        BatchJob(model, 4), Requests(tmp_path, file_of(tmp_path, "user_id,item_id\nann,i03\nann,i05\n"))
    )
    expected = model.recommend({"ann": ["i03", "i05"]}, 4).to_pylist()
    assert [row.keys() for row in rows] == [row.keys() for row in expected]
    for row, other in zip(rows, expected, strict=True):
        assert row == pytest.approx(other)


def test_users_without_history_get_the_fallback_and_the_source_says_so(model, tmp_path, written):
    text = "user_id,item_id\nann,i03\nnobody,\nstranger,unknown\n"
    request = file_of(tmp_path, text, options={"sequence_per_row": True})
    rows, lines, summary = written(BatchJob(model, 3), Requests(tmp_path, request))
    assert {row["user_id"]: row["source"] for row in rows} == {
        "ann": "model", "nobody": "cold_users", "stranger": "cold_users"
    }  # fmt: skip
    assert [line[0] for line in lines] == ["ann", "nobody", "stranger"]
    assert (summary["cold_users"], summary["unknown_events"]) == (2, 1)


def test_candidates_hold_for_their_user_and_others_get_any_item(model, tmp_path, written):
    text = "user_id,item_id,candidates\nann,i03,i05 i09\nbob,i03,\neve,i03,nope\nzoe,i03,i11\n"
    request = file_of(tmp_path, text)
    rows, lines, summary = written(BatchJob(model, 4), Requests(tmp_path, request))
    lists = lists_of(rows)
    assert set(lists["ann"]) == {"i05", "i09"} and lists["zoe"] == ["i11"] and "eve" not in lists
    assert lists["bob"] == model.recommend({"bob": ["i03"]}, 4)["item_id"].to_pylist()
    assert [line[0] for line in lines] == ["ann", "bob", "eve", "zoe"] and lines[2][1] == ""
    assert (summary["users_without_list"], summary["users_with_short_list"]) == (1, 3)


def test_rules_hold_for_all_users(model, log_file, written):
    rules = {"exclude": ["i00", "i01"], "seen": "allow"}
    rows, _, _ = written(BatchJob(model, 6, rules=rules), Requests(log_file))
    assert not {"i00", "i01"} & {row["item_id"] for row in rows}
    with pytest.raises(ValueError, match="exclud"):
        BatchJob(model, rules={"exclude": "i00", "exclud": []})


def test_the_submission_has_the_first_places_of_the_layout(model, log_file, written):
    for k, top in ((3, 5), (5, 3)):
        rows, lines, _ = written(BatchJob(model, k, SubmissionLayout(top=top)), Requests(log_file))
        lists = lists_of(rows)
        assert {len(items) for items in lists.values()} == {k}
        assert [line[0] for line in lines] == list(lists)
        for user, items in lines:
            assert len(items.split(" ")) == top
            assert items.split(" ")[: min(k, top)] == lists[user][: min(k, top)]


def test_a_row_per_recommendation(model, log_file, written):
    layout = SubmissionLayout(columns={"user": "u", "item": "i", "logit": "s"}, one_row_per="recommendation", top=3)
    rows, lines, _ = written(BatchJob(model, 3, layout), Requests(log_file))
    assert [line[:2] for line in lines] == [[row["user_id"], row["item_id"]] for row in rows]
    np.testing.assert_allclose([float(line[2]) for line in lines], [row["score"] for row in rows], rtol=1e-6)


def test_without_a_separator_there_are_lists_and_no_submission(tmp_path, written, caplog):
    ids = np.array([f"{n} |;,\t" for n in range(ITEMS)], dtype=object)
    model = serving_bundle("sasrec", Vocabulary(ids))
    log_file = write_log(tmp_path / "interactions.parquet", [("ann", ids[0], 1)])
    with caplog.at_level(logging.WARNING):
        rows, lines, _ = written(BatchJob(model, 3), Requests(log_file))
    assert len(rows) == 3 and lines == []
    assert "no submission.csv" in caplog.text


def test_more_places_than_items_give_all_items(model, log_file, written):
    rows, _, _ = written(BatchJob(model, 10**9, rules={"seen": "allow"}), Requests(log_file))
    assert all(len(items) == ITEMS for items in lists_of(rows).values())


@pytest.mark.parametrize("k", [0, -1, "ten", True])
def test_k_is_a_whole_number_from_1(model, k):
    with pytest.raises(ValueError, match="whole number from 1"):
        BatchJob(model, k)
