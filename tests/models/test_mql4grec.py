"""MQL4GRec: modalities, their tasks and their fusion."""

from __future__ import annotations

import numpy as np
import torch
from tests.models.generative import BOTH, DATA, ITEMS, WINDOW, create, without

from recpipe.training.losses.full_softmax import FullSoftmax


def test_what_both_modalities_teach_is_all_learned_among_children():
    """Next items, fused tasks and alignment: fewer logits than over all tokens, so a lower loss."""
    losses = {}
    for among in ("all", "children"):
        config = {"softmax": among, "renormalise": among == "children", "dropout": 0.0}
        model = create("mql4grec", ids=BOTH, **config)
        batch = model.on_device(DATA, window=WINDOW + 1).batch(np.arange(len(DATA)))
        losses[among] = model.loss(batch, FullSoftmax())
        losses[among].backward()
        assert all(each.grad is not None for each in model.transformer.parameters())
    assert 0 < losses["children"] < losses["all"]


def test_an_item_with_a_text_id_alone_is_recommended_by_text():
    ids = {"text": BOTH["text"], "image": without(BOTH["image"], [4])}
    model = create("mql4grec", ids, beam=ITEMS)
    candidates = torch.zeros(ITEMS + 1, dtype=torch.bool)
    candidates[4] = True
    items, scores = model.recommend(DATA, 3, candidates=candidates, exclude_seen=False)
    assert (items[:, 0] == 4).all() and (items[:, 1:] == 0).all() and np.isneginf(scores[:, 1:]).all()


def test_the_weight_of_modalities_is_chosen_by_validation():
    model = create("mql4grec", BOTH, beam=5)
    assert model.tune(lambda: float(model.weights[0] == 0.75)) == {"text": 0.75}
    assert model.weights.tolist() == [0.75, 0.25]
    fixed = create("mql4grec", BOTH, beam=5, weights=[0.5, 0.5])
    assert fixed.tune(lambda: float(fixed.weights[0] == 0.75)) == {} and fixed.weights.tolist() == [0.5, 0.5]


def test_tokens_of_modalities_do_not_meet():
    model = create("mql4grec", {"text": BOTH["text"], "image": without(BOTH["image"], [6])})
    text, image = (set(model.tokens(m)[1:].flatten().tolist()) for m in range(2))
    assert not text & image
    assert max(text) <= 12 and image <= {*range(13, 25), *range(28, 31)}
    assert model.tokens(1)[6].tolist() == [28, 29, 30]  # unknown, behind all codes and the unknown of text
