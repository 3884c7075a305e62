"""Content slots against a walk along the list, and against items held out from training that only content can find."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from tests.synthetic import catalogue, random_sequences, sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Vocabulary
from recpipe.data.splits import split
from recpipe.evaluation.content_slots import ContentSlots, mixed, nearest_unseen, with_slots
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.ranking import rank_fold
from recpipe.models.registry import build
from recpipe.training.bundle import Bundle

ITEMS, WINDOW = 40, 6
SHARES = ("0", "1/20", "1/10", "1/3", "1/2", "29/100", "9/10")


def walked(model: list[int], content: list[int], share: Fraction) -> tuple[list[int], list[int]]:
    """The list place by place, and the places that content filled."""
    made, places = [], []
    for place in range(1, len(model) + 1):
        left = {
            side: next((i for i in items if i and i not in made), 0)
            for side, items in (("model", model), ("content", content))
        }
        is_slot = int(share * place) > int(share * (place - 1))
        order = ("content", "model") if is_slot else ("model", "content")
        side = next((side for side in order if left[side]), "model")
        made.append(left[side])
        places += [place] if side == "content" and left[side] else []
    return made, places


@pytest.mark.parametrize("share", SHARES)
def test_lists_with_slots_equal_a_walk_along_them(share):
    """Lists of few items, so that both sides often have the same; some end early, some have nothing."""
    rng = np.random.default_rng(1)
    users, k, wide = 60, 20, 25
    model = np.stack([rng.permutation(30)[:k] + 1 for _ in range(users)])
    content = np.stack([rng.permutation(30)[:wide] + 1 for _ in range(users)])
    for side in (model, content):
        side[np.arange(side.shape[1]) >= rng.integers(0, 2 * side.shape[1], users)[:, None]] = 0
    slots = ContentSlots(share=float(Fraction(share)))
    made, of_content = mixed(model, content, slots.places(k))
    for u in range(users):
        expected, places = walked(model[u].tolist(), content[u].tolist(), Fraction(share))
        assert made[u].tolist() == expected
        assert (np.flatnonzero(of_content[u]) + 1).tolist() == places
    if share == "0":
        enough = (model > 0).all(1)
        assert enough.any() and (made[enough] == model[enough]).all()


@pytest.mark.parametrize("share", SHARES)
def test_every_beginning_of_a_list_has_its_share_of_slots(share):
    filled = np.cumsum(ContentSlots(share=float(Fraction(share))).places(200))
    assert filled.tolist() == [int(Fraction(share) * k) for k in range(1, 201)]


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize(("last", "decay"), [(1, 1.0), (3, 0.5), (None, 0.8)])
def test_the_nearest_unseen_items_are_those_of_a_loop(last, decay, exclude_seen):
    histories = random_sequences(30, ITEMS, longest=12, seed=2)
    vectors, present = catalogue(ITEMS)[1]["text"]
    train_events = np.where(np.arange(ITEMS) % 3 == 0, 0, 5)
    slots = ContentSlots(share=0.5, last=last, decay=decay)
    found = nearest_unseen(
        histories,
        {"text": (vectors, present)},
        train_events,
        5,
        slots=slots,
        window=WINDOW,
        exclude_seen=exclude_seen,
    )
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    for u in range(len(histories)):
        latest = [i for i in histories.row(u)[-WINDOW:] if present[i - 1]][::-1][:last]
        query = sum(decay**age * unit[i - 1] for age, i in enumerate(latest))
        seen = histories.row(u) if exclude_seen else []
        allowed = [
            i for i in range(1, ITEMS + 1) if present[i - 1] and train_events[i - 1] == 0 and i not in seen
        ]
        nearest = sorted(allowed, key=lambda i: -(query @ unit[i - 1]))[:5] if latest else []
        assert found[u].tolist() == nearest + [0] * (5 - len(nearest))


def test_who_has_no_vector_to_go_by_gets_no_neighbours():
    present = catalogue(ITEMS)[1]["text"][1]
    without = int(np.flatnonzero(~present)[0]) + 1
    histories = sequences([[1] + [without] * WINDOW, [], [without, 1]])
    given = {"text": catalogue(ITEMS)[1]["text"]}
    train_events = np.ones(ITEMS, int)
    train_events[10:15] = 0
    slots = ContentSlots(share=0.5)
    found = nearest_unseen(histories, given, train_events, 2, slots=slots, window=WINDOW, exclude_seen=False)
    assert (found > 0).tolist() == [[False, False], [False, False], [True, True]]


def held_out_bundle(name: str = "popular") -> tuple[Bundle, Fold, Fold, Protocol, np.ndarray]:
    """A model fitted without the items held out, the folds and these items."""
    ids = np.array([f"item {i}" for i in range(1, ITEMS + 1)], dtype=object)
    protocol = Protocol(dataset="x", held_out_items=0.2, seed=3, cutoffs=(1, 5, 10))
    parts = split(random_sequences(300, ITEMS, longest=15, seed=5), protocol, Vocabulary(ids))
    model = build(name, {}, n_items=ITEMS, max_length=WINDOW)
    model.fit(parts.train)
    events = np.bincount(parts.train.items, minlength=ITEMS + 1)[1:]
    about = {"seed": 1, "cost": {}}
    bundle = Bundle(name, name, model, Vocabulary(ids), list(ids), events, protocol, about)
    return bundle, parts.valid, parts.test, protocol, parts.held_out


def test_items_held_out_are_cold_in_the_evaluation_and_only_there():
    bundle, valid, test, protocol, held_out = held_out_bundle()
    found = evaluate(bundle, valid, test, protocol)
    asked = np.isin(test.targets.items, held_out)
    assert found.ranks["cold"].to_pylist() == asked.tolist()
    assert found.metrics["cold_items"]["targets"] == found.metrics["test"]["cold_targets"] == asked.sum() > 0
    assert found.metrics["warm_items"]["targets"] == (~asked).sum()
    assert found.metrics["valid"]["cold_targets"] == 0
    assert found.metrics["cold_items"]["recall@10"] == 0 < found.metrics["warm_items"]["recall@10"]
    rank = found.ranks["rank"].to_numpy()
    for name, kind in (("warm_items", ~asked), ("cold_items", asked)):
        hits = (rank[kind] > 0) & (rank[kind] <= 10)
        assert found.metrics[name]["recall@10"] == pytest.approx(hits.mean())


@pytest.mark.parametrize("share", SHARES[1:])
def test_ranks_are_places_in_the_list_and_beyond_it_no_place_in_it(share):
    bundle, _, test, _, held_out = held_out_bundle()
    rng = np.random.default_rng(0)
    several = [rng.choice(np.arange(1, ITEMS + 1), 4, replace=False).tolist() for _ in range(len(test))]
    fold = Fold(test.histories, sequences(several))
    ranking = rank_fold(bundle.model, fold, exclude_seen=True, k=20)
    content = np.stack([rng.permutation(held_out) for _ in range(len(fold))])
    slots = ContentSlots(share=float(Fraction(share)))
    found = with_slots(ranking, fold, content, slots)
    score = {
        (u, i): s for u, row in enumerate(ranking.items) for i, s in zip(row, ranking.scores[u], strict=True)
    }
    for u in range(len(fold)):
        expected, places = walked(ranking.items[u].tolist(), content[u].tolist(), Fraction(share))
        assert found.items[u].tolist() == expected
        for place, (item, value) in enumerate(zip(expected, found.scores[u], strict=True), start=1):
            assert np.isnan(value) if place in places else value == (score[u, item] if item else -np.inf)
        own = ranking.user == u
        for target, before, rank in zip(fold.targets.row(u), ranking.rank[own], found.rank[own], strict=True):
            if target in expected:
                assert rank == expected.index(target) + 1
            else:
                assert (rank == 0) if before == 0 else (rank > 20)
        beyond = found.rank[own][found.rank[own] > 0]
        assert len(set(beyond.tolist())) == len(beyond)
    same = with_slots(ranking, fold, content, ContentSlots())
    assert (same.items == ranking.items).all() and (same.rank == ranking.rank).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        *(({"share": share}, "from 0 to below 1") for share in (-0.1, 1.0, 2, float("nan"))),
        ({"last": 0}, "last is 0"),
        ({"decay": 0.0}, "decay is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ContentSlots(**given)


def test_slots_without_a_place_or_without_items_to_fill_them_are_refused():
    bundle, _, test, _, held_out = held_out_bundle()
    ranking = rank_fold(bundle.model, test, exclude_seen=True, k=10)
    with pytest.raises(ValueError, match=r"lists have 10 items, so there is no slot; give at least 0\.1"):
        with_slots(ranking, test, np.tile(held_out, (len(test), 1)), ContentSlots(share=0.09))
    asked = {"slots": ContentSlots(share=0.1), "window": WINDOW, "exclude_seen": True}
    vectors, present = catalogue(ITEMS)[1]["text"]
    warm = np.ones(ITEMS, int)
    given = [
        ({"text": (vectors, present)}, warm),
        ({"text": (vectors, ~present & False)}, warm * 0),
        ({}, warm * 0),
    ]
    for described, train_events in given:
        with pytest.raises(
            ValueError, match=r"no item can fill a content slot.*held_out_items.*pipelines=embed"
        ):
            nearest_unseen(test.histories, described, train_events, 5, **asked)
