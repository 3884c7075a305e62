"""TIGER against scores of single items."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models.generative import ITEMS, WINDOW, create
from tests.synthetic import sequences

from recpipe.training.losses.full_softmax import FullSoftmax


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


def reranking(**settings):
    """TIGER with a dense head whose vectors are random, and the same network without it."""
    dense = create("tiger", rerank="dense", **settings)
    torch.manual_seed(1)
    with torch.no_grad():
        dense.dense_vectors.copy_(torch.randn_like(dense.dense_vectors))
    plain = create("tiger", **{key: value for key, value in settings.items() if key != "rerank_share"})
    plain.load_state_dict({k: v for k, v in dense.state_dict().items() if k != "dense_vectors"})
    return dense, plain


@torch.inference_mode()
def dense_scores(model, history: list[int]) -> np.ndarray:
    """(I,) log-probabilities of the dense head, from the first state of the pass that trains."""
    batch = model.on_device(sequences([history]), window=WINDOW).batch(np.zeros(1, int))
    encoded = model.transformer.encode(batch, model.codes.tokens)
    state = model.transformer.decode(encoded, model.codes.tokens[1][None, None], by_target=False)[0, 0, 0]
    tokens = model.codes.tokens[1:]
    vectors = model.transformer.input.weight[tokens].sum(1) + model.dense_vectors[1:]
    return (vectors @ state).log_softmax(0).numpy()


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_beams_items_are_ranked_by_both_heads(share):
    model, plain = reranking(beam=6, rerank_share=share)
    for history in ([3, 7, 9], [5, 5, 2, 8, 11, 4]):
        found, by_ids = plain.recommend(sequences([history]), 6, exclude_seen=True)
        items, scores = model.recommend(sequences([history]), 4, exclude_seen=True)
        mixed = (1 - share) * by_ids[0] + share * dense_scores(model, history)[found[0] - 1]
        best = np.argsort(-mixed, kind="stable")[:4]
        assert items[0].tolist() == found[0][best].tolist()
        np.testing.assert_allclose(scores[0], mixed[best], atol=1e-4)


def test_a_beam_with_fewer_items_than_places_leaves_places_empty():
    model, _ = reranking(beam=ITEMS, rerank_share=0.0)
    history = [*range(1, ITEMS - 1)]  # two items are left
    items, scores = model.recommend(sequences([history]), 5, exclude_seen=True)
    assert sorted(items[0][:2]) == [ITEMS - 1, ITEMS] and not items[0][2:].any()
    assert np.isneginf(scores[0][2:]).all() and np.isfinite(scores[0][:2]).all()


def test_the_dense_loss_is_the_cross_entropy_of_the_next_item_beside_that_of_the_codes():
    weights = (0.0, 1.0, 3.0)
    data = sequences([[3, 7, 9], [5, 5, 2, 8]])
    losses, models = [], [reranking(dense_weight=weight)[0] for weight in weights]
    for model in models:
        batch = model.on_device(data, window=WINDOW).batch(np.arange(2))
        losses.append(model.loss(batch, FullSoftmax()).item())
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    expected = [-dense_scores(models[0], h[:n])[h[n] - 1] for h in ([3, 7, 9], [5, 5, 2, 8]) for n in range(1, len(h))]
    assert losses[1] - losses[0] == pytest.approx(float(np.mean(expected)), rel=1e-4)


def test_settings_of_reranking_are_checked():
    for settings, message in (
        ({"rerank": "sparse"}, "rerank is 'sparse'"),
        ({"dense_weight": -1.0}, "dense_weight is -1.0"),
        ({"rerank_share": 1.5}, "rerank_share is 1.5; it lies between 0 .ids. and 1 .dense."),
        ({"rerank": "dense", "stochastic": True}, "set rerank: none"),
    ):
        with pytest.raises(ValueError, match=message):
            create("tiger", **settings)
    assert create("tiger").probabilistic and not create("tiger", rerank="dense").probabilistic
