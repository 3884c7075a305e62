"""Contract of all models for cold users: the fallback answers in lists, ranks, files and metrics."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tests.synthetic import random_sequences, sequences, untrained

from recpipe.config.run_config import ColdUsersConfig
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.evaluate import evaluate
from recpipe.layers.cold_users import ColdUsers
from recpipe.layers.top_k import rank_of, top_k
from recpipe.models.recommender import Recommender
from recpipe.models.registry import build, types
from recpipe.serving.model import ServingBundle
from recpipe.training import fit
from recpipe.training.bundle import Bundle, load_bundle, save_bundle
from recpipe.training.settings import TrainSettings

ITEMS, WINDOW = 25, 6


def described(data: Sequences) -> Sequences:
    kinds = ["a" if u % 2 else "b" for u in range(len(data))]
    return data.with_profiles(pa.table({"user_id": pa.array(data.users, pa.string()), "kind": kinds}))


TRAIN = described(random_sequences(60, ITEMS, longest=16, seed=1))
ASKED = described(sequences([[], [1, 2, 3], [], [0, 0], [4], [9, 0, 0, 0, 0, 0, 0]]))
COLD = [True, False, True, True, False, True]  # the last: its one known item is beyond the window
FALLBACK = ColdUsers(ColdUsersConfig(segments="kind", novelty=0.2), n_items=ITEMS).fit(TRAIN)


def build_model(name: str, *, fallback: bool = True) -> Recommender:
    torch.manual_seed(0)
    # With all factors that there are, svd scores unseen items with rounding errors.
    few = {"factors": 8} if name == "svd" else {}
    model = untrained(name, few, TRAIN, n_items=ITEMS, max_length=WINDOW)
    if model.closed_form:
        model.fit(TRAIN)
    model.cold_users = FALLBACK if fallback else None
    return model.eval()


def bundle(model: Recommender, name: str) -> Bundle:
    ids = np.array([f"item {i}" for i in range(1, ITEMS + 1)], dtype=object)
    counts = np.bincount(TRAIN.items, minlength=ITEMS + 1)[1:]
    return Bundle(name, name, model, Vocabulary(ids), list(ids), counts, Protocol(dataset="x"), {})


def test_who_needs_the_fallback_by_parts_of_users(monkeypatch):
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", 2)
    assert len(list(ASKED.parts())) > 2
    assert build_model("item_knn").needs_fallback(ASKED).tolist() == COLD


@pytest.mark.parametrize("name", types())
def test_without_history_every_model_gives_the_list_of_the_segment_and_else_its_own(name):
    model, alone = build_model(name), build_model(name, fallback=False)
    assert model.needs_fallback(ASKED).tolist() == COLD
    assert not alone.needs_fallback(ASKED).any()
    items, scores = model.recommend(ASKED, 5)
    expected = FALLBACK.scores(FALLBACK.segments(ASKED))
    expected[5, 9] = -torch.inf  # seen, although long ago
    best, score = top_k(expected, 5)
    own, own_scores = alone.recommend(ASKED, 5)
    cold = np.array(COLD)
    np.testing.assert_array_equal(items[cold], best.numpy()[cold])
    np.testing.assert_array_equal(scores[cold], score.numpy()[cold])
    np.testing.assert_array_equal(items[~cold], own[~cold])
    np.testing.assert_allclose(scores[~cold], own_scores[~cold], rtol=1e-4, atol=1e-5)
    assert items[0].tolist() != items[3].tolist()  # another segment


@pytest.mark.parametrize("name", types())
def test_candidates_hold_for_the_fallback_too(name):
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[[2, 7, 11]] = True
    items, _ = build_model(name).recommend(ASKED, 4, candidates=candidates)
    assert [set(row) for row in items[COLD].tolist()] == [{0, 2, 7, 11}] * sum(COLD)


@pytest.mark.parametrize("name", types())
def test_anybody_is_answered_in_external_ids(name):
    model = build_model(name)
    histories = {"new": ["item 3", "not ours", "item 5"], "stranger": ["not ours"], "one": ["item 9"], "long": []}
    histories["long"] = [f"item {1 + n % 6}" for n in range(3 * WINDOW)]
    table = ServingBundle.of(bundle(model, name)).recommend(histories, 4)
    encoded = sequences([[3, 5], [], [9], [1 + n % 6 for n in range(3 * WINDOW)]])
    items, scores = model.recommend(encoded, 4)
    for row, user in enumerate(histories):
        mine = table.filter(pa.compute.equal(table["user_id"], user))
        assert mine["item_id"].to_pylist() == [f"item {i}" for i in items[row]]
        np.testing.assert_allclose(mine["score"].to_numpy(), scores[row], rtol=1e-5, atol=1e-5)
        assert set(mine["source"].to_pylist()) == {"cold_users" if user == "stranger" else "model"}


def test_what_cannot_be_asked_is_named():
    ours = ServingBundle.of(bundle(build_model("popular"), "popular"))
    with pytest.raises(ValueError, match="k is 0"):
        ours.recommend({"a": ["item 1"]}, 0)
    with pytest.raises(ValueError, match="timestamps of user 'b'"):
        ours.recommend({"a": ["item 1"], "b": ["item 2"]}, 3, timestamps={"a": [1], "b": []})


@pytest.mark.parametrize("name", types())
def test_a_bundle_carries_the_fallback(name, tmp_path: Path):
    model = build_model(name)
    save_bundle(bundle(model, name), tmp_path)
    loaded = load_bundle(tmp_path).model
    assert json.loads((tmp_path / "config.json").read_text())["cold_users"]["config"]["segments"] == "kind"
    for actual, expected in zip(loaded.recommend(ASKED, 9), model.recommend(ASKED, 9), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_bundle_of_before_has_none_and_answers_itself(tmp_path: Path):
    model = build_model("sasrec", fallback=False)
    save_bundle(bundle(model, "sasrec"), tmp_path)
    assert "cold_users" not in json.loads((tmp_path / "config.json").read_text())
    loaded = load_bundle(tmp_path).model
    assert loaded.cold_users is None and not loaded.needs_fallback(ASKED).any()
    np.testing.assert_array_equal(loaded.recommend(ASKED, 5)[0], model.recommend(ASKED, 5)[0])


def test_evaluation_says_whose_list_it_is_and_measures_cold_users():
    from recpipe.hooks.mlflow_runs import metric_values

    targets = sequences([[5], [6], [7], [8], [9], [10]])
    fold = Fold(ASKED, targets)
    actual = evaluate(bundle(build_model("item_knn"), "item_knn"), fold, fold, Protocol(dataset="x"), k=3)
    source = dict(zip(*(actual.recommendations[name].to_pylist() for name in ("user_id", "source")), strict=True))
    assert [source[user] == "cold_users" for user in ASKED.users] == COLD
    assert set(source.values()) == {"model", "cold_users"}
    cold = actual.metrics["cold_users"]
    scores = FALLBACK.scores(FALLBACK.segments(ASKED))
    ranks = rank_of(scores, torch.arange(6), torch.from_numpy(targets.items.astype(np.int64))).numpy()
    assert cold["hit_rate@10"] == pytest.approx((ranks <= 10).mean())
    assert cold["ndcg@20"] == pytest.approx(np.where(ranks <= 20, 1 / np.log2(ranks + 1), 0).mean())
    assert (cold["users"], cold["falls_back"], cold["unrankable"]) == (6, 6, 0)
    assert cold["settings"] == dataclasses.asdict(FALLBACK.config)
    assert metric_values(actual.metrics)["cold_users/hit_rate_at_10"] == cold["hit_rate@10"]
    json.dumps(actual.metrics)
    alone = evaluate(bundle(build_model("item_knn", fallback=False), "item_knn"), fold, fold, Protocol(dataset="x"))
    assert (alone.metrics["cold_users"]["falls_back"], alone.metrics["cold_users"]["settings"]) == (0, None)
    assert set(alone.recommendations["source"].to_pylist()) == {"model"}


@pytest.mark.parametrize("name", ["sasrec", "mf"])
def test_training_fits_it_and_the_model_beside_it_stays_the_same(name, tmp_path: Path):
    settings = TrainSettings(max_epochs=2, batch_tokens=200, device="cpu", loggers=[])
    small = {"sasrec": {"dim": 8, "layers": 1}, "mf": {"dim": 4, "epochs": 1}}[name]
    seen = []

    def validate(model):
        seen.append(model.needs_fallback(ASKED).tolist())
        return {"valid_ndcg@10": 0.1}

    def trained(folder, cold_users):
        (tmp_path / folder).mkdir()
        return fit.train(
            lambda: build(name, small, n_items=ITEMS, max_length=WINDOW),
            TRAIN,
            validate,
            settings,
            seed=1,
            folder=tmp_path / folder,
            cold_users=cold_users,
        )

    alone = trained("alone", None)
    assert alone.model.cold_users is None
    seen.clear()
    actual = trained("with", ColdUsersConfig(segments="cluster", clusters=2))
    assert all(each == COLD for each in seen)
    weights = {k: v for k, v in actual.model.state_dict().items() if not k.startswith("cold_users.")}
    assert weights.keys() == alone.model.state_dict().keys()
    assert all(torch.equal(v, weights[k]) for k, v in alone.model.state_dict().items())
    assert actual.cost["parameters"] == alone.cost["parameters"]
    assert len(actual.model.cold_users.keys) == 2
