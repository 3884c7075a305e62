from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data.batches import Batch
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.evaluation.evaluate import evaluate, settings_id, validator
from recpipe.evaluation.ranking import rank_fold
from recpipe.hooks.mlflow_runs import metric_values
from recpipe.layers.top_k import tie_order
from recpipe.models.recommender import Scorer
from recpipe.models.registry import build
from recpipe.reporting.leaderboard import leaderboard
from recpipe.reporting.run_store import read_runs
from recpipe.training.bundle import Bundle

ITEMS = 20


class Table(Scorer):
    """Scores depend on the last item only and are read from a table."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__(self.Config(), n_items=table.shape[1] - 1, max_length=5)
        self.register_buffer("table", table)

    def score(self, batch: Batch) -> torch.Tensor:
        return self.table[batch.items.gather(1, (batch.lengths - 1).clamp(min=0)[:, None])[:, 0]].clone()


def fold(targets_each: int, seed: int = 0) -> Fold:
    rng = np.random.default_rng(seed)
    histories = random_sequences(50, ITEMS, seed=seed)
    targets = [
        rng.choice(np.arange(1, ITEMS + 1), rng.integers(1, targets_each + 1), replace=False).tolist()
        for _ in range(50)
    ]
    return Fold(histories, sequences(targets))


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("targets_each", [1, 4])
@pytest.mark.parametrize("levels", [3, 10_000])
def test_ranks_equal_a_sort_of_the_whole_catalogue(exclude_seen, targets_each, levels):
    table = torch.randint(
        0, levels, (ITEMS + 1, ITEMS + 1), generator=torch.Generator().manual_seed(1)
    ).float()
    data, order = fold(targets_each), tie_order(ITEMS + 1).numpy()
    ranking = rank_fold(Table(table), data, exclude_seen=exclude_seen, k=6)
    place = 0
    for u in range(len(data)):
        history = data.histories.row(u)
        allowed = [i for i in range(1, ITEMS + 1) if not (exclude_seen and i in history)]
        ranked = sorted(allowed, key=lambda i: (-table[history[-1], i].item(), order[i]))
        for target in data.targets.row(u):
            expected = ranked.index(target) + 1 if target in ranked else 0
            assert (ranking.user[place], ranking.rank[place], ranking.candidates[place]) == (
                u,
                expected,
                len(allowed),
            )
            place += 1
        assert ranking.items[u].tolist() == (ranked + [0] * 6)[:6]
        assert ranking.log_normalizer[u] == pytest.approx(
            torch.logsumexp(table[history[-1], allowed], 0).item(), abs=1e-5
        )
    assert place == len(ranking.rank)


def test_nan_scores_are_an_error():
    with pytest.raises(ValueError, match="NaN scores"):
        rank_fold(Table(torch.full((ITEMS + 1, ITEMS + 1), torch.nan)), fold(1), exclude_seen=True, k=3)


class Clock(Table):
    """Knows one thing: the item of the minute it is asked at."""

    requires_time = "query"

    def score(self, batch: Batch) -> torch.Tensor:
        batch = batch if batch.items.shape[1] else batch.pad(1)  # histories are emptied to measure cold users
        last = (batch.lengths - 1).clamp(min=0)[:, None]
        return self.table[batch.query_times.gather(1, last)[:, 0] // 60].clone()


def test_the_moment_of_the_question_reaches_models_in_validation_and_test_under_query_only():
    clock = Clock(torch.eye(ITEMS + 1))
    data = fold(1)
    data = replace(data, targets=replace(data.targets, timestamps=60 * data.targets.items.astype(np.int64)))
    query = Protocol(dataset="x", time="query")
    missed = sum(data.targets.row(u)[0] in data.histories.row(u) for u in range(len(data)))
    assert 0 < missed < len(data)
    assert validator(data, query)(clock)["valid_ndcg@10"] == pytest.approx(1 - missed / len(data))
    trained = replace(bundle(), model=clock)
    found = evaluate(trained, data, data, query).metrics
    assert (
        found["test"]["hit_rate@1"] == found["valid"]["hit_rate@1"] == pytest.approx(1 - missed / len(data))
    )
    assert found["protocol"]["id"] == query.id != Protocol(dataset="x").id
    for time in ("none", "last_item"):
        with pytest.raises(ValueError, match=f"uses time as query and protocol.time is {time}"):
            evaluate(trained, data, data, replace(query, time=time))
    evaluate(bundle(), data, data, query)  # a model without time may be judged under any


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


def test_evaluation_counts_what_can_not_be_found_and_what_training_never_saw():
    data = Fold(sequences([[1, 2], [3], [4, 5]]), sequences([[2], [ITEMS], [6]]))
    found = evaluate(bundle(), data, data, Protocol(dataset="x"), top=5)
    test = found.metrics["test"]
    assert (test["users"], test["targets"], test["unrankable"], test["cold_targets"]) == (3, 3, 1, 1)
    assert found.metrics["protocol"]["id"] == Protocol(dataset="x").id
    cost = found.metrics["cost"]
    assert cost["inference_users_per_second"] > 0
    assert cost["inference_latency_ms_p95"] >= cost["inference_latency_ms_p50"] > 0
    ranks = found.ranks.to_pylist()
    assert [row["target"] for row in ranks] == ["item 2", f"item {ITEMS}", "item 6"]
    assert [row["cold"] for row in ranks] == [False, True, False]
    assert ranks[0]["rank"] == 0 and ranks[1]["rank"] == ITEMS - 1
    assert found.recommendations.num_rows == 15
    assert found.recommendations["probability"].null_count == 15


def test_a_bundle_that_trained_on_validation_has_no_metrics_of_it_and_a_place_on_the_leaderboard():
    data, trained = fold(1), bundle()
    trained.training["settings"] = {"type": "popular", "train": {"put_back": True}}
    metrics = evaluate(trained, data, data, Protocol(dataset="x")).metrics
    honest = evaluate(bundle(), data, data, Protocol(dataset="x")).metrics
    assert metrics["put_back"] is True and "valid" not in metrics
    assert metrics["test"] == honest["test"] and "put_back" not in honest and honest["valid"]["targets"] > 0
    (run,), problems = read_runs([metrics])
    assert run.valid == {} and not problems
    assert leaderboard([metrics])["rank"].to_list() == [1]
    assert not any(name.startswith("valid") for name in metric_values(metrics))


def test_a_bundle_of_other_items_is_refused():
    trained = bundle()
    trained.check_catalogue(Vocabulary(trained.vocabulary.ids.copy()))
    renamed = np.array([f"other {i}" for i in range(ITEMS)], dtype=object)
    with pytest.raises(ValueError, match="another catalogue"):
        trained.check_catalogue(Vocabulary(renamed))


def test_unequal_data_is_refused_and_another_seen_filter_is_another_protocol():
    data = fold(1)
    with pytest.raises(ValueError, match="fingerprint differ"):
        evaluate(bundle(), data, data, Protocol(dataset="x", fingerprint="other"))
    kept = evaluate(bundle(), data, data, Protocol(dataset="x", exclude_seen=False))
    assert kept.metrics["protocol"]["id"] != Protocol(dataset="x").id
    assert kept.metrics["test"]["unrankable"] == 0


def test_metrics_hold_the_settings_whose_id_only_follows_what_makes_another_model():
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
