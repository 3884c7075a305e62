from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from recpipe.training.losses import FullSoftmax, make_loss


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_full_softmax_and_its_gradients_equal_torch_in_float64(chunk):
    generator = torch.Generator().manual_seed(chunk)
    hidden = torch.randn(64, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    table = torch.randn(31, 8, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(1, 31, (64,), generator=generator)
    ours = FullSoftmax(chunk)(hidden, table, targets)
    theirs = F.cross_entropy(hidden @ table[1:].T, targets - 1)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-12)
    for mine, other in zip(
        torch.autograd.grad(3 * ours, (hidden, table)),
        torch.autograd.grad(3 * theirs, (hidden, table)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)


def test_large_logits_stay_finite_and_exact():
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    table = torch.tensor([[0.0], [1.0], [-1.0]], requires_grad=True)
    loss = FullSoftmax()(hidden, table, torch.tensor([2, 2]))
    assert loss.item() == pytest.approx((400 + 0) / 2)
    loss.backward()
    assert torch.isfinite(hidden.grad).all() and torch.isfinite(table.grad).all()


def test_padding_row_gets_no_probability_and_no_gradient():
    hidden, table = torch.ones(1, 2), torch.zeros(4, 2, requires_grad=True)
    loss = FullSoftmax()(hidden, table, torch.tensor([1]))
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item())
    assert table.grad[0].abs().sum() == 0


def test_bf16_products_are_close_and_gradients_keep_the_type_of_their_tensors():
    torch.manual_seed(0)
    hidden, table = torch.randn(100, 16, requires_grad=True), (0.1 * torch.randn(50, 16)).requires_grad_()
    targets = torch.randint(1, 50, (100,))
    exact = torch.autograd.grad(FullSoftmax(32)(hidden, table, targets), (hidden, table))
    with torch.autocast("cpu", torch.bfloat16):
        loss = FullSoftmax(32)(hidden, table, targets)
    rough = torch.autograd.grad(loss, (hidden, table))
    for mine, other in zip(rough, exact, strict=True):
        assert mine.dtype == torch.float32
        assert ((mine - other).norm() / other.norm()) < 0.02


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="unknown loss 'softmax'"):
        make_loss({"name": "softmax"})
    with pytest.raises(ValueError, match="train.loss"):
        make_loss({"name": "full_softmax", "chunks": 3})
    with pytest.raises(ValueError, match="loss.chunk is 0"):
        make_loss({"name": "full_softmax", "chunk": 0})
    with pytest.raises(ValueError, match="without a target"):
        FullSoftmax()(torch.ones(0, 2), torch.ones(3, 2), torch.ones(0, dtype=torch.long))
