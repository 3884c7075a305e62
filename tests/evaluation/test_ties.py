"""Permutations of equal timestamps: who becomes a target, how often, what stays; against enumeration."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from recpipe.data.batches import Batch
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.ranking import exchangeable, shuffled, tie_sensitivity, unseen_events
from recpipe.models.recommender import Scorer
from recpipe.training.bundle import Bundle

ITEMS = 12
PROTOCOL = Protocol(dataset="x", exclude_seen=False)


class Fixed(Scorer):
    """The same score for every history, item 1 first; or, with `last`, the successor of the last item first."""

    def __init__(self, last: bool = False) -> None:
        super().__init__(self.Config(), n_items=ITEMS, max_length=5)
        self.last = last
        self.register_buffer("scores", -torch.arange(ITEMS + 1.0))

    def score(self, batch: Batch) -> torch.Tensor:
        scores = self.scores.expand(len(batch.items), -1).clone()
        if self.last and batch.items.shape[1]:
            last = batch.items.gather(1, (batch.lengths - 1).clamp(min=0)[:, None])
            scores.scatter_(1, last % ITEMS + 1, 1.0)
        return scores


def bundle(model: Scorer) -> Bundle:
    ids = np.array([f"i{i}" for i in range(1, ITEMS + 1)], dtype=object)
    return Bundle("m", "m", model, Vocabulary(ids), list(ids), np.ones(ITEMS, int), PROTOCOL, {"seed": 1})


def rows(items, times):
    users = np.array([f"u{u}" for u in range(len(items))], dtype=object)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    flat = np.array([item for row in items for item in row], np.int32)
    return Sequences(users, flat, np.array([at for row in times for at in row], np.int64), offsets)


# u0: the target ties with the validation event and with a training event; u1: the same, nothing trained;
# u2: no tie with the target, two in the history; u3: no tie at all
HISTORIES = rows([[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11]], [[1, 5, 5, 5], [3, 3], [1, 1, 2], [1, 2]])
TARGETS = rows([[5], [7], [10], [12]], [[5], [3], [4], [9]])
TRAIN = rows([[1, 2, 3], [], [7, 8], [10]], [[1, 5, 5], [], [1, 1], [1]])
FOLD = Fold(HISTORIES, TARGETS)


def test_who_may_be_asked_for_what():
    unseen = unseen_events(HISTORIES, TRAIN)
    assert unseen.tolist() == [1, 2, 1, 1]
    assert exchangeable(FOLD, unseen).tolist() == [1, 2, 0, 0]


def test_every_allowed_order_comes_equally_often_and_no_other():
    unseen = unseen_events(HISTORIES, TRAIN)
    seen = [Counter() for _ in range(4)]
    draws = 3000
    for seed in range(draws):
        one = shuffled(FOLD, unseen, seed)
        for user in range(4):
            seen[user][(*one.histories.row(user).tolist(), one.targets.row(user).tolist()[0])] += 1
    # u0: 3! orders of the three tied events of the history for each of two targets; u1: 3!; u2: 2
    assert [len(orders) for orders in seen] == [12, 6, 2, 1]
    for orders in seen:
        expected = draws / len(orders)
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in orders.values())
    assert {order[-1] for order in seen[0]} == {4, 5}  # never 2 or 3, which training was told
    assert {order[0] for order in seen[0]} == {1}
    assert {order[-1] for order in seen[1]} == {5, 6, 7}


@pytest.mark.parametrize("seed", range(5))
def test_times_users_and_items_stay_and_ratings_go_with_their_items(seed):
    draw = np.random.default_rng(seed)
    times = [np.sort(draw.integers(0, 4, draw.integers(1, 9))).tolist() for _ in range(30)]
    items = [draw.integers(1, ITEMS + 1, len(row)).tolist() for row in times]
    histories = rows(items, times)
    histories = replace(histories, ratings=(histories.items / 10).astype(np.float32))
    targets = rows([[int(draw.integers(1, ITEMS + 1))] for _ in range(30)], [[max(3, *row)] for row in times])
    for known in (None, (targets.items / 10).astype(np.float32)):
        fold = Fold(histories, replace(targets, ratings=known))
        one = shuffled(fold, draw.integers(0, 4, 30), seed)
        assert one.histories.timestamps is histories.timestamps
        for user in range(30):
            before, after = ([*part.histories.row(user), *part.targets.row(user)] for part in (fold, one))
            assert Counter(before) == Counter(after)
        given = one.histories.ratings
        matches = np.isclose(given, one.histories.items / 10)
        assert matches.all() if known is not None else (matches | np.isnan(given)).all()
    assert (fold.histories.items == histories.items).all()  # what was given is left alone


def test_without_ties_nothing_changes():
    fold = Fold(rows([[1, 2, 3]], [[1, 2, 3]]), rows([[4]], [[4]]))
    one = shuffled(fold, np.array([3]), 0)
    assert one.histories.row(0).tolist() == [1, 2, 3] and one.targets.row(0).tolist() == [4]


def test_a_user_with_several_targets_keeps_them():
    fold = Fold(rows([[1, 2]], [[5, 5]]), rows([[3, 4]], [[5, 5]]))
    assert {tuple(shuffled(fold, np.array([2]), seed).targets.row(0)) for seed in range(20)} == {(3, 4)}


def test_the_values_have_the_mean_that_enumeration_gives():
    found = tie_sensitivity(bundle(Fixed()), FOLD, TRAIN, PROTOCOL, metric="mrr@20", permutations=400)
    allowed = [(4, 5), (5, 6, 7), (10,), (12,)]  # item i always has rank i
    expected = np.mean([np.mean([1 / item for item in row]) for row in allowed])
    assert np.mean(found.values) == pytest.approx(expected, abs=0.002)  # 4 deviations of the mean
    assert found.as_ordered == pytest.approx(np.mean([1 / 5, 1 / 7, 1 / 10, 1 / 12]))
    assert min(found.values) <= found.low < found.high <= max(found.values)
    assert (found.other_target, found.other_history) == (0.5, 0.75)
    test = evaluate(bundle(Fixed()), FOLD, FOLD, PROTOCOL).metrics["test"]
    single = tie_sensitivity(bundle(Fixed()), FOLD, TRAIN, PROTOCOL, permutations=1)
    assert single.as_ordered == test["ndcg@10"]


def test_a_model_that_reads_order_sees_the_shuffled_history():
    found = tie_sensitivity(
        bundle(Fixed(last=True)), FOLD, TRAIN, PROTOCOL, metric="hit_rate@1", permutations=600
    )
    # u0: 4 then 5, or 3 then 4, each in 1 of 6; u1: 5 then 6, or 6 then 7; u2: always 9 then 10; u3: 11 then 12
    assert np.mean(found.values) == pytest.approx((2 / 6 + 2 / 6 + 1 + 1) / 4, abs=0.02)


def test_equal_seeds_permute_alike_and_others_do_not():
    def values(seed):
        return tie_sensitivity(
            bundle(Fixed()), FOLD, TRAIN, PROTOCOL, metric="mrr@20", permutations=6, seed=seed
        ).values

    assert values(3) == values(3) != values(40)


def test_without_timestamps_or_permutations_it_is_refused():
    bare = Fold(replace(HISTORIES, timestamps=None), TARGETS)
    with pytest.raises(ValueError, match="x has no timestamps"):
        tie_sensitivity(bundle(Fixed()), bare, TRAIN, PROTOCOL)
    with pytest.raises(ValueError, match="permutations is 0"):
        tie_sensitivity(bundle(Fixed()), FOLD, TRAIN, PROTOCOL, permutations=0)
