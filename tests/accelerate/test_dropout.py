"""Fast dropout: probabilities, independence, gradients and seeds."""

from __future__ import annotations

import pytest
import torch

from recpipe.accelerate import FastDropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_elements_are_dropped_independently_with_the_right_probability(p):
    torch.manual_seed(0)
    out = FastDropout(p)(torch.ones(1_000_000))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / (1 - p), rel=1e-3)]
    mask = (out > 0).double()
    four_sigma = 4 * (p * (1 - p) / 250_000) ** 0.5
    for lane in mask.view(-1, 4).T:  # each draw serves four neighbours
        assert abs(lane.mean() - (1 - p)) < four_sigma
    for distance in (1, 2, 3, 4, 64):
        both = (mask[distance:] * mask[:-distance]).mean()
        assert abs(both - (1 - p) ** 2) < 4 * four_sigma
    assert abs(out.mean() - 1) < 0.02


def test_the_probability_is_a_multiple_of_one_in_65536_and_the_mean_is_exact():
    layer = FastDropout(0.3)
    assert layer.threshold == 19661
    torch.manual_seed(1)
    scale = layer(torch.ones(1000, dtype=torch.float64)).max()
    assert scale.item() == 65536 / (65536 - 19661)
    assert FastDropout(1e-9).threshold == 0 and FastDropout(1.0).threshold == 65535


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_gradient_has_the_same_mask(dtype):
    x = torch.randn(7, 5, 3, dtype=dtype).requires_grad_()
    out = FastDropout(0.4)(x)
    out.sum().backward()
    assert out.dtype == dtype
    assert 0 < (out == 0).sum() < out.numel()
    torch.testing.assert_close(x.grad * x.detach(), out.detach())


def test_the_generator_of_torch_decides_and_goes_on_from_its_state():
    layer, x = FastDropout(0.2), torch.ones(99)
    torch.manual_seed(3)
    first = layer(x)
    state = torch.get_rng_state()
    second = layer(x)
    torch.set_rng_state(state)
    assert torch.equal(layer(x), second) and not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


def test_nothing_is_dropped_in_evaluation_or_with_probability_zero():
    x = torch.randn(50)
    assert torch.equal(FastDropout(0.5).eval()(x), x) and torch.equal(FastDropout(0.0)(x), x)
    assert FastDropout(0.5)(torch.ones(0, 4)).shape == (0, 4)
    with pytest.raises(ValueError, match="probability"):
        FastDropout(1.5)
