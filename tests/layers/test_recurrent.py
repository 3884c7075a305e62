"""LSTM and GRU4Rec against their equations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recpipe.data.batches import Batch
from recpipe.layers.recurrent import RecurrentConfig
from recpipe.models.registry import build

ITEMS = 11


def build_model(name: str, **config):
    torch.manual_seed(0)
    model = build(name, {"dim": 6, "hidden": 5, "dropout": 0.0, **config}, n_items=ITEMS, max_length=9).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.5 * torch.randn_like(weight))
    return model.eval()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gru(x: np.ndarray, h: np.ndarray, c: np.ndarray, weights: tuple[np.ndarray, ...]):
    """Cho et al. 2014, the reset gate after the product with the state (their first version's variant in cuDNN)."""
    w, u, b, d = weights
    (wr, wz, wn), (ur, uz, un) = np.split(w @ x + b, 3), np.split(u @ h + d, 3)
    z = sigmoid(wz + uz)
    return (1 - z) * np.tanh(wn + sigmoid(wr + ur) * un) + z * h, c


def lstm(x: np.ndarray, h: np.ndarray, c: np.ndarray, weights: tuple[np.ndarray, ...]):
    """Gers et al. 2000, without peepholes."""
    w, u, b, d = weights
    i, f, g, o = np.split(w @ x + b + u @ h + d, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize(("name", "cell"), [("gru4rec", gru), ("lstm", lstm)])
def test_scores_are_those_of_the_equations(name, cell, layers):
    model = build_model(name, layers=layers)
    tensors = {key: value.numpy() for key, value in model.state_dict().items()}
    table, history = tensors["items.weight"], [3, 1, 4, 1, 5]
    states = [(np.zeros(5), np.zeros(5)) for _ in range(layers)]
    for item in history:
        x = table[item] * np.sqrt(6)
        for n in range(layers):
            names = (f"encoder.cells.{kind}_l{n}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
            states[n] = cell(x, *states[n], tuple(tensors[key] for key in names))
            x = states[n][0]
    x = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * tensors["encoder.norm.weight"] + tensors["encoder.norm.bias"]
    hidden = tensors["encoder.project.weight"] @ x + tensors["encoder.project.bias"]
    batch = Batch(torch.tensor([[*history, 0, 0], [2] * 7]), torch.tensor([5, 7]), None)
    with torch.no_grad():
        np.testing.assert_allclose(model.score(batch)[0].numpy(), table @ hidden, rtol=1e-9)


@pytest.mark.parametrize("name", ["gru4rec", "lstm"])
def test_recurrent_weights_start_orthogonal_and_the_head_near_uniform(name):
    torch.manual_seed(0)
    model = build(name, {}, n_items=500, max_length=9)
    for gate in model.encoder.cells.weight_hh_l0.detach().split(128):
        torch.testing.assert_close(gate @ gate.T, torch.eye(128), rtol=0, atol=1e-5)
    batch = Batch(torch.randint(1, 501, (4, 9)), torch.full((4,), 9), None)
    assert model.eval().score(batch)[:, 1:].softmax(1).max() < 3 / 500
    assert model.items.weight[0].abs().sum() == 0


@pytest.mark.parametrize("setting", ["dim", "hidden", "layers"])
def test_a_size_below_one_is_named(setting):
    sizes = {"dim": 4, "hidden": 4, "layers": 1, setting: 0}
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        RecurrentConfig(**sizes)
    with pytest.raises(ValueError, match=f"{setting} is 0"):
        build("lstm", {setting: 0}, n_items=5, max_length=5)
