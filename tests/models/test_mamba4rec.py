"""Mamba4Rec against the paper's network around transformers' Mamba-2, and packed rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import Mamba2Config
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from recpipe.data.batches import Batch
from recpipe.models.registry import build

ITEMS, LONGEST = 30, 60
SMALL = {"dim": 16, "state": 8, "head_dim": 16}


def build_model(**config):
    torch.manual_seed(0)
    model = build("mamba4rec", {**SMALL, **config}, n_items=ITEMS, max_length=LONGEST)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model.eval()


def random_items(B: int, T: int) -> torch.Tensor:
    return torch.randint(1, ITEMS + 1, (B, T), generator=torch.Generator().manual_seed(T))


def library_mixer(ours: nn.Module) -> Mamba2Mixer:
    config = Mamba2Config(
        hidden_size=16, num_heads=2, head_dim=16, state_size=8, n_groups=1, chunk_size=16, num_hidden_layers=1
    )
    theirs = Mamba2Mixer(config, layer_idx=0).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


@torch.no_grad()
def by_the_paper(model, items_BT: torch.Tensor) -> torch.Tensor:
    norm = lambda x, layer: F.layer_norm(x, (16,), layer.weight, layer.bias)  # noqa: E731
    h = norm(model.items.weight[items_BT], model.norm)
    for layer in model.layers:
        h = norm(library_mixer(layer.mamba)(h) + h, layer.norm_mamba)
        up, down = layer.feed.up, layer.feed.down
        h = norm(F.gelu(h @ up.weight.T + up.bias) @ down.weight.T + down.bias + h, layer.norm_feed)
    return h


def test_it_is_the_network_of_the_paper():
    model, items = build_model(), random_items(3, 47)
    ours = model.hidden(Batch(items, torch.full((3,), 47), None))
    torch.testing.assert_close(ours, by_the_paper(model, items), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["after", "before"])
def test_packed_users_are_read_as_if_alone(norm):
    model, lengths = build_model(norm=norm), [9, 1, 20, 3]
    users = [random_items(1, n) for n in lengths]
    packed = Batch(torch.cat(users, 1), torch.tensor([33]), None)
    marks = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))[None]
    places = torch.cat([torch.arange(n) for n in lengths])[None]
    together = model.hidden(replace(packed, segments=marks, segment_positions=places))
    alone = torch.cat([model.hidden(Batch(u, torch.tensor([u.shape[1]]), None)) for u in users], 1)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (model.hidden(packed) - alone).abs().max() > 1e-3


def test_mixers_start_as_those_of_mamba():
    torch.manual_seed(0)
    model = build("mamba4rec", {"head_dim": 1}, n_items=ITEMS, max_length=LONGEST)
    for layer in model.layers:
        dt, decay = F.softplus(layer.mamba.dt_bias), layer.mamba.A_log.exp()
        assert 0.0009 < dt.min() < 0.01 < dt.max() < 0.11
        assert 0.99 < decay.min() < 4
        assert 12 < decay.max() < 16.01
        assert layer.mamba.out_proj.weight.std() > 0.04  # not N(0, 0.02)
    assert sum(weight.numel() for weight in model.layers[0].feed.parameters()) == 2 * 64 * 256 + 256 + 64


@pytest.mark.parametrize(
    ("config", "message"),
    [({"norm": "pre"}, "norm is 'pre'; allowed: after, before"), ({"head_dim": 12}, "head_dim is 12")],
)
def test_wrong_settings_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        build("mamba4rec", {**SMALL, **config}, n_items=5, max_length=5)
