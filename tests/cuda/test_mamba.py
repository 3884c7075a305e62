"""Mamba-2 by the Triton kernels of ``mamba_ssm`` against plain torch."""

from __future__ import annotations

import pytest
import torch
from tests.layers.test_ssd import inputs, segments

from recpipe.layers import ssd as module
from recpipe.layers.ssd import Mamba2, ssd

pytestmark = pytest.mark.skipif(not module.has_mamba_ssm(), reason="needs mamba_ssm: pip install 'recpipe[cuda]'")


@pytest.mark.parametrize("length", [1, 5, 64, 75, 200])
@pytest.mark.parametrize("packed", [False, True], ids=["one", "packed"])
def test_outputs_and_gradients(length, packed):
    values = [value.detach().cuda().requires_grad_() for value in inputs(length, torch.float32)]
    cuts = [length // 3, length // 5, length - length // 3 - length // 5]
    marks = segments([n for n in cuts if n], length).expand(3, -1).cuda() if packed else None
    ours, theirs = ssd(*values, 32, marks), module.mamba_ssm_scan(*values, 32, marks)
    assert (theirs - ours).norm() < 5e-3 * ours.norm()  # its products are TF32
    for mine, other in zip(
        torch.autograd.grad(ours.sum(), values), torch.autograd.grad(theirs.sum(), values), strict=True
    ):
        assert (other - mine).norm() <= 2e-2 * mine.norm()


@pytest.mark.parametrize("low", [False, True], ids=["fp32", "bf16"])
def test_the_mixer_with_either_kernel(low):
    torch.manual_seed(0)
    made = Mamba2(64, state=32).cuda()
    x, found = torch.randn(4, 50, 64, device="cuda"), []
    for made.kernel in ("torch", "auto"):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=low):
            y = made(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), list(made.parameters()))])
    assert module.choose_kernel("auto", x.device) == "mamba_ssm"
    for mine, other in zip(*found, strict=True):
        assert torch.isfinite(other).all()
        assert (other - mine).norm() < (5e-2 if low else 1e-2) * mine.norm() + 1e-3
