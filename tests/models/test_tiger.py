"""TIGER against scores of single items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.generative import ITEMS, WINDOW, create
from tests.synthetic import sequences


@torch.inference_mode()
def tiger_scores(model, history: list[int]) -> np.ndarray:
    """(I,) log-probabilities, each item alone, by the teacher-forced pass that trains."""
    data = sequences([history])
    batch = model.on_device(data, window=WINDOW).batch(np.zeros(1, int))
    transformer, tokens = model.transformer, model.codes.tokens
    scores = []
    for item in range(1, ITEMS + 1):
        target = tokens[item][None, None]
        hidden = transformer.decode(transformer.encode(batch, tokens), target, by_target=False)[0, 0]
        logs = (hidden @ transformer.input.head[1:].T).log_softmax(-1)
        scores.append(float(logs.gather(1, target[0, 0][:, None] - 1).sum()))
    return np.array(scores)


@pytest.mark.parametrize("one_pass", [True, False])
@pytest.mark.parametrize("recency", [True, False])
def test_tigers_list_is_that_of_every_item_scored_alone(one_pass, recency):
    model = create("tiger", beam=ITEMS, one_pass=one_pass, recency=recency)
    for history in ([3, 7, 9], [1], [5, 5, 2, 8, 11, 4]):
        expected = tiger_scores(model, history)
        items, scores = model.recommend(sequences([history]), 8, exclude_seen=True)
        allowed = [item for item in range(1, ITEMS + 1) if item not in history]
        best = sorted(allowed, key=lambda item: -expected[item - 1])[:8]
        assert items[0].tolist() == best
        np.testing.assert_allclose(scores[0], expected[np.array(best) - 1], atol=1e-4)
