"""Evaluation of a bundle: what metrics.json holds, latency on a clock that runs only inside the model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tests.evaluation.test_ranking import ITEMS, fold
from tests.synthetic import random_sequences, sequences

from recpipe.data.batches import Batch
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.evaluation import evaluate as module
from recpipe.evaluation.evaluate import evaluate, latency, settings_id, validator
from recpipe.hooks.mlflow_runs import metric_values
from recpipe.models.recommender import Scorer
from recpipe.models.registry import build
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.runs import read_runs
from recpipe.training.bundle import Bundle


class Clock(Scorer):
    """Recommends the item with the number of the minute of the query."""

    requires_time = "query"

    def __init__(self) -> None:
        super().__init__(self.Config(), n_items=ITEMS, max_length=5)
        self.register_buffer("table", torch.eye(ITEMS + 1))

    def score(self, batch: Batch) -> torch.Tensor:
        batch = batch if batch.items.shape[1] else batch.pad(1)  # histories are emptied to measure cold users
        last = (batch.lengths - 1).clamp(min=0)[:, None]
        return self.table[batch.query_times.gather(1, last)[:, 0] // 60].clone()


def test_query_times_reach_models_under_the_time_protocol_query_only():
    clock = Clock()
    data = fold(1)
    data = replace(data, targets=replace(data.targets, timestamps=60 * data.targets.items.astype(np.int64)))
    query = Protocol(dataset="x", time="query")
    missed = sum(data.targets.row(u)[0] in data.histories.row(u) for u in range(len(data)))
    assert 0 < missed < len(data)
    assert validator(data, query)(clock)["valid_ndcg@10"] == pytest.approx(1 - missed / len(data))
    trained = replace(bundle(), model=clock)
    result = evaluate(trained, data, data, query).metrics
    assert result["test"]["hit_rate@1"] == result["valid"]["hit_rate@1"] == pytest.approx(1 - missed / len(data))
    assert result["protocol"]["id"] == query.id != Protocol(dataset="x").id
    for time in ("none", "last_item"):
        with pytest.raises(ValueError, match=f"uses time as query and protocol.time is {time}"):
            evaluate(trained, data, data, replace(query, time=time))
    evaluate(bundle(), data, data, query)  # a model without time may be evaluated under any


def bundle(seed: int = 0) -> Bundle:
    model = build("popular", {}, n_items=ITEMS, max_length=5)
    train = random_sequences(50, ITEMS - 1, seed=seed)
    model.fit(train)
    ids = np.array([f"item {i}" for i in range(1, ITEMS + 1)], dtype=object)
    counts = np.bincount(train.items, minlength=ITEMS + 1)[1:]
    return Bundle(
        "popular",
        "popular",
        model,
        Vocabulary(ids),
        list(ids),
        counts,
        Protocol(dataset="x"),
        {"seed": 7, "cost": {"epochs": 0}},
    )


def test_test_targets_are_told_apart_by_their_transition_in_training():
    data = Fold(sequences([[1, 2], [3], [4, 5]]), sequences([[3], [4], [6]]))
    plain = evaluate(bundle(), data, data, Protocol(dataset="x"), k=5)
    result = evaluate(bundle(), data, data, Protocol(dataset="x"), k=5, train=sequences([[7, 2, 3], [5, 4], [6, 5]]))
    assert result.ranks["transition_seen"].to_pylist() == [True, False, False]
    assert (result.metrics["memorised"]["targets"], result.metrics["generalised"]["targets"]) == (1, 2)
    assert (
        result.ranks.drop_columns("transition_seen") == plain.ranks and result.metrics["test"] == plain.metrics["test"]
    )


def test_unrankable_and_cold_targets_are_counted():
    data = Fold(sequences([[1, 2], [3], [4, 5]]), sequences([[2], [ITEMS], [6]]))
    result = evaluate(bundle(), data, data, Protocol(dataset="x"), k=5)
    test = result.metrics["test"]
    assert (test["users"], test["targets"], test["unrankable"], test["cold_targets"]) == (3, 3, 1, 1)
    assert result.metrics["protocol"]["id"] == Protocol(dataset="x").id
    cost = result.metrics["cost"]
    assert cost["inference_users_per_second"] > 0
    assert cost["inference_latency_ms_p95"] >= cost["inference_latency_ms_p50"] > 0
    ranks = result.ranks.to_pylist()
    assert [row["target"] for row in ranks] == ["item 2", f"item {ITEMS}", "item 6"]
    assert [row["cold"] for row in ranks] == [False, True, False]
    assert ranks[0]["rank"] == 0 and ranks[1]["rank"] == ITEMS - 1
    assert result.recommendations.num_rows == 15
    assert result.recommendations["probability"].null_count == 15
    assert (test["outside_candidates"], test["missed_by_beam"]) == (1, 0)


def test_lists_say_in_their_file_that_they_are_for_the_comparison_of_models(tmp_path):
    data = Fold(sequences([[1, 2], [3], [4, 5]]), sequences([[2], [ITEMS], [6]]))
    lists = evaluate(bundle(), data, data, Protocol(dataset="x"), k=5).recommendations
    pq.write_table(lists, tmp_path / "lists.parquet")
    metadata = pq.read_metadata(tmp_path / "lists.parquet").metadata
    assert b"do not show them to users" in metadata[b"description"] and metadata[b"model"] == b"popular"


def test_a_model_trained_on_validation_has_no_validation_metrics_and_a_row_on_the_leaderboard():
    data, trained = fold(1), bundle()
    trained.training["settings"] = {"type": "popular", "train": {"train_on_validation": True}}
    metrics = evaluate(trained, data, data, Protocol(dataset="x")).metrics
    honest = evaluate(bundle(), data, data, Protocol(dataset="x")).metrics
    assert metrics["train_on_validation"] is True and "valid" not in metrics
    assert metrics["test"] == honest["test"] and "train_on_validation" not in honest and honest["valid"]["targets"] > 0
    (run,), problems = read_runs([metrics])
    assert run.valid == {} and not problems
    assert leaderboard([metrics])["rank"].to_list() == [1]
    assert not any(name.startswith("valid") for name in metric_values(metrics))


def test_propensities_are_those_of_the_split_whatever_a_model_was_trained_on():
    data, other = fold(1), bundle()
    other.train_events = other.train_events[::-1].copy() + np.arange(ITEMS)
    train = sequences([[1, 1, 1, 2], [3, 1]])
    first, second = (
        evaluate(each, data, data, Protocol(dataset="x"), train=train).metrics["debiased"] for each in (bundle(), other)
    )
    assert first["effective_targets_ips"] == second["effective_targets_ips"]


def test_a_bundle_of_another_catalogue_is_an_error():
    trained = bundle()
    trained.check_catalogue(Vocabulary(trained.vocabulary.ids.copy()))
    renamed = np.array([f"other {i}" for i in range(ITEMS)], dtype=object)
    with pytest.raises(ValueError, match="another catalogue"):
        trained.check_catalogue(Vocabulary(renamed))


def test_other_data_is_an_error_and_another_seen_filter_another_protocol():
    data = fold(1)
    with pytest.raises(ValueError, match="fingerprint differ"):
        evaluate(bundle(), data, data, Protocol(dataset="x", fingerprint="other"))
    other = evaluate(bundle(), data, data, Protocol(dataset="x", exclude_seen=False))
    assert other.metrics["protocol"]["id"] != Protocol(dataset="x").id
    assert other.metrics["test"]["unrankable"] == 0


def test_settings_id_depends_only_on_settings_that_change_the_model():
    settings = {"type": "popular", "dim": 8, "train": {"max_epochs": 3, "device": "cpu", "resume": True}}
    trained, data = bundle(), fold(1)
    assert "settings_id" not in evaluate(trained, data, data, Protocol(dataset="x")).metrics
    trained.training["settings"] = settings
    metrics = evaluate(trained, data, data, Protocol(dataset="x")).metrics
    assert metrics["settings"] == settings
    text = '{"dim": 8, "train": {"max_epochs": 3}, "type": "popular"}'
    assert metrics["settings_id"] == hashlib.sha256(text.encode()).hexdigest()[:8]
    same = {**settings, "train": {"log_every": 1, "device": "cuda", "resume": False, "max_epochs": 3}}
    assert settings_id(same) == settings_id(settings)
    for other in ({**settings, "dim": 9}, {**settings, "train": {"max_epochs": 4}}):
        assert settings_id(other) != settings_id(settings)


def test_settings_that_older_versions_lack_leave_the_id_as_it_was_at_their_defaults():
    settings = {"type": "sasrec", "dim": 8, "train": {"max_epochs": 3}}
    newer = {**settings, "activation": "relu", "scale_embeddings": True, "train": {"max_epochs": 3, "ema": None}}
    assert settings_id(newer) == settings_id(settings)
    for other in ({"activation": "gelu"}, {"scale_embeddings": False}):
        assert settings_id({**newer, **other}) != settings_id(settings)
    for name in ("tiger", "mql4grec"):  # tiger has always had temperatures
        older = {"type": name, "train": {}}
        is_older = settings_id({**older, "temperatures": None, "stochastic": False}) == settings_id(older)
        assert is_older == (name == "mql4grec")
    mamba = {"type": "mamba4rec", "train": {}}
    assert settings_id({**mamba, "chunk": None}) != settings_id(mamba)


class ClockedModel:
    """Takes as many milliseconds as the history has events, and a second more for the first answer."""

    def __init__(self) -> None:
        self.now, self.queried = 0.0, []

    def recommend(self, histories, k, *, exclude_seen):
        assert len(histories) == 1 and (k, exclude_seen) == (7, False)
        self.now += len(histories.items) / 1000 + (not self.queried)
        self.queried.append(histories.users[0])


@pytest.fixture
def clocked(monkeypatch) -> ClockedModel:
    model = ClockedModel()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: model.now))
    return model


def users_fold(users: int) -> Fold:
    return Fold(sequences([[1] * (n + 1) for n in range(users)]), sequences([[2]] * users))


def test_latency_is_that_of_single_users_after_a_warm_up(clocked):
    result = latency(clocked, users_fold(30), exclude_seen=False, k=7)
    assert sorted(clocked.queried[module.WARM_UP_USERS :]) == sorted(users_fold(30).histories.users)
    assert result == pytest.approx(
        {
            "inference_latency_ms_p50": np.median(range(1, 31)),
            "inference_latency_ms_p95": np.percentile(range(1, 31), 95),
        }
    )


def test_latency_samples_the_same_users_each_time(clocked):
    first = latency(clocked, users_fold(500), exclude_seen=False, k=7)
    first_users, clocked.queried = clocked.queried, ["warm"]
    assert latency(clocked, users_fold(500), exclude_seen=False, k=7) == pytest.approx(first)
    assert len(set(first_users)) == 30 and clocked.queried[1:] == first_users


def test_latency_of_one_user_and_of_none(clocked):
    result = latency(clocked, users_fold(1), exclude_seen=False, k=7)
    assert result == pytest.approx({"inference_latency_ms_p50": 1.0, "inference_latency_ms_p95": 1.0})
    assert latency(clocked, users_fold(0), exclude_seen=False, k=7) == {}
