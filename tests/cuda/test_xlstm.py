"""The Triton kernels of mLSTM against the same library's plain torch.

Gradients are compared behind a norm of each head's output, as an mLSTM layer has it: the library's own ways back leave
out what such a norm cancels, plain torch does not (tests/models/test_xlstm.py has that on a CPU).
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("mlstm_kernels", reason="comes with xlstm, which a lent machine may lack")

import recpipe.models.xlstm as module

LENGTHS = [1, 5, 40, 64, 130, 200]


def inputs(T: int, *, low: bool = False) -> list[torch.Tensor]:
    """q, k, v and the gates before their exponentials, forget gates mostly open."""
    g = torch.Generator().manual_seed(T)
    shapes = [(3, 2, T, 16), (3, 2, T, 16), (3, 2, T, 32), (3, 2, T), (3, 2, T)]
    drawn = [torch.randn(shape, generator=g) for shape in shapes]
    drawn[4] += 3
    kind = torch.bfloat16 if low else torch.float32
    return [each.to("cuda", kind).requires_grad_() for each in drawn]


def mixed(name: str, values: list[torch.Tensor]) -> list[torch.Tensor]:
    """The output and all gradients."""
    layer = module.PaddedKernel()
    layer.on_cuda = name
    y, _ = layer(*values)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    normed = F.rms_norm(y.float(), y.shape[-1:]).to(y)
    return [y, *torch.autograd.grad(normed, values, weight)]


def near(mine: torch.Tensor, other: torch.Tensor, share: float) -> None:
    assert torch.isfinite(mine).all()
    lost = (mine.float() - other.float()).norm() / other.float().norm().clamp(
        min=0.1
    )  # nothing is lost of next to nothing
    assert lost < share, f"{lost:.2g} of the norm"


def test_the_triton_kernels_are_taken():
    assert module.PaddedKernel().on_cuda == module.TRITON


@pytest.mark.parametrize("length", LENGTHS)
def test_outputs_and_gradients(length):
    """Its products are TF32."""
    values = inputs(length)
    for mine, other in zip(mixed(module.TRITON, values), mixed(module.NATIVE, values), strict=True):
        near(mine, other, 1e-2)


@pytest.mark.parametrize("length", LENGTHS)
def test_in_bf16(length):
    values = inputs(length, low=True)
    exact = mixed(module.NATIVE, [each.detach().float().requires_grad_() for each in values])
    with torch.autocast("cuda", dtype=torch.bfloat16):
        low = mixed(module.TRITON, values)
    for mine, other in zip(low, exact, strict=True):
        near(mine, other, 5e-2)
