"""Our T5 against transformers' on the same weights, and what it promises beyond."""

from __future__ import annotations

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from recpipe.layers.t5 import Encoder, T5Shape
from recpipe.layers.t5_decoder import Cache, Decoder, Head
from recpipe.layers.t5_weights import from_transformers

VOCABULARY = 50
SHAPES = {
    "small": T5Shape(dim=32, heads=3, head_dim=8, feed_forward=40, layers=2, decoder_layers=3),
    "wide": T5Shape(
        dim=24, heads=4, head_dim=16, feed_forward=96, layers=3, decoder_layers=1, buckets=8, max_distance=20
    ),
    "tiger": T5Shape(),
}


def pair(shape: T5Shape, tied: bool = True):
    """transformers' model, and encoder, decoder and head of ours with its weights."""
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
    encoder, decoder, head = Encoder(shape), Decoder(shape), Head(shape.dim, VOCABULARY, tied=tied)
    encoder.load_state_dict(from_transformers(tensors, "encoder"))
    decoder.load_state_dict(from_transformers(tensors, "decoder"))
    if not tied:
        theirs.lm_head.weight.data.mul_(shape.dim**-0.5)  # logits of hundreds would hide the fifth digit
        head.load_state_dict({"weight": tensors["lm_head.weight"]})
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
    logits = head(decoder(table[labels], decoder.memory(encoded, mask)), table)
    torch.testing.assert_close(logits, expected.logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_steps_equal_the_whole_pass():
    _, encoder, decoder, _ = pair(SHAPES["small"])
    x, mask, K, L = torch.randn(3, 12, 32), padding(12, 5, 1, T=12), 4, 5
    memory, g = decoder.memory(encoder(x, mask), mask), torch.Generator().manual_seed(0)
    cache, paths = Cache(), None
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
