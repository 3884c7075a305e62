"""T5's attention by the fused kernels of a GPU against plain products, where some rows see nothing."""

from __future__ import annotations

import pytest
import torch

from recpipe.layers.t5 import attention_mask, fused_attention


@pytest.mark.parametrize(("kind", "share"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("queries", [1, 5, 80])
def test_the_fused_attention_is_the_plain_one(kind, share, queries):
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 6, queries, 64), (3, 6, 85, 64), (3, 6, 85, 64), (1, 6, queries, 85)]
    inputs = [torch.randn(shape, generator=generator).cuda().requires_grad_() for shape in shapes]
    allowed = (torch.rand(3, 1, queries, 85, generator=generator) < 0.4).cuda()
    allowed[1, :, -1] = False
    results = []
    for low in (torch.float32, kind):
        q, k, v, bias = (each.to(low) for each in inputs)
        mask = attention_mask(bias, allowed)
        plain = (q @ k.mT + mask.bias).softmax(-1) @ v
        mixed = (plain if not results else fused_attention(q, k, v, mask, torch.nn.Dropout(0.0))) * mask.alive
        results.append([mixed, *torch.autograd.grad(mixed.float().square().sum(), inputs)])
    for exact, other in zip(*results, strict=True):
        assert torch.isfinite(other).all()
        assert (other.float() - exact).norm() < share * exact.norm()
