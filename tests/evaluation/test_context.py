"""Use of history against truncated histories, a closed-form gradient, and models that read a fixed number of events."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences

from recpipe.data.protocol import Protocol
from recpipe.data.sequences import Fold
from recpipe.evaluation.context import (
    MIN_USERS,
    ContextStudy,
    attribution,
    context_study,
    effective_context,
    gap_by_length,
    shuffle_before,
    truncated_context,
)
from recpipe.evaluation.ranking import rank_fold
from recpipe.evaluation.segments import length_names
from recpipe.models.next_item import NextItem
from recpipe.models.recommender import Scorer

ITEMS, WINDOW = 30, 12
FEW, SOME, MORE = length_names()[1:4]  # 1 to 4, 5 to 9, 10 to 19 events
PROTOCOL = Protocol(dataset="x", exclude_seen=False)


class Successor(Scorer):
    """The item after the last one first, then those after the ones before it, ever less."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__(self.Config(), n_items=ITEMS, max_length=WINDOW)
        self.depth = depth
        self.register_buffer("low", -torch.arange(ITEMS + 1.0) / 1000)

    def score(self, batch):
        scores = self.low.expand(len(batch.items), -1).clone()
        for back in range(self.depth - 1, -1, -1):
            position = batch.lengths - 1 - back
            item = batch.items.gather(1, position.clamp(min=0)[:, None])
            exists = (position >= 0)[:, None]
            old = scores.gather(1, item % ITEMS + 1)
            scores.scatter_(1, item % ITEMS + 1, torch.where(exists, self.depth - back, old))
        return scores


class Weighted(NextItem):
    """Adds the events up with weights by place, so that its gradient is known."""

    class Config:
        dim = 5

    def encode(self, x_BTD, batch):
        weights = 1.0 + torch.arange(x_BTD.shape[1], device=x_BTD.device)
        return (x_BTD * weights[:, None]).cumsum(1)


def fold(users=60, seed=0, longest=20, shortest=1):
    all_events = random_sequences(users, ITEMS, seed=seed, longest=longest + 1, shortest=shortest + 1)
    none, ends = np.zeros(users, np.int64), all_events.lengths
    rows = np.arange(users)
    return Fold(all_events.select(rows, none, ends - 1), all_events.select(rows, ends - 1, ends))


@pytest.mark.parametrize("events", [1, 3, 7])
@pytest.mark.parametrize("exclude_seen", [True, False])
def test_truncated_context_equals_truncated_histories_with_all_seen_items_excluded(events, exclude_seen):
    model, data = Successor(3), fold()
    with truncated_context(model, events):
        result = rank_fold(model, data, exclude_seen=exclude_seen, k=1)
    assert model.max_length == WINDOW
    cut = Fold(data.histories.last(events), data.targets)
    lists, _ = model.recommend(cut.histories, ITEMS, exclude_seen=False)
    for user, row in enumerate(lists):
        seen = set(data.histories.row(user)) if exclude_seen else set()
        left = [item for item in row if item not in seen]
        target = data.targets.row(user)[0]
        assert result.rank[user] == (left.index(target) + 1 if target in left else 0)


@pytest.mark.parametrize("events", [0, 1, 4])
def test_the_last_events_stay_and_the_others_are_shuffled(events):
    histories = fold().histories
    mixed = shuffle_before(histories, events, seed=3)
    assert np.array_equal(mixed.timestamps, histories.timestamps)
    moved = 0
    for user in range(len(histories)):
        before, after = histories.row(user), mixed.row(user)
        cut = max(len(before) - events, 0)
        assert np.array_equal(before[cut:], after[cut:])
        assert sorted(before[:cut]) == sorted(after[:cut])
        moved += not np.array_equal(before, after)
    assert moved > len(histories) / 2


def test_a_model_of_the_last_item_needs_one_event_and_no_order_before_it():
    result = effective_context(ContextStudy(Successor(1), fold(), PROTOCOL, "ndcg@10"))
    assert result["whole"] > 0.5
    assert result["longest"] == WINDOW
    assert [row["events"] for row in result["rows"]] == [1, 2, 5, 10]
    for row in result["rows"]:
        assert row["truncated"] == pytest.approx(result["whole"], abs=1e-12)
        assert row["shuffled"] == pytest.approx(result["whole"], abs=1e-12)
        assert row["longer"] == pytest.approx((fold().histories.lengths > row["events"]).mean())
    assert result["shuffled_all"] < 0.8 * result["whole"]


def test_a_model_of_the_third_last_item_needs_three_events():
    """Targets that follow the third last item are found with three events and not with two."""
    rows = [[10, 20, 30] for _ in range(5)]
    data = Fold(sequences(rows), sequences([[11]] * 5))

    class Third(Successor):
        def score(self, batch):
            item = batch.items.gather(1, (batch.lengths - 3).clamp(min=0)[:, None])
            return self.low.expand(len(batch.items), -1).clone().scatter_(1, item % ITEMS + 1, 1.0)

    result = effective_context(ContextStudy(Third(), data, PROTOCOL, "recall@1"))
    assert result["whole"] == 1
    assert {row["events"]: row["truncated"] for row in result["rows"]} == {1: 0.0, 2: 0.0}


def test_attribution_is_gradient_times_input_in_closed_form():
    torch.manual_seed(0)
    model, data = Weighted(Weighted.Config, n_items=ITEMS, max_length=WINDOW).double(), fold(80)
    result = attribution(model, data, PROTOCOL)
    table = model.items.weight.detach().numpy()
    shares: dict[str, list] = {}
    for user in range(len(data)):
        items = data.histories.row(user)[-WINDOW:]
        weights = 1.0 + np.arange(len(items))
        logits = (weights @ table[items]) @ table.T
        chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        towards = table[data.targets.row(user)[0]] - chances @ table
        part = np.abs(weights * (table[items] @ towards))[::-1] / np.abs(weights * (table[items] @ towards)).sum()
        name = FEW if len(items) < 5 else SOME if len(items) < 10 else MORE
        shares.setdefault(name, []).append(np.pad(part, (0, WINDOW - len(part))))
    expected = {name: np.mean(rows, 0) for name, rows in shares.items() if len(rows) >= MIN_USERS}
    assert len(expected) > 1
    assert [row["history"] for row in result] == [name for name in (FEW, SOME, MORE) if name in expected]
    for row in result:
        assert row["users"] == len(shares[row["history"]])
        np.testing.assert_allclose(row["shares"], expected[row["history"]], atol=1e-9)
        assert row["older"] == 0
        assert sum(row["shares"]) == pytest.approx(1)


def test_the_gap_compares_training_targets_with_validation_targets():
    """A successor model finds the last training event of walks, and none of the random ones that follow."""
    train = fold(100, longest=9).histories
    last = train.items[train.offsets[1:] - 1]
    valid = Fold(train, sequences([[(item + 14) % ITEMS + 1] for item in last]))
    study = ContextStudy(Successor(1), valid, PROTOCOL, "recall@1")
    result = gap_by_length(study, train, users=1000, seed=0)
    assert [row["history"] for row in result] == [FEW, SOME]
    lengths = train.lengths
    for row, (low, high) in zip(result, [(1, 4), (5, 9)], strict=True):
        assert row["valid"] == 0
        assert row["train"] > 0.6
        assert row["valid_users"] == ((lengths >= low) & (lengths <= high)).sum()
        assert row["train_users"] == ((lengths - 1 >= low) & (lengths - 1 <= high)).sum()


def test_the_study_is_reproducible_with_a_limit_of_users_and_an_error_for_unknown_metrics():
    data = fold()
    study = context_study(Successor(2), data.histories, data, PROTOCOL, users=25, seed=1)
    assert study["users"] == 25
    assert study["attribution"] is None  # it has no embeddings
    assert study == context_study(Successor(2), data.histories, data, PROTOCOL, users=25, seed=1)
    for metric in ("ndcg", "beauty@10"):
        with pytest.raises(ValueError, match=f"metric is '{metric}'"):
            context_study(Successor(2), data.histories, data, PROTOCOL, metric=metric)


def test_users_without_history_and_short_folds_work():
    data = Fold(sequences([[], [1], [2, 3]]), sequences([[4], [2], [4]]))
    result = context_study(Successor(1), data.histories, data, replace(PROTOCOL, exclude_seen=True))
    assert result["gap"] == []
    assert [row["events"] for row in result["effective"]["rows"]] == [1]
