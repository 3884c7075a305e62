"""Content slots against a walk along the list, and against items held out from training that only content can find."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from tests.synthetic import catalogue, random_sequences, sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.data.splits import split
from recpipe.evaluation.content_slots import ContentSlots, fill_slots, slot_places
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.ranking import rank_fold
from recpipe.layers.side import Side, SideConfig
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle

ITEMS, WINDOW = 40, 6
SHARES = ("1/20", "1/10", "1/3", "1/2", "29/100", "9/10")
VOCABULARY = Vocabulary(np.array([f"item {i}" for i in range(1, ITEMS + 1)], dtype=object))
VECTORS, PRESENT = catalogue(ITEMS)[1]["text"]


def content_bundle(**config: float | None) -> Bundle:
    data = random_sequences(5, ITEMS, seed=0)
    side = Side.of(SideConfig(vectors="text"), data, {}, {"text": (VECTORS, PRESENT)}, n_items=ITEMS)
    model = build("content_knn", config, n_items=ITEMS, max_length=WINDOW, side=side)
    return Bundle("text_knn", "content_knn", model, VOCABULARY, [], np.ones(ITEMS, int), Protocol(dataset="x"))


def walked(model: list[int], content: list[int], share: Fraction) -> tuple[list[int], list[int]]:
    """The list place by place, and the places that content filled."""
    merged, places = [], []
    for place in range(1, len(model) + 1):
        left = {
            side: next((i for i in items if i and i not in merged), 0)
            for side, items in (("model", model), ("content", content))
        }
        is_slot = int(share * place) > int(share * (place - 1))
        order = ("content", "model") if is_slot else ("model", "content")
        side = next((side for side in order if left[side]), "model")
        merged.append(left[side])
        places += [place] if side == "content" and left[side] else []
    return merged, places


@pytest.mark.parametrize("share", ("0", *SHARES))
def test_lists_with_slots_equal_a_walk_along_them(share):
    """Lists of few items, so that both often have the same; some end early, some are empty."""
    rng = np.random.default_rng(1)
    users, k, wide = 60, 20, 25
    model = np.stack([rng.permutation(30)[:k] + 1 for _ in range(users)])
    content = np.stack([rng.permutation(30)[:wide] + 1 for _ in range(users)])
    for side in (model, content):
        side[np.arange(side.shape[1]) >= rng.integers(0, 2 * side.shape[1], users)[:, None]] = 0
    lists, from_content = fill_slots(model, content, slot_places(float(Fraction(share)), k))
    for u in range(users):
        expected, places = walked(model[u].tolist(), content[u].tolist(), Fraction(share))
        assert lists[u].tolist() == expected
        assert (np.flatnonzero(from_content[u]) + 1).tolist() == places


@pytest.mark.parametrize("share", SHARES)
def test_every_beginning_of_a_list_has_its_share_of_slots(share):
    filled = np.cumsum(slot_places(float(Fraction(share)), 200))
    assert filled.tolist() == [int(Fraction(share) * k) for k in range(1, 201)]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize(("last", "decay"), [(1, 1.0), (3, 0.5), (None, 0.8)])
def test_the_nearest_cold_items_are_those_of_a_loop(last, decay, exclude_seen):
    histories = random_sequences(30, ITEMS, longest=12, seed=2)
    train_events = np.where(np.arange(ITEMS) % 3 == 0, 0, 5)
    slots = ContentSlots(0.5, content_bundle(last=last, decay=decay))
    lists = slots.cold_lists(histories, train_events, 5, exclude_seen=exclude_seen)
    unit = VECTORS / np.maximum(np.linalg.norm(VECTORS, axis=1, keepdims=True), 1e-9)
    for u in range(len(histories)):
        latest = [i for i in histories.row(u)[-WINDOW:] if PRESENT[i - 1]][::-1][:last]
        query = sum(decay**age * unit[i - 1] for age, i in enumerate(latest))
        seen = histories.row(u) if exclude_seen else []
        allowed = [i for i in range(1, ITEMS + 1) if PRESENT[i - 1] and train_events[i - 1] == 0 and i not in seen]
        nearest = sorted(allowed, key=lambda i: -(query @ unit[i - 1]))[:5] if latest else []
        assert lists[u].tolist() == nearest + [0] * (5 - len(nearest))


def test_users_without_a_vector_in_the_window_get_no_slots():
    without = int(np.flatnonzero(~PRESENT)[0]) + 1
    histories = sequences([[1] + [without] * WINDOW, [], [without, 1]])
    train_events = np.ones(ITEMS, int)
    train_events[10:15] = 0
    lists = ContentSlots(0.5, content_bundle()).cold_lists(histories, train_events, 2, exclude_seen=False)
    assert (lists > 0).tolist() == [[False, False], [False, False], [True, True]]


def held_out_bundle(name: str = "popular") -> tuple[Bundle, Fold, Fold, Protocol, np.ndarray]:
    """A model fitted without the held-out items, the folds and these items."""
    protocol = Protocol(dataset="x", held_out_items=0.2, seed=3, cutoffs=(1, 5, 10))
    parts = split(random_sequences(300, ITEMS, longest=15, seed=5), protocol, VOCABULARY)
    model = build(name, {}, n_items=ITEMS, max_length=WINDOW)
    model.fit(parts.train)
    events = np.bincount(parts.train.items, minlength=ITEMS + 1)[1:]
    training = {"seed": 1, "cost": {}, "settings": {"type": name}}
    titles = list(VOCABULARY.ids)
    bundle = Bundle(name, name, model, VOCABULARY, titles, events, protocol, training)
    return bundle, parts.valid, parts.test, protocol, parts.held_out


def test_held_out_items_are_cold_in_the_evaluation_and_only_there():
    bundle, valid, test, protocol, held_out = held_out_bundle()
    result = evaluate(bundle, valid, test, protocol)
    cold = np.isin(test.targets.items, held_out)
    assert result.ranks["cold"].to_pylist() == cold.tolist()
    assert result.metrics["cold_items"]["targets"] == result.metrics["test"]["cold_targets"] == cold.sum() > 0
    assert result.metrics["warm_items"]["targets"] == (~cold).sum()
    assert result.metrics["valid"]["cold_targets"] == 0
    assert result.metrics["cold_items"]["recall@10"] == 0 < result.metrics["warm_items"]["recall@10"]
    rank = result.ranks["rank"].to_numpy()
    for name, kind in (("warm_items", ~cold), ("cold_items", cold)):
        hits = (rank[kind] > 0) & (rank[kind] <= 10)
        assert result.metrics[name]["recall@10"] == pytest.approx(hits.mean())


@pytest.mark.parametrize("share", SHARES)
def test_ranks_are_places_in_the_list_and_beyond_it_no_place_in_it(share):
    bundle, _, test, _, _ = held_out_bundle()
    rng = np.random.default_rng(0)
    several = [rng.choice(np.arange(1, ITEMS + 1), 4, replace=False).tolist() for _ in range(len(test))]
    fold = Fold(test.histories, sequences(several))
    ranking = rank_fold(bundle.model, fold, exclude_seen=True, k=20)
    slots = ContentSlots(float(Fraction(share)), content_bundle())
    content = slots.cold_lists(fold.histories, bundle.train_events, 20, exclude_seen=True)
    result = slots.apply(ranking, fold, bundle, exclude_seen=True)
    score = {(u, i): s for u, row in enumerate(ranking.items) for i, s in zip(row, ranking.scores[u], strict=True)}
    for u in range(len(fold)):
        expected, places = walked(ranking.items[u].tolist(), content[u].tolist(), Fraction(share))
        assert result.items[u].tolist() == expected
        for place, (item, value) in enumerate(zip(expected, result.scores[u], strict=True), start=1):
            assert np.isnan(value) if place in places else value == (score[u, item] if item else -np.inf)
        rows = ranking.user == u
        for target, before, rank in zip(fold.targets.row(u), ranking.rank[rows], result.rank[rows], strict=True):
            if target in expected:
                assert rank == expected.index(target) + 1
            else:
                assert (rank == 0) if before == 0 else (rank > 20)
        ranks = result.rank[rows][result.rank[rows] > 0]
        assert len(set(ranks.tolist())) == len(ranks)


def test_evaluation_with_slots_finds_cold_items_and_is_stamped_with_them():
    bundle, valid, test, protocol, held_out = held_out_bundle()
    plain = evaluate(bundle, valid, test, protocol).metrics
    result = evaluate(bundle, valid, test, protocol, slots=ContentSlots(0.2, content_bundle()))
    assert result.metrics["cold_items"]["recall@10"] > 0 == plain["cold_items"]["recall@10"]
    assert result.metrics["content_slots"] == {"share": 0.2, "model": "text_knn"}
    assert "content_slots" not in plain and result.metrics["settings_id"] != plain["settings_id"]
    rows = result.recommendations.to_pylist()
    slots = [row for row in rows if row["source"] == "content_slots"]
    assert {row["rank"] for row in slots} == {5, 10, 15, 20}
    assert {row["item_id"] for row in slots} <= {f"item {i}" for i in held_out}
    assert {row["logit"] for row in slots} == {row["probability"] for row in slots} == {None}
    assert all(row["logit"] is not None for row in rows if row["source"] == "model")


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.0, 2, float("nan")])
def test_a_share_outside_0_and_1_is_an_error(share):
    with pytest.raises(ValueError, match="content_slots.share is .*between 0 and 1"):
        ContentSlots(share, content_bundle())


def test_slots_without_a_place_a_content_model_or_items_to_fill_them_are_errors():
    bundle, _, test, _, _ = held_out_bundle()
    ranking = rank_fold(bundle.model, test, exclude_seen=True, k=10)
    with pytest.raises(ValueError, match=r"lists have 10 items.* at least 0\.1"):
        ContentSlots(0.09, content_bundle()).apply(ranking, test, bundle, exclude_seen=True)
    with pytest.raises(ValueError, match="content_slots.model is popular.*content_knn"):
        ContentSlots(0.1, bundle)
    with pytest.raises(ValueError, match="no item can fill a content slot.*held_out_items.*pipelines=embed"):
        ContentSlots(0.1, content_bundle()).cold_lists(test.histories, np.ones(ITEMS, int), 5, exclude_seen=True)
