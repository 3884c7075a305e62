"""Blocks and variants of SASRec."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.synthetic import random_sequences, train_until

from recpipe.data.batches import Batch, DeviceSequences
from recpipe.models.registry import build
from recpipe.models.sasrec import Attention, LiGRBlock, SASRec


def noisy(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn_like(weight))
    return model


def attention_by_hand(layer: Attention, x: torch.Tensor) -> torch.Tensor:
    """Causal attention of one sequence (T, D) in loops."""
    q, k, v = layer.qkv(x).chunk(3, -1)
    T, D = x.shape
    width, out = D // layer.heads, torch.zeros_like(x)
    for head in range(layer.heads):
        cut = slice(head * width, (head + 1) * width)
        for t in range(T):
            scores = torch.stack([q[t, cut] @ k[s, cut] / math.sqrt(width) for s in range(t + 1)])
            out[t, cut] = scores.softmax(0) @ v[: t + 1, cut]
    return layer.out(out)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("heads", [1, 2])
def test_attention_is_what_it_says_with_and_without_the_path_for_dropout(heads, training, monkeypatch):
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, x: x)
    layer = noisy(Attention(SASRec.Config(dim=8, heads=heads, attention_dropout=0.5))).double().train(training)
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    for row, ours in zip(x, layer(x), strict=True):
        torch.testing.assert_close(ours, attention_by_hand(layer, row))


def test_dropout_on_attention_weights_has_a_mean_of_no_dropout():
    torch.manual_seed(0)
    layer = noisy(Attention(SASRec.Config(dim=8, attention_dropout=0.3))).train()
    x = torch.randn(1, 4, 8).expand(20_000, 4, 8)
    torch.testing.assert_close(layer(x).mean(0), layer.eval()(x[:1])[0], rtol=0.05, atol=0.05)


def test_a_ligr_block_is_its_equations():
    """x + sigmoid(W1 x) * MHA(LN x), then x + sigmoid(W2 x) * SwiGLU(LN x); the gates read the residual stream."""
    block = noisy(LiGRBlock(SASRec.Config(dim=8, feed_forward=2))).double().eval()
    x = torch.randn(6, 8, dtype=torch.float64)
    sigmoid = lambda z: 1 / (1 + (-z).exp())  # noqa: E731
    g1, g2 = block.gate_attention, block.gate_feed
    y = x + sigmoid(x @ g1.weight.T + g1.bias) * attention_by_hand(block.attention, block.norm_attention(x))
    value, gate = (block.norm_feed(y) @ block.up.weight.T).split(16, -1)
    fed = (gate * sigmoid(gate) * value) @ block.down.weight.T
    torch.testing.assert_close(block(x[None])[0], y + sigmoid(y @ g2.weight.T + g2.bias) * fed)


def test_ligr_blocks_keep_the_order_of_time_and_learn_by_heart():
    data = random_sequences(32, 25, longest=11, seed=1)
    torch.manual_seed(0)
    model = build("sasrec", {"block": "ligr", "dropout": 0.0, "feed_forward": 4}, n_items=25, max_length=10)
    items = torch.randint(1, 26, (4, 10))
    changed = items.clone()
    changed[:, 6:] = changed[:, 6:] % 25 + 1
    before, after = (model.hidden(Batch(each, torch.full((4,), 10), None)) for each in (items, changed))
    torch.testing.assert_close(before[:, :6], after[:, :6])
    batch = DeviceSequences(data, window=11, device="cpu").batch(np.arange(32))
    assert train_until(model, batch, lambda loss: loss < 0.4, rate=1e-2)[-1] < 0.4
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters())


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("scale", [True, False])
def test_activation_and_scale_are_those_of_torch_layers(activation, scale):
    settings = {"dim": 8, "heads": 2, "feed_forward": 3, "activation": activation, "scale_embeddings": scale}
    model = noisy(build("sasrec", settings, n_items=9, max_length=5)).eval()
    batch = DeviceSequences(random_sequences(4, 9, longest=5), window=5, device="cpu").batch(np.arange(4))
    x = (
        model.items.weight[batch.items] * (math.sqrt(8) if scale else 1)
        + model.positions.weight[: batch.items.shape[1]]
    )
    for block in model.blocks:
        layer = torch.nn.TransformerEncoderLayer(8, 2, 24, 0, activation, batch_first=True, norm_first=True)
        names = {
            "self_attn.in_proj_": block.attention.qkv, "self_attn.out_proj.": block.attention.out,
            "linear1.": block.up, "linear2.": block.down, "norm1.": block.norm_attention, "norm2.": block.norm_feed,
        }  # fmt: skip
        layer.load_state_dict({f"{name}{kind}": getattr(part, kind) for name, part in names.items()
                               for kind in ("weight", "bias")})  # fmt: skip
        causal = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = layer(x, src_mask=causal, is_causal=True)
    torch.testing.assert_close(model.hidden(batch)[batch.mask], model.norm(x)[batch.mask])


def test_unknown_blocks_and_activations_are_named():
    with pytest.raises(ValueError, match="block is 'hstu'; allowed: sasrec, ligr"):
        SASRec.Config(block="hstu")
    with pytest.raises(ValueError, match="activation is 'swish'; allowed: relu, gelu"):
        SASRec.Config(activation="swish")
    with pytest.raises(ValueError, match="activation is gelu and block ligr"):
        SASRec.Config(activation="gelu", block="ligr")
