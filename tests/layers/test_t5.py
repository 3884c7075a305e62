"""Our T5 against transformers' on the same weights, and what it promises beyond."""

from __future__ import annotations

import pytest
import torch
from benchmarks.harness import from_transformers
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from recpipe.layers.t5 import Decoder, Encoder, KVCache, RelativeBias, T5Shape, attend, attention_mask, fused_attention

VOCABULARY = 50
SHAPES = {
    "small": T5Shape(dim=32, heads=3, head_dim=8, feed_forward=40, layers=2, decoder_layers=3),
    "wide": T5Shape(
        dim=24, heads=4, head_dim=16, feed_forward=96, layers=3, decoder_layers=1, buckets=8, max_distance=20
    ),
    "tiger": T5Shape(),
}


def pair(shape: T5Shape, tied: bool = True):
    """transformers' model, and encoder, decoder and output table of ours with its weights."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=shape.dim,
        d_kv=shape.head_dim,
        num_heads=shape.heads,
        d_ff=shape.feed_forward,
        num_layers=shape.layers,
        num_decoder_layers=shape.decoder_layers,
        relative_attention_num_buckets=shape.buckets,
        relative_attention_max_distance=shape.max_distance,
        tie_word_embeddings=tied,
    )
    theirs = T5ForConditionalGeneration(config).eval()
    tensors = theirs.state_dict()
    encoder, decoder = Encoder(shape), Decoder(shape)
    encoder.load_state_dict(from_transformers(tensors, "encoder"))
    decoder.load_state_dict(from_transformers(tensors, "decoder"))
    if not tied:
        theirs.lm_head.weight.data.mul_(shape.dim**-0.5)  # logits of hundreds would hide the fifth digit
    head = tensors["shared.weight"] * shape.dim**-0.5 if tied else tensors["lm_head.weight"]
    return theirs, encoder.eval(), decoder.eval(), head


def tokens(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed))


def padding(*lengths: int, T: int) -> torch.Tensor:
    return torch.arange(T) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_parity_with_transformers(name, tied):
    theirs, encoder, decoder, head = pair(SHAPES[name], tied)
    inputs, mask, labels = tokens(4, 90), padding(90, 3, 47, 1, T=90), tokens(4, 5, seed=1)
    expected = theirs(input_ids=inputs, attention_mask=mask.long(), decoder_input_ids=labels)
    table = theirs.shared.weight
    encoded = encoder(table[inputs], mask)
    torch.testing.assert_close(encoded[mask], expected.encoder_last_hidden_state[mask], rtol=1e-5, atol=1e-5)
    logits = F.linear(decoder(table[labels], decoder.memory(encoded, mask)), head)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_steps_equal_the_whole_pass():
    _, encoder, decoder, _ = pair(SHAPES["small"])
    x, mask, K, L = torch.randn(3, 12, 32), padding(12, 5, 1, T=12), 4, 5
    memory, g = decoder.memory(encoder(x, mask), mask), torch.Generator().manual_seed(0)
    cache, paths = KVCache(), None
    for level in range(L):
        beams = 1 if level == 0 else K
        new = torch.randn(3, beams, 1, 32, generator=g)
        parents = torch.randint(0, 1 if level == 1 else K, (3, K), generator=g) if level else None
        if level:
            new = torch.cat([paths[torch.arange(3)[:, None], parents], new], 2)
        paths = new
        hidden = decoder.step(paths[:, :, -1], memory, cache, parents)
        for beam in range(beams):
            whole = decoder(paths[:, beam], memory)[:, -1]
            torch.testing.assert_close(hidden[:, beam], whole, rtol=1e-5, atol=1e-5)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(name: str = "small", **options):
    torch.manual_seed(0)
    return Encoder(SHAPES[name]).eval(), Decoder(SHAPES[name], **options).eval()


@torch.no_grad()
def test_a_causal_decoder_sees_no_later_query():
    encoder, decoder = plain()
    memory, x = decoder.memory(encoder(random(2, 7, 32))), random(2, 6, 32, seed=1)
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = decoder(x, memory), decoder(changed, memory)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert (after[:, 4:] - before[:, 4:]).abs().amax(-1).min() > 1e-3


@torch.no_grad()
def test_parallel_queries_see_each_other():
    encoder, decoder = plain(causal=False)
    memory, x = decoder.memory(encoder(random(2, 7, 32))), random(2, 4, 32, seed=1)
    changed = x.clone()
    changed[:, 3] += 1
    assert (decoder(changed, memory) - decoder(x, memory)).abs().amax(-1).min() > 1e-4
    alone = decoder(x, memory, attention=torch.eye(4, dtype=torch.bool))
    each = torch.cat([decoder(x[:, q : q + 1], memory) for q in range(4)], 1)
    torch.testing.assert_close(alone, each, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_padding_changes_nothing():
    encoder, decoder = plain()
    x, queries = random(3, 9, 32), random(3, 4, 32, seed=1)
    mask = padding(9, 4, 6, T=9)
    encoded = encoder(x, mask)
    hidden = decoder(queries, decoder.memory(encoded, mask))
    for user, length in enumerate((9, 4, 6)):
        alone = encoder(x[user : user + 1, :length])
        torch.testing.assert_close(encoded[user, :length], alone[0], rtol=1e-5, atol=1e-5)
        expected = decoder(queries[user : user + 1], decoder.memory(alone))
        torch.testing.assert_close(hidden[user], expected[0], rtol=1e-5, atol=1e-5)


def test_who_may_look_at_nothing_mixes_nothing_in_and_learns_without_nan():
    encoder, decoder = plain()
    x, queries = random(3, 5, 32).requires_grad_(), random(3, 4, 32, seed=1)
    empty = torch.zeros(3, 5, dtype=torch.bool)
    hidden = decoder(queries, decoder.memory(encoder(x, empty), empty))
    other = decoder(queries, decoder.memory(encoder(x + 1, empty), empty))
    torch.testing.assert_close(hidden, other)  # nothing of the encoder comes through
    nothing = decoder(queries, decoder.memory(encoder(x)), cross=torch.zeros(4, 5, dtype=torch.bool))
    torch.testing.assert_close(nothing, hidden)
    blind = encoder(x, attention=torch.zeros(5, 5, dtype=torch.bool))
    (hidden.sum() + blind.sum()).backward()
    grads = [weight.grad for weight in (*encoder.parameters(), *decoder.parameters()) if weight.grad is not None]
    assert all(grad.isfinite().all() for grad in (*grads, x.grad))


@pytest.mark.parametrize("recency", [True, False])
@torch.no_grad()
def test_one_pass_serves_all_targets_of_a_sequence(recency):
    """Targets side by side, each seeing its own part of the memory, equal targets decoded one by one."""
    encoder, decoder = plain()
    if recency:
        decoder.recency = RelativeBias(decoder.shape, bidirectional=False)
    W, L, T = 3, 4, 10
    x, mask, targets = random(2, T, 32), padding(10, 7, T=T), random(2, W * L, 32, seed=1)
    events = (torch.arange(T) - 2).div(3, rounding_mode="floor") + 1  # target w sees those up to w
    memory = decoder.memory(encoder(x, mask), mask, events)
    which = torch.arange(W * L) // L
    seen = torch.arange(T) < (3 * which + 2)[:, None]  # (W * L, T)
    together = decoder(
        targets,
        memory,
        cross=seen,
        attention=which[:, None] == which,
        positions=torch.arange(L).repeat(W),
        events_Q=which,
    )
    for w in range(W):
        own = mask & (torch.arange(T) < 3 * w + 2)
        alone = decoder(targets[:, w * L : (w + 1) * L], decoder.memory(encoder(x, mask), own, events))
        torch.testing.assert_close(together[:, w * L : (w + 1) * L], alone, rtol=1e-5, atol=1e-5)
    by_user = decoder(
        targets,
        memory,
        cross=seen.expand(2, -1, -1),
        attention=(which[:, None] == which).expand(2, -1, -1),
        positions=torch.arange(L).repeat(W).expand(2, -1),
        events_Q=which.expand(2, -1),
    )
    torch.testing.assert_close(by_user, together)


@torch.no_grad()
def test_tokens_at_one_position_are_a_set():
    encoder, _ = plain()
    x, item = random(1, 6, 32), torch.tensor([0, 0, 0, 1, 1, 1])
    swapped = x[:, [2, 0, 1, 3, 5, 4]]
    encoded, other = encoder(x, positions=item), encoder(swapped, positions=item[None])
    torch.testing.assert_close(other, encoded[:, [2, 0, 1, 3, 5, 4]], rtol=1e-5, atol=1e-5)
    assert (encoder(swapped) - encoder(x)[:, [2, 0, 1, 3, 5, 4]]).abs().max() > 1e-3


@torch.no_grad()
def test_causal_by_item_sees_no_later_item():
    encoder, _ = plain()
    x, item = random(1, 6, 32), torch.arange(6) // 2
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = (encoder(each, attention=item[:, None] >= item) for each in (x, changed))
    torch.testing.assert_close(after[:, :4], before[:, :4])


def test_initial_weights_are_t5s():
    torch.manual_seed(0)
    encoder, decoder = Encoder(T5Shape()), Decoder(T5Shape())
    theirs = T5ForConditionalGeneration(
        T5Config(d_model=128, d_kv=64, num_heads=6, d_ff=1024, num_layers=4, vocab_size=10)
    ).state_dict()
    for side, ours in (("encoder", encoder), ("decoder", decoder)):
        expected = from_transformers(theirs, side)
        assert expected.keys() == ours.state_dict().keys()
        for name, weight in ours.state_dict().items():
            if "norm" in name:
                assert (weight == 1).all()
                continue
            parts = 3 if "qkv" in name else 2 if "kv" in name else 1
            for mine, other in zip(weight.chunk(parts), expected[name].chunk(parts), strict=True):
                assert mine.std() == pytest.approx(float(other.std()), rel=0.2 if "table" in name else 0.03), name


def test_dropout_is_of_training_only():
    encoder, _ = plain()
    x = random(2, 5, 32)
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"dim": 0}, "dim is 0"), ({"buckets": 6}, "buckets is 6"), ({"max_distance": 16}, "max_distance is 16")],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        T5Shape(**sizes)


def test_fused_attention_of_other_devices_is_the_same():
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator).double().requires_grad_() for n in (5, 7, 7))
    bias = torch.randn(1, 3, 5, 7, generator=generator).double().requires_grad_()
    allowed = torch.rand(2, 1, 5, 7, generator=generator) < 0.6
    allowed[1, :, 2] = False
    results = []
    for way in (attend, lambda *args: fused_attention(*args).transpose(1, 2).flatten(2)):
        mask = attention_mask(bias, allowed)
        mixed = way(q, k, v, mask, torch.nn.Dropout(0.0))
        if way is not attend:
            mixed = mixed * mask.alive[:, 0]
        results.append([mixed, *torch.autograd.grad(mixed.square().sum(), [q, k, v, bias])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
