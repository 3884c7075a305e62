"""Transitions of training sequences against sets of pairs, in parts of any size, with empty users and no edges."""

import itertools

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences

from recpipe.data.sequences import Fold
from recpipe.data.transitions import Transitions, last_items, transition_seen

ITEMS = 15
ROWS = [[], [3], *([int(i) for i in row] for row in np.random.default_rng(0).integers(1, ITEMS + 1, (30, 6))), [], [2]]
PAIRS = {pair for row in ROWS for pair in itertools.pairwise(row)}


@pytest.fixture(params=[1, 7, 1 << 20], ids=["one user at a time", "small parts", "one part"])
def train(request, monkeypatch):
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", request.param)
    return sequences(ROWS)


def test_transitions_are_the_pairs_of_consecutive_items_of_a_user(train):
    transitions = Transitions.of(train)
    first, second = (grid.ravel() for grid in np.meshgrid(np.arange(ITEMS + 2), np.arange(ITEMS + 2)))
    expected = [pair in PAIRS for pair in zip(first.tolist(), second.tolist(), strict=True)]
    assert transitions.contains(first, second).tolist() == expected
    assert len(transitions) == len(PAIRS)
    counts = [sum(a == item for a, _ in PAIRS) for item in range(ITEMS + 2)]
    assert transitions.successors(np.arange(ITEMS + 2)).tolist() == counts


def test_a_target_is_seen_where_training_has_the_transition_from_the_last_item(train):
    histories = random_sequences(40, ITEMS, seed=1)
    targets = np.random.default_rng(2).integers(1, ITEMS + 1, (40, 3)).tolist()
    targets = [list(dict.fromkeys(row)) for row in targets]
    expected = [(int(histories.row(u)[-1]), item) in PAIRS for u, row in enumerate(targets) for item in row]
    assert transition_seen(train, Fold(histories, sequences(targets))).tolist() == expected
    assert any(expected) and not all(expected)


def test_users_without_history_have_no_transition():
    fold = Fold(sequences([[], [1, 2], []]), sequences([[1], [3], [2, 3]]))
    assert last_items(fold.histories).tolist() == [0, 2, 0]
    assert transition_seen(sequences([[2, 3]]), fold).tolist() == [False, True, False, False]


@pytest.mark.parametrize("rows", [[], [[1], [2], [3]]], ids=["no user", "one event each"])
def test_a_training_set_without_transitions_has_none(rows):
    train, fold = sequences(rows), Fold(sequences([[1]]), sequences([[2]]))
    assert len(Transitions.of(train)) == 0
    assert not Transitions.of(train).contains(np.array([1]), np.array([2])).any()
    assert Transitions.of(train).successors(np.array([0, 1])).tolist() == [0, 0]
    assert transition_seen(train, fold).tolist() == [False]
