"""The transition graph against a loop over all events."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, sequences, weighted

from recpipe.data.sequences import Sequences
from recpipe.layers.transition_graph import last_known_items, load_matrix, store_matrix, transition_counts

ITEMS = 15


def counted(data: Sequences) -> np.ndarray:
    counts: Counter = Counter()
    for u in range(len(data)):
        for n in range(data.offsets[u], data.offsets[u + 1] - 1):
            weight = 1.0 if data.weights is None else float(data.weights[n + 1])
            counts[int(data.items[n]), int(data.items[n + 1])] += weight
    dense = np.zeros((ITEMS + 1, ITEMS + 1))
    for (first, second), count in counts.items():
        dense[first, second] = count
    return dense


@pytest.mark.parametrize("events_at_once", [1, 20, 1 << 22])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_transitions_are_pairs_of_consecutive_events_of_a_user(is_weighted, events_at_once, monkeypatch):
    monkeypatch.setattr("recpipe.data.sequences.EVENTS_AT_ONCE", events_at_once)
    data = random_sequences(40, ITEMS, longest=14, shortest=1, seed=5)
    data = weighted(data) if is_weighted else data
    matrix = transition_counts(data, ITEMS)
    np.testing.assert_array_equal(matrix.toarray(), counted(data))
    assert (matrix.data > 0).all()


def test_users_without_events_and_with_one_have_no_transition():
    data = sequences([[], [3], [], [1, 2, 2], [], [4], []])
    assert transition_counts(data, ITEMS).nnz == 2
    np.testing.assert_array_equal(transition_counts(data, ITEMS).toarray(), counted(data))
    for rows in ([], [[]], [[], []], [[5]], [[5], [7]]):
        assert transition_counts(sequences(rows), ITEMS).nnz == 0


def test_stored_matrices_are_read_back():
    matrix = transition_counts(random_sequences(20, ITEMS, seed=2), ITEMS)
    buffers = store_matrix(matrix, torch.device("cpu"))
    assert [buffer.dtype for buffer in buffers] == [torch.int64, torch.int32, torch.float32]
    np.testing.assert_array_equal(load_matrix(*buffers).toarray(), matrix.toarray())


def test_last_known_items_pass_over_padding_and_unknown_items():
    items = torch.tensor([[3, 1, 2, 0], [4, 0, 5, 0], [0, 0, 0, 0], [7, 7, 0, 0]])
    assert last_known_items(items, 1).tolist() == [[2], [5], [0], [7]]
    assert last_known_items(items, 3).tolist() == [[2, 1, 3], [5, 4, 0], [0, 0, 0], [7, 7, 0]]
    assert last_known_items(items[:, :0], 2).tolist() == [[0, 0]] * 4
