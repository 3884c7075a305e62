"""Packed rows by FlexAttention against the same users in padded rows by torch's fused attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences

from recpipe.data.batch_samplers import PackedBatches
from recpipe.data.batches import Batch, DeviceSequences
from recpipe.layers import attention
from recpipe.models.registry import build
from recpipe.training.losses.full_softmax import FullSoftmax

ITEMS = 40
SIZES = [64, 128, 200]
MODELS = [
    ("gpt", {"dim": 32, "heads": 2}),
    ("sasrec", {"dim": 32, "heads": 1}),
    ("sasrec", {"dim": 32, "heads": 4}),  # of 8: narrower than the kernels take
]


def create(name: str, config: dict, window: int) -> torch.nn.Module:
    torch.manual_seed(0)
    settings = {**config, "layers": 2, "dropout": 0.0}
    model = build(name, settings, n_items=ITEMS, max_length=window).cuda()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def steps(size: int, count: int = 3) -> list[tuple[Batch, Batch]]:
    """Different users in every one, packed and padded; users have up to 50 events."""
    data = random_sequences(150, ITEMS, longest=50, seed=size)
    held = DeviceSequences(data, window=51, device="cuda")
    batches = PackedBatches(held.lengths, size=size, tokens=1000, seed=size)
    pairs = []
    for _, (part,) in zip(range(count), batches, strict=False):
        packed = batches.gather(held, part)
        assert packed.segments is not None and int(packed.segments.max()) > 1
        pairs.append((packed, held.batch(np.sort(part.users))))
    return pairs


def judged(model: torch.nn.Module, batch: Batch, criterion) -> list[torch.Tensor]:
    model.zero_grad()
    loss = model.loss(batch, criterion)
    loss.backward()
    return [loss.detach(), *(weight.grad for weight in model.parameters())]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "config"), MODELS, ids=str)
def test_losses_and_gradients_are_those_of_padded_rows(name, config, size):
    """In one step after another: a mask of the step before would show."""
    model = create(name, config, 50)
    for packed, padded in steps(size):
        assert packed.n_targets == padded.n_targets
        ours, theirs = (judged(model, each, FullSoftmax()) for each in (packed, padded))
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_kernel_mixes_as_the_mask_of_a_matrix_says(size):
    """Outputs and gradients of attention itself, place by place, against the whole matrix of scores."""
    for width in (8, 16, 64):
        for packed, _ in steps(size, 2):
            segments, T = packed.segments, packed.items.shape[1]
            assert segments is not None
            allowed = (segments[:, :, None] == segments[:, None, :]).tril()[:, None]
            real = (packed.items > 0)[:, None, :, None]
            shape = (len(segments), 2, T, width)
            q, k, v, weight = (torch.randn(shape, device="cuda") for _ in range(4))
            leaves = [each.requires_grad_() for each in (q, k, v)]
            flex_attend = attention.attend(q, k, v, attention.causal_mask(packed, q)) * real
            matrix = (q @ k.mT / width**0.5).masked_fill(~allowed, -torch.inf).softmax(-1) @ v * real
            torch.testing.assert_close(flex_attend, matrix, rtol=1e-3, atol=1e-4)
            ours, theirs = (torch.autograd.grad(each, leaves, weight) for each in (flex_attend, matrix))
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(("name", "config"), MODELS, ids=str)
def test_in_bf16_losses_are_near(name, config):
    model = create(name, config, 50)
    for packed, padded in steps(128):
        exact = model.loss(padded, FullSoftmax())
        with torch.autocast("cuda", dtype=torch.bfloat16):
            low = judged(model, packed, FullSoftmax())
        assert all(torch.isfinite(each).all() for each in low)
        torch.testing.assert_close(low[0], exact.detach(), rtol=2e-2, atol=2e-2)


def test_dropout_on_attention_weights_is_refused():
    packed, _ = steps(64, 1)[0]
    q = torch.randn(*packed.items.shape, 1, 16, device="cuda").transpose(1, 2)
    with pytest.raises(ValueError, match="do not go together"):
        attention.attend(q, q, q, attention.causal_mask(packed, q), torch.nn.Dropout(0.5).train())
