"""Parity of the fast T5 with the plain modules."""

from __future__ import annotations

import pytest
import torch

from recpipe.accelerate import t5
from recpipe.accelerate.t5 import FastDecoder, FastEncoder, FastLinear
from recpipe.layers.t5 import Decoder, Encoder, T5Shape

SHAPE = T5Shape(dim=32, heads=3, head_dim=8, feed_forward=40, layers=2, decoder_layers=3)


@pytest.fixture(params=[True, False], ids=["onednn", "torch"], autouse=True)
def packed(request, monkeypatch):
    """With oneDNN's products and without."""
    if not request.param:
        monkeypatch.setattr(t5, "_packed", lambda weight: None)


def modules(shape: T5Shape = SHAPE, *, recency: bool = False) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    encoder, decoder = Encoder(shape).eval(), Decoder(shape, recency=recency).eval()
    with torch.no_grad():
        for module in (encoder, decoder):
            for name, weight in module.named_parameters():
                if "norm" in name:
                    weight.add_(0.3 * torch.randn_like(weight))
    return encoder, decoder


def mask_of(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["plain", "masked", "masked by user"])
@torch.no_grad()
def test_encoder(kind):
    encoder, _ = modules()
    mask = mask_of(9, 1, 13, 0, 6)
    event = torch.arange(13) // 4
    options = {
        "plain": {},
        "masked": {"attention": event[:, None] > event},  # the first event's tokens may look at nothing
        "masked by user": {"attention": torch.rand(5, 13, 13, generator=torch.Generator().manual_seed(0)) < 0.2},
    }[kind]
    x = random(5, 13, 32)
    ours, expected = FastEncoder(encoder)(x, mask, **options), encoder(x, mask, **options)
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-5, atol=1e-5)
    assert (ours[~mask] == 0).all()


def test_padding_on_the_left_is_refused():
    with pytest.raises(ValueError, match="right"):
        FastEncoder(modules()[0])(random(2, 4, 32), mask_of(4, 2).flip(1))


@pytest.mark.parametrize("lengths", [(7,), (6, 6, 6), (3, 12, 1, 7, 9), (0, 4, 0, 0, 0, 2), (0, 0)], ids=str)
@pytest.mark.parametrize("recency", [True, False])
@torch.no_grad()
def test_steps(lengths, recency):
    decoder = modules(recency=recency)[1]
    mask, fast, B = mask_of(*lengths, 1)[:-1], FastDecoder(decoder), len(lengths)
    encoded, events = random(*mask.shape, 32), torch.arange(mask.shape[1]) // 2 - 1
    memories, caches = (
        [each.memory(encoded, mask, events) for each in (decoder, fast)],
        [each.cache() for each in (decoder, fast)],
    )
    g, beams = torch.Generator().manual_seed(1), 1
    for level, K in enumerate((1, 4, 6, 6, 2, 3, 3)):
        x = torch.randn(B, K, 32, generator=g)
        parents = torch.randint(0, beams, (B, K), generator=g) if level and level != 6 else None
        expected, ours = (
            each.step(x, memory, cache, parents)
            for each, memory, cache in zip((decoder, fast), memories, caches, strict=True)
        )
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
        assert ours.isfinite().all()
        beams = K


@torch.no_grad()
def test_at_the_sizes_of_tiger():
    encoder, decoder = modules(T5Shape())
    mask, x, tokens = mask_of(81, 13, 40), random(3, 81, 128), random(3, 2, 128, seed=1)
    hidden = []
    for one, other in ((encoder, decoder), (FastEncoder(encoder), FastDecoder(decoder))):
        memory, cache = other.memory(one(x, mask), mask), other.cache()
        first = other.step(tokens[:, :1], memory, cache)
        second = other.step(tokens, memory, cache, torch.zeros(3, 2, dtype=torch.int64))
        hidden.append(torch.cat([first, second], 1))
    torch.testing.assert_close(hidden[1], hidden[0], rtol=1e-5, atol=1e-5)


def test_products_end_with_what_follows_them():
    weight, norm, x, to = random(7, 5), random(5, seed=1), random(6, 5, seed=2), random(6, 7, seed=3)
    product = FastLinear(weight)
    torch.testing.assert_close(product(x), x @ weight.T)
    torch.testing.assert_close(product(x, relu=True), (x @ weight.T).relu())
    torch.testing.assert_close(product.add(to, x), to + x @ weight.T)
    expected = torch.nn.functional.rms_norm(x, (5,), norm, t5.EPS) @ weight.T
    torch.testing.assert_close(FastLinear(weight, norm=norm)(t5.normalise(x)), expected)
