"""Popularity and kNN against what a few lines of numpy say."""

from __future__ import annotations

import numpy as np
import pytest
from tests.synthetic import random_sequences, sequences

from recpipe.models.registry import build


def test_popularity_counts_events_and_its_window_only_the_last_days():
    data = sequences([[1, 1, 2], [2, 3]])
    data.timestamps[:] = [0, 86_400 * 9, 86_400 * 10, 86_400 * 5, 86_400 * 10]
    counted = {days: build("popular", {"days": days}, n_items=4, max_length=5) for days in (None, 2.0)}
    for model in counted.values():
        model.fit(data)
    assert counted[None].counts.tolist() == [0, 2, 2, 1, 0]
    assert counted[2.0].counts.tolist() == [0, 1, 1, 1, 0]
    with pytest.raises(ValueError, match="timestamps"):
        counted[2.0].fit(sequences([[1]], times=False))


@pytest.mark.parametrize("last", [None, 2])
def test_item_knn_equals_dense_numpy(last):
    items, data = 12, random_sequences(50, 12, longest=9)
    model = build("item_knn", {"neighbours": 4, "shrinkage": 3.0, "last": last}, n_items=items, max_length=20)
    model.fit(data)
    held = np.zeros((len(data), items + 1))
    for u in range(len(data)):
        held[u, data.row(u)] = 1
    together = held.T @ held
    count = np.diag(together)
    similarity = together / (np.sqrt(np.outer(count, count)) + 3.0)
    np.fill_diagonal(similarity, 0)
    for j in range(items + 1):
        similarity[np.argsort(-similarity[:, j], kind="stable")[4:], j] = 0
    used = np.zeros_like(held)
    for u in range(len(data)):
        used[u, data.row(u)[-last:] if last else data.row(u)] = 1
    for rows, scores in model.score_batches(data, exclude_seen=False):
        kept = np.sort(model.similarity.numpy(), 1)[:, 0]
        assert (kept >= 0).all()
        np.testing.assert_allclose(
            scores[:, 1:].numpy().sum(1), (used @ similarity.T)[rows, 1:].sum(1), rtol=1e-4
        )


def test_item_knn_with_all_neighbours_equals_dense_numpy_item_by_item():
    items, data = 12, random_sequences(50, 12, longest=9)
    model = build("item_knn", {"neighbours": 99, "shrinkage": 0.0}, n_items=items, max_length=20)
    model.fit(data)
    held = np.zeros((len(data), items + 1))
    for u in range(len(data)):
        held[u, data.row(u)] = 1
    norm = np.linalg.norm(held, axis=0) + 1e-12
    similarity = (held / norm).T @ (held / norm)
    np.fill_diagonal(similarity, 0)
    for rows, scores in model.score_batches(data, exclude_seen=False):
        np.testing.assert_allclose(scores[:, 1:].numpy(), (held @ similarity)[rows, 1:], rtol=1e-4, atol=1e-5)
