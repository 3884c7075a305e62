"""The softmax over items of summed codes: against torch's cross-entropy of all scores, gradients too, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recpipe.layers import softmax
from recpipe.layers.softmax import item_cross_entropy

SIZES, ITEMS, TARGETS = (5, 7, 3), 40, 9


@pytest.mark.parametrize("max_scores", [1 << 22, 3 * ITEMS, 1])
def test_loss_and_gradients_are_those_of_all_scores(max_scores, monkeypatch):
    monkeypatch.setattr(softmax, "MAX_SCORES", max_scores)
    torch.manual_seed(0)
    codes = torch.stack([torch.randint(size - 1, (ITEMS,)) for size in SIZES], 1)  # the last codes have no item
    codes[1] = codes[0]  # and two items share an id
    rows = torch.randint(ITEMS, (TARGETS,))
    logits = [(20 * torch.randn(TARGETS, size, dtype=torch.float64)).requires_grad_() for size in SIZES]
    scores = sum(each[:, codes[:, level]] for level, each in enumerate(logits))
    expected = F.cross_entropy(scores, rows)
    loss = item_cross_entropy(logits, codes, rows)
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(
        torch.autograd.grad(3 * loss, logits), torch.autograd.grad(3 * expected, logits), strict=True
    ):
        torch.testing.assert_close(mine, other)


def test_targets_have_weights(monkeypatch):
    monkeypatch.setattr(softmax, "MAX_SCORES", 4 * ITEMS)
    torch.manual_seed(1)
    codes = torch.stack([torch.randint(size, (ITEMS,)) for size in SIZES], 1)
    rows, weights = torch.randint(ITEMS, (TARGETS,)), 2 * torch.rand(TARGETS, dtype=torch.float64)
    logits = [torch.randn(TARGETS, size, dtype=torch.float64, requires_grad=True) for size in SIZES]
    scores = sum(each[:, codes[:, level]] for level, each in enumerate(logits))
    expected = (weights * F.cross_entropy(scores, rows, reduction="none")).mean()
    loss = item_cross_entropy(logits, codes, rows, weights)
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(torch.autograd.grad(loss, logits), torch.autograd.grad(expected, logits), strict=True):
        torch.testing.assert_close(mine, other)


def test_scores_of_lower_precision_are_summed_in_float32():
    torch.manual_seed(0)
    codes = torch.stack([torch.randint(size, (ITEMS,)) for size in SIZES], 1)
    logits = [torch.randn(TARGETS, size).bfloat16().requires_grad_() for size in SIZES]
    rows = torch.arange(TARGETS)
    loss = item_cross_entropy(logits, codes, rows)
    exact = item_cross_entropy([each.detach().double() for each in logits], codes, rows)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact)
    loss.backward()
    assert all(each.grad.dtype == torch.bfloat16 for each in logits)
