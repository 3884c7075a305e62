"""Ranks against a sort of the whole catalogue; permutations of equal timestamps against enumeration."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data.batches import Batch
from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold, Sequences, Vocabulary
from recpipe.evaluation.evaluate import evaluate
from recpipe.evaluation.metrics import metrics_from_ranks
from recpipe.evaluation.ranking import (
    exchangeable_events,
    fold_metric,
    rank_fold,
    shuffle_ties,
    tie_sensitivity,
    unseen_events,
)
from recpipe.layers.top_k import tie_order
from recpipe.models.recommender import Scorer
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
    table = torch.randint(0, levels, (ITEMS + 1, ITEMS + 1), generator=torch.Generator().manual_seed(1)).float()
    data, order = fold(targets_each), tie_order(ITEMS + 1).numpy()
    ranking = rank_fold(Table(table), data, exclude_seen=exclude_seen, k=6)
    place = 0
    for u in range(len(data)):
        history = data.histories.row(u)
        allowed = [i for i in range(1, ITEMS + 1) if not (exclude_seen and i in history)]
        ranked = sorted(allowed, key=lambda i: (-table[history[-1], i].item(), order[i]))
        for target in data.targets.row(u):
            expected = ranked.index(target) + 1 if target in ranked else 0
            assert (ranking.user[place], ranking.rank[place], ranking.candidates[place]) == (u, expected, len(allowed))
            place += 1
        assert ranking.items[u].tolist() == (ranked + [0] * 6)[:6]
        assert ranking.log_normalizer[u] == pytest.approx(
            torch.logsumexp(table[history[-1], allowed], 0).item(), abs=1e-5
        )
    assert place == len(ranking.rank)


def test_nan_scores_are_an_error():
    with pytest.raises(ValueError, match="NaN scores"):
        rank_fold(Table(torch.full((ITEMS + 1, ITEMS + 1), torch.nan)), fold(1), exclude_seen=True, k=3)


def test_a_metric_of_a_fold_is_named_with_its_cut_off() -> None:
    model = Table(torch.eye(ITEMS + 1))
    data = Fold(sequences([[3], [4]]), sequences([[3], [5]]))
    protocol = Protocol(dataset="x", exclude_seen=False)
    assert fold_metric(model, data, protocol, "hit_rate@1") == 0.5
    for metric in ("ndcg", "beauty@10"):
        with pytest.raises(ValueError, match=f"'{metric}'; allowed: recall.*ndcg@10"):
            fold_metric(model, data, protocol, metric)


TIE_ITEMS = 12
PROTOCOL = Protocol(dataset="x", exclude_seen=False)


class FixedScores(Scorer):
    """The same score for every history, item 1 first; or, with `last`, the successor of the last item first."""

    def __init__(self, last: bool = False) -> None:
        super().__init__(self.Config(), n_items=TIE_ITEMS, max_length=5)
        self.last = last
        self.register_buffer("scores", -torch.arange(TIE_ITEMS + 1.0))

    def score(self, batch: Batch) -> torch.Tensor:
        scores = self.scores.expand(len(batch.items), -1).clone()
        if self.last and batch.items.shape[1]:
            last = batch.items.gather(1, (batch.lengths - 1).clamp(min=0)[:, None])
            scores.scatter_(1, last % TIE_ITEMS + 1, 1.0)
        return scores


def fixed_bundle(model: Scorer) -> Bundle:
    ids = np.array([f"i{i}" for i in range(1, TIE_ITEMS + 1)], dtype=object)
    return Bundle("m", "m", model, Vocabulary(ids), list(ids), np.ones(TIE_ITEMS, int), PROTOCOL, {"seed": 1})


def timed(items, times):
    users = np.array([f"u{u}" for u in range(len(items))], dtype=object)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in items])]).astype(np.int64)
    flat = np.array([item for row in items for item in row], np.int32)
    return Sequences(users, flat, np.array([at for row in times for at in row], np.int64), offsets)


# u0: the target ties with the validation event and with a training event; u1: the same, nothing trained;
# u2: no tie with the target, two in the history; u3: no tie at all
HISTORIES = timed([[1, 2, 3, 4], [5, 6], [7, 8, 9], [10, 11]], [[1, 5, 5, 5], [3, 3], [1, 1, 2], [1, 2]])
TARGETS = timed([[5], [7], [10], [12]], [[5], [3], [4], [9]])
TRAIN = timed([[1, 2, 3], [], [7, 8], [10]], [[1, 5, 5], [], [1, 1], [1]])
FOLD = Fold(HISTORIES, TARGETS)


def test_exchangeable_events_are_unseen_and_in_the_second_of_the_target():
    unseen = unseen_events(HISTORIES, TRAIN)
    assert unseen.tolist() == [1, 2, 1, 1]
    assert exchangeable_events(FOLD, unseen).tolist() == [1, 2, 0, 0]


def test_every_allowed_order_comes_equally_often_and_no_other():
    unseen = unseen_events(HISTORIES, TRAIN)
    seen = [Counter() for _ in range(4)]
    draws = 3000
    for seed in range(draws):
        one = shuffle_ties(FOLD, unseen, seed)
        for user in range(4):
            seen[user][(*one.histories.row(user).tolist(), one.targets.row(user).tolist()[0])] += 1
    # u0: 3! orders of the three tied events of the history for each of two targets; u1: 3!; u2: 2
    assert [len(orders) for orders in seen] == [12, 6, 2, 1]
    for orders in seen:
        expected = draws / len(orders)
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in orders.values())
    assert {order[-1] for order in seen[0]} == {4, 5}  # never 2 or 3, which are in the training set
    assert {order[0] for order in seen[0]} == {1}
    assert {order[-1] for order in seen[1]} == {5, 6, 7}


@pytest.mark.parametrize("seed", range(5))
def test_times_users_and_items_stay_and_ratings_and_weights_go_with_their_items(seed):
    draw = np.random.default_rng(seed)
    times = [np.sort(draw.integers(0, 4, draw.integers(1, 9))).tolist() for _ in range(30)]
    items = [draw.integers(1, TIE_ITEMS + 1, len(row)).tolist() for row in times]
    histories = timed(items, times)
    histories = replace(histories, ratings=(histories.items / 10).astype(np.float32), weights=2.0 * histories.items)
    targets = timed([[int(draw.integers(1, TIE_ITEMS + 1))] for _ in range(30)], [[max(3, *row)] for row in times])
    targets = replace(targets, weights=2.0 * targets.items)
    for ratings in (None, (targets.items / 10).astype(np.float32)):
        fold = Fold(histories, replace(targets, ratings=ratings))
        one = shuffle_ties(fold, draw.integers(0, 4, 30), seed)
        assert one.histories.timestamps is histories.timestamps
        for user in range(30):
            before, after = ([*part.histories.row(user), *part.targets.row(user)] for part in (fold, one))
            assert Counter(before) == Counter(after)
        assert all((part.weights == 2 * part.items).all() for part in (one.histories, one.targets))
        history_ratings = one.histories.ratings
        matches = np.isclose(history_ratings, one.histories.items / 10)
        assert matches.all() if ratings is not None else (matches | np.isnan(history_ratings)).all()
    assert (fold.histories.items == histories.items).all()  # the input is unchanged


def test_without_ties_nothing_changes():
    fold = Fold(timed([[1, 2, 3]], [[1, 2, 3]]), timed([[4]], [[4]]))
    one = shuffle_ties(fold, np.array([3]), 0)
    assert one.histories.row(0).tolist() == [1, 2, 3] and one.targets.row(0).tolist() == [4]


def test_a_user_with_several_targets_keeps_them():
    fold = Fold(timed([[1, 2]], [[5, 5]]), timed([[3, 4]], [[5, 5]]))
    assert {tuple(shuffle_ties(fold, np.array([2]), seed).targets.row(0)) for seed in range(20)} == {(3, 4)}


def test_the_values_have_the_mean_that_enumeration_gives():
    result = tie_sensitivity(fixed_bundle(FixedScores()), FOLD, TRAIN, PROTOCOL, metric="mrr@20", permutations=400)
    allowed = [(4, 5), (5, 6, 7), (10,), (12,)]  # item i always has rank i
    expected = np.mean([np.mean([1 / item for item in row]) for row in allowed])
    assert np.mean(result.values) == pytest.approx(expected, abs=0.002)  # 4 deviations of the mean
    assert result.as_ordered == pytest.approx(np.mean([1 / 5, 1 / 7, 1 / 10, 1 / 12]))
    assert min(result.values) <= result.low < result.high <= max(result.values)
    assert (result.other_target, result.other_history) == (0.5, 0.75)
    test = evaluate(fixed_bundle(FixedScores()), FOLD, FOLD, PROTOCOL).metrics["test"]
    single = tie_sensitivity(fixed_bundle(FixedScores()), FOLD, TRAIN, PROTOCOL, permutations=1)
    assert single.as_ordered == test["ndcg@10"]


def test_a_model_that_reads_order_sees_the_shuffled_history():
    result = tie_sensitivity(
        fixed_bundle(FixedScores(last=True)), FOLD, TRAIN, PROTOCOL, metric="hit_rate@1", permutations=600
    )
    # u0: 4 then 5, or 3 then 4, each in 1 of 6; u1: 5 then 6, or 6 then 7; u2: always 9 then 10; u3: 11 then 12
    assert np.mean(result.values) == pytest.approx((2 / 6 + 2 / 6 + 1 + 1) / 4, abs=0.02)


def test_equal_seeds_permute_alike_and_others_do_not():
    def values(seed):
        return tie_sensitivity(
            fixed_bundle(FixedScores()), FOLD, TRAIN, PROTOCOL, metric="mrr@20", permutations=6, seed=seed
        ).values

    assert values(3) == values(3) != values(40)


def test_missing_timestamps_and_permutations_are_errors():
    bare = Fold(replace(HISTORIES, timestamps=None), TARGETS)
    with pytest.raises(ValueError, match="x has no timestamps"):
        tie_sensitivity(fixed_bundle(FixedScores()), bare, TRAIN, PROTOCOL)
    with pytest.raises(ValueError, match="permutations is 0"):
        tie_sensitivity(fixed_bundle(FixedScores()), FOLD, TRAIN, PROTOCOL, permutations=0)


def test_a_model_that_scores_the_catalogue_misses_no_candidate():
    table = torch.rand(ITEMS + 1, ITEMS + 1, generator=torch.Generator().manual_seed(1))
    data = fold(3)
    seen = sum(target in data.histories.row(u) for u in range(len(data)) for target in data.targets.row(u))
    ranking = rank_fold(Table(table), data, exclude_seen=True, k=4)
    ids_of_items = Vocabulary(np.array([f"i{i}" for i in range(ITEMS)], dtype=object))
    values = metrics_from_ranks(ranking.table(data, ids_of_items), cutoffs=[4])
    assert (values["outside_candidates"], values["missed_by_beam"]) == (seen, 0) and seen > 0
